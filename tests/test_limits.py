"""What the hardware allows: the floors, the calculator and its widgets, published figures, the article's advice, the measured roofs."""

import json
import re
import time
from itertools import count

import pytest
from support.book import cells, functions

from helpers import ROOT, ledger, limits, machine, timing
from helpers.article import published
from helpers.machine import speed
from helpers.models import catalogue, choose
from helpers.models.catalogue import LLAMA_2

MODELS, MACHINES = limits.models(), limits.machines()
T4 = MACHINES["NVIDIA T4 (free Colab, Kaggle)"]
BOOK = functions("07", limits=limits, published=published, json=json, FORMATS=catalogue.FORMATS)


def floor_ms(model, format, machine, **more):
    return 1e3 * limits.estimate(MODELS[model], format, 1, 1, MACHINES[machine], **more).floor


@pytest.mark.parametrize(
    "model, format, on_t4, on_h200",
    [("Llama-2 7B", "fp16", 41.3, 2.75), ("Llama-2 7B", "int8", 21.1, 1.41), ("Llama-2 7B", "gptq", 11.4, 0.76), ("Llama-2 13B", "gptq", 21.7, 1.44)],
)
def test_floors_of_the_articles_models(model, format, on_t4, on_h200):
    """Independent figures: bytes of the checkpoints, less the embedding table, by the bandwidth of the data sheets."""
    assert floor_ms(model, format, T4["name"]) == pytest.approx(on_t4, abs=0.06)
    assert floor_ms(model, format, "H200") == pytest.approx(on_h200, abs=0.006)


def test_shapes_with_shared_keys_and_values():
    """The models' published numbers of parameters and KV heads (Qwen's biases, 92,160 numbers, are left out)."""
    assert MODELS["Llama-2 70B"].parameters == 68_976_648_192
    assert MODELS["Llama 3.1 8B"].parameters == 8_030_261_248
    assert MODELS["Qwen2.5 3B"].parameters == 3_085_938_688 - 92_160
    assert MODELS["Llama 3.1 8B"].kv_bytes_per_token == 32 * 2 * 8 * 128 * 2  # layers, keys and values, heads, size of a head, bytes
    assert MODELS["Qwen2.5 3B"].read_bytes("fp16") == 2 * MODELS["Qwen2.5 3B"].parameters  # a tied table is read as the output head
    same = catalogue.Shape(4096, 11008, 32, kv_size=4096)  # as many keys as queries: Llama-2 7B itself
    for format in ("fp16", "int8", "gptq"):
        assert same.weight_bytes(format) == LLAMA_2["7B"].weight_bytes(format) and same.read_bytes(format) == LLAMA_2["7B"].read_bytes(format)


def test_fits_and_does_not_fit():
    shape = MODELS["Llama-2 7B"]
    needed = limits.estimate(shape, "gptq", 512, 1, T4).needed
    assert needed == shape.weight_bytes("gptq") + 512 * 524_288 + 0.8e9 + shape.exllama_bytes  # the scratch space of GPTQ's kernel
    for memory, verdict in ((needed / 0.89e9, choose.FITS), (needed / 0.95e9, choose.TIGHT), (needed / 1.01e9, choose.TOO_LARGE)):
        assert limits.estimate(shape, "gptq", 512, 1, T4 | {"memory": memory}).fits == verdict
    assert limits.estimate(shape, "fp16", 4096, 8, T4).fits == choose.TOO_LARGE
    assert limits.estimate(MODELS["Llama-2 13B"], "fp16", 1, 1, T4).fits == choose.TOO_LARGE


def test_floor_grows_with_context_and_batch_until_computing_bounds():
    shape = MODELS["Llama-2 7B"]
    alone, many = limits.estimate(shape, "fp16", 100, 1, T4), limits.estimate(shape, "fp16", 100, 8, T4)
    assert many.floor - alone.floor == pytest.approx(7 * 100 * 524_288 / 320e9)  # the weights are read once for all
    assert alone.bound == many.bound == "reading"
    assert limits.estimate(shape, "fp16", 100, 4096, T4).bound == "computing"
    assert limits.estimate(shape, "fp16", 100, 4096, T4 | {"tflops": None}).bound == "reading"  # an unknown roof bounds nothing


@pytest.mark.parametrize("context, batch", [(0, 1), (-5, 1), (512, 0), (512, -1), (1.5, 1), (True, 1), (512, None)])
def test_values_without_sense_get_one_sentence(context, batch):
    with pytest.raises(limits.EstimateError) as caught:
        limits.estimate(MODELS["Llama-2 7B"], "gptq", context, batch, T4)
    assert str(caught.value).count(".") >= 1 and "1 or more" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("efficiency", [0, -0.1, 1.2])
def test_efficiency_is_a_share(efficiency):
    with pytest.raises(limits.EstimateError, match="share"):
        limits.estimate(MODELS["Llama-2 7B"], "gptq", 1, 1, T4, efficiency)


def test_expected_time():
    one = limits.estimate(MODELS["Llama-2 7B"], "gptq", 1, 1, T4, 0.25)
    assert one.expected == pytest.approx((4 * one.floor, 4 * one.floor)) and "25 % of that" in str(one) and "45.4 ms a step, 22.0 tokens" in str(one)
    two = limits.estimate(MODELS["Llama-2 7B"], "gptq", 512, 1, T4, [0.5, 0.25])
    assert two.expected == pytest.approx(
        (2 * two.floor, 4 * two.floor)
    ) and "24.4 ms to 48.8 ms a step, 20.5 to 41.0 tokens a second, if it reaches 25 to 50 %" in str(two)
    assert "nothing was measured" in str(limits.estimate(MODELS["Llama-2 7B"], "gptq", 1, 1, T4))


def test_where_the_cache_reads_as_much_as_the_weights():
    shape = MODELS["Llama-2 7B"]
    assert shape.read_bytes("gptq") / shape.kv_bytes_per_token == pytest.approx(6927, abs=1)  # 3,631,718,400 / 524,288
    for format in ("fp16", "int8", "nf4", "gptq"):
        shape = MODELS["Llama-2 13B"]
        context = round(shape.read_bytes(format) / shape.kv_bytes_per_token)
        assert limits.step_bytes(shape, format, context) == pytest.approx(2 * shape.read_bytes(format), rel=1e-4)


def row(**changes):
    what = {"format": "gptq", "tier": "synthetic", "title": "7B GPTQ", "device": "a CPU", "date": "2026-11-23T00:00:00+00:00"}
    return what | {"parameters": 7, "variant": "", "batch": 1, "tpot_s": 0.5, "floor_tpot_s": 0.1, "read_bytes": 2e9} | changes


def test_each_machine_gives_an_efficiency(book, monkeypatch):
    monkeypatch.setattr(ledger, "recorded_rows", lambda files: [])
    known = row(recorded="a")
    assert limits.efficiencies([known, row(parameters=1, tpot_s=0.2, recorded="a")]) == {"gptq": {"a CPU": (pytest.approx(0.2), known)}}  # the largest model
    own = row(tpot_s=0.25)
    assert limits.efficiencies([own, known])["gptq"] == {"a CPU": (pytest.approx(0.4), own)}
    other = row(recorded="b", device="another CPU", tpot_s=0.2)
    assert {name: share for name, (share, _) in limits.efficiencies([other, own, known])["gptq"].items()} == {"a CPU": 0.4, "another CPU": 0.5}
    three = [row(tpot_s=each, date=f"2026-11-2{n}") for n, each in enumerate((0.2, 0.4, 0.25))]
    assert limits.efficiencies(three)["gptq"]["a CPU"] == (pytest.approx(0.4), three[2])  # the median of 0.5, 0.25, 0.4; the newest
    assert "recorded run a" in book["where"](known) and "measured here" in book["where"](own) and "at 20 GB/s" in book["where"](own)
    assert set(limits.efficiencies([row(format="bf16", variant="2", title="1.3B bf16")])) == {"bf16"}  # a benchmark of a size in between
    unfit = [row(tier="embedded"), row(variant="gptq-torch"), row(batch=4), row(floor_tpot_s=None), row(tpot_s=None)]
    assert limits.efficiencies(unfit) == {}
    assert set(limits.efficiencies([row(format="int8", variant="int8-no-outliers"), row(format="nf4", variant="nf4")])) == {"nf4"}


def test_what_waits_for_the_processor_says_nothing_of_a_memory(monkeypatch):
    monkeypatch.setattr(ledger, "recorded_rows", lambda files: [])
    kinds = {"matrix products": 0.004, "Python and launching": 0.0039}
    reading, waiting = row(operations_s=kinds), row(device="a GPU", operations_s=kinds | {"Python and launching": 0.0041})
    assert set(limits.efficiencies([reading, waiting])["gptq"]) == {"a CPU"} and limits.launched([reading, waiting]) == [waiting]
    monkeypatch.undo()
    shares = [share for machines in limits.efficiencies([]).values() for share, _ in machines.values()]
    assert min(shares) > 0.1 and {r["recorded"] for r in limits.launched([])} == {"nvidia-h200-llama-2"}


def test_every_recorded_machine_counts():
    """Read from the files themselves: all machines that a run of transformers at full size was recorded on."""
    lines = [json.loads(line) for path in (ROOT / "data" / "recorded").glob("*/*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    full = [r for r in lines if r["tier"] == "synthetic" and "engine" not in r and r["title"].endswith(" GPTQ") and r["device"].startswith("CPU")]
    found = limits.efficiencies([])["gptq"]
    assert set(found) == {r["device"] for r in full} and len(found) > 1
    for device, (share, chosen) in found.items():
        largest = max(r["parameters"] for r in full if r["device"] == device)
        shares = [r["floor_tpot_s"] / r["tpot_s"] for r in full if r["device"] == device and r["parameters"] == largest]
        assert min(shares) <= share <= max(shares) and chosen["parameters"] == largest


def test_reached_and_gain_take_all_rows_and_ask_for_the_noise():
    def step(title, bytes, *times, **more):
        rows = [{"title": title, "tpot_s": each, "floor_tpot_s": 0.1, "cores": 2, "threads": 1} | more for each in times]
        return rows[-1] | {"floor_bytes": bytes, "rows": rows}

    slow, fast = step("A", 100, 0.5, 0.51, 0.52), step("B", 25, 0.2, 0.2, 0.21)
    assert limits.reached(slow["rows"])[0] == pytest.approx(0.1 / 0.51) and limits.reached(slow["rows"])[2] == ""
    assert limits.gain(slow, fast) == "B reads 0.25 times the bytes of A, and takes 61 % less time a token."  # 0.20 of 0.51
    assert limits.gain(fast, slow) == "A reads 4.00 times the bytes of B, and takes 155 % more time a token."
    assert limits.gain(slow, step("B", 25, 0.5)) == "B reads 0.25 times the bytes of A, and takes about as long a token (-2 %)."
    busy = step("B", 25, 0.2, others_cores=1.5)
    assert "too noisy to tell (-61 %, and B: other programs used 1.5 of 2 cores)" in limits.gain(slow, busy) and "1.5 of 2" in limits.reached(busy["rows"])[2]
    assert "too noisy to tell" in limits.gain(step("A", 100, 0.5, 1.5), step("B", 25, 0.6))
    calm_beside = step("B", 25, 0.2, 0.2)
    calm_beside["rows"].append(calm_beside["rows"][0] | {"tpot_s": 9, "others_cores": 1.5})
    assert limits.reached(calm_beside["rows"])[0] == pytest.approx(0.5)  # the disturbed row is left out


def test_recorded_rows_name_their_run():
    found = ledger.recorded_rows()
    assert found and {r["recorded"] for r in found} >= {"cpu-2-cores"}


@pytest.fixture(scope="module")
def book():
    """The functions that notebook 07 defines, by name."""
    return functions("07")


@pytest.mark.parametrize("bend", [4, 20])
def test_knee_of_a_roofline(book, bend):
    counts = [2**n for n in range(9)]
    assert book["knee"](counts, [max(1.0, n / bend) for n in counts]) == pytest.approx(bend)
    assert book["knee"](counts, [1 + n / 1000 for n in counts]) is None


def test_a_bend_is_told_only_where_it_can_be_seen(book):
    counts, times = [1, 2, 4, 8, 16], [1, 1, 1, 2, 4]
    assert book["bends"](counts, times, 0.1) == "at about 4 tokens (calls of one length differ by at most 10%)"
    assert book["bends"](counts, [1] * 5, 0.1).startswith("at more than 16 tokens")
    assert book["bends"](counts, times, 0.8) == "too noisy to tell: calls of one length differ by 80%"


def test_sweep_takes_the_best_of_three_and_ends_in_time(book, monkeypatch):
    times = {1: iter([3, 1, 2]), 2: iter([1, 1, 1]), 4: iter([50, 40, 60]), 8: iter([])}
    assert book["sweep"]([1, 2, 4, 8], lambda n: next(times[n])) == ([1, 2, 4], [1, 1, 40], 1.0)  # the middle of 3, 1, 2 is twice the best
    ticks = count(step=11)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert book["sweep"]([1, 2, 4, 8], float, longest=100) == ([1, 2], [1, 2], 0)  # 10 seconds are spent


def test_score():
    assert timing.guess(None, 8) == timing.guess(0, 8) == "(You made no prediction.)"
    assert timing.guess(9, 8) == "You said 9: well predicted."
    assert "2.0 times too high" in timing.guess(16, 8) and "4.0 times too low" in timing.guess(2, 8)


def test_published_figures():
    """Shares recomputed by hand, no figure faster than its machine can read, every source named, the unconfirmed marked."""
    shares = {(f["machine"], f["model"], f["format"], f["engine"]): f["share"] for f in published.figures()}
    assert shares["RTX 4090", "Llama-2 7B", "gptq", "ExLlamaV2"] == pytest.approx(198 / (1008e9 / 3_631_718_400), rel=1e-3)
    assert shares[T4["name"], "Qwen2.5 3B", "fp16", "transformers"] == pytest.approx(25.66 * 2 * 3_085_846_528 / 320e9, rel=1e-3)
    assert len(shares) == len(published.figures()) and all(0 < share < 1 for share in shares.values())
    assert all(f["source"].startswith("https://") or not f["confirmed"] for f in published.figures())
    assert any(not f["confirmed"] for f in published.figures())


def test_published_errors_are_computed(tmp_path, monkeypatch):
    assert all(f["error"] is None for f in BOOK["with_expected"]({}))
    before = BOOK["with_expected"]({"fp16": [0.5]})
    assert {f["format"] for f in before if f["error"] is not None} == {"fp16", "bf16"}
    for f in before:
        if f["error"] is not None:
            assert f["error"] == pytest.approx(0.5 / f["share"] - 1)
    for f in BOOK["with_expected"]({"fp16": [0.6, 0.4]}):  # a range: what lies in it is not missed, else the nearer end counts
        if f["error"] is not None:
            assert f["expected_tokens_per_s"] == pytest.approx((0.4 * f["floor_tokens_per_s"], 0.6 * f["floor_tokens_per_s"]))
            end = 0.4 if f["share"] < 0.4 else 0.6 if f["share"] > 0.6 else f["share"]
            assert f["error"] == pytest.approx(end / f["share"] - 1)
    content = json.loads(limits.PUBLISHED.read_text(encoding="utf-8"))
    content["figures"][0]["tokens_per_s"] /= 2
    changed = tmp_path / "figures.json"
    changed.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(limits, "PUBLISHED", changed)
    after = BOOK["with_expected"]({"fp16": [0.5]})
    assert 1 + after[0]["error"] == pytest.approx(2 * (1 + before[0]["error"])) and after[1:] == before[1:]


def test_two_cards():
    one = MACHINES["RTX 3090"]
    turns, divided = (published.together(one, 2, way) for way in (False, True))
    assert turns["memory"] == divided["memory"] == 48 and (turns["bandwidth"], divided["bandwidth"]) == (936, 1872)
    shape = MODELS["Llama-2 7B"]
    floors = [limits.estimate(shape, "gptq", 512, 1, machine).floor for machine in (one, turns, divided)]
    assert floors[0] == floors[1] == pytest.approx(2 * floors[2])


def test_verdicts_follow_from_the_figures(monkeypatch):
    speed, divided, memory, *_ = BOOK["advice_verdicts"]()
    assert "0.93 times" in speed and "does not hold" in speed and "1.86 times" in divided and "1.61 times" in divided
    assert "70B GPTQ" in memory and "13B fp16" in memory
    slow = MACHINES | {"RTX 4090": MACHINES["RTX 4090"] | {"bandwidth": 500, "memory": 48}}
    monkeypatch.setattr(limits, "machines", lambda: slow)
    speed, _, memory, *_ = BOOK["advice_verdicts"]()
    assert "1.87 times" in speed and "faster holds" in speed and "nothing in the table" in memory


def test_table_of_machines():
    assert 8 < len(MACHINES) <= 16
    for entry in MACHINES.values():
        assert entry["memory"] > 0 and entry["bandwidth"] > 0 and entry["source"] and {"capability", "tflops", "checked", "read_at"} <= set(entry)
        assert not entry["checked"] or re.match(r"https://([\w-]+\.)*(nvidia|apple)\.com/|measured ", entry["checked"])  # nobody else's page is a check


def test_calculator_answers_each_change(book):
    here = {"name": "this one", "memory": 24, "bandwidth": 20, "tflops": 0.2}
    names = {"limits": limits, "FORMATS": {"int8": "8-bit", "gptq": "GPTQ"}, "found": {"gptq": {"a CPU": (0.5, row())}}, "here": here, "t4": T4}
    names |= {"where": book["where"], "known": {"gptq": [0.5]}}
    for cell in cells("07", "cell-calculator"):
        exec(cell, names)
    (model, format, context, batch, machine), result = names["controls"].values(), names["result"]
    assert "at best   12.2 ms" in result.value and "24.4 ms" in result.value and "7B GPTQ, synthetic" in result.value
    seen = {result.value}
    for control, value in ((model, MODELS["Llama-2 13B"]), (format, "int8"), (context, 4096), (batch, 2), (machine, here)):
        control.value = value
        assert result.value not in seen, f"{control.description} changes nothing"
        seen.add(result.value)
    context.value = 0
    assert result.value == "<pre>The context is 0: give a whole number, 1 or more.</pre>"
    context.value, batch.value = 512, -3
    assert "The batch is -3" in result.value


def test_bandwidth_reads_all_of_the_buffer_in_every_kernel():
    """Each kernel's result depends on the first and on the last number of the buffer."""
    import torch

    buffer = torch.ones(2**18)
    for place in (0, -1):
        changed = buffer.clone()
        changed[place] = 1000.0
        for before, after in zip(speed._kernels(buffer), speed._kernels(changed)):
            assert before().max() < after().max()


def test_bandwidth_is_work_by_the_shortest_time():
    """With a clock that advances by 1 ms at each reading: one call of one kernel takes 1 ms."""
    ticks = count()
    assert limits.bandwidth("cpu", 2**25, clock=lambda: next(ticks) / 1000) == pytest.approx(2**25 * 1000)
    assert limits.bandwidth("cpu", 1, clock=lambda: next(ticks) / 1000) == pytest.approx(2**20 * 1000)  # the smallest size
    assert limits.flops("cpu", clock=lambda: next(ticks) / 1000) == pytest.approx(2 * 1024**3 * 1000)


def test_bandwidth_leaves_the_threads_as_they_were():
    import torch

    before = torch.get_num_threads()
    assert limits.bandwidth("cpu", 2**22) > 1e8  # slower than any memory of this century
    assert torch.get_num_threads() == before


def test_bandwidth_is_the_machines_and_not_that_of_a_models_threads(monkeypatch):
    """A small model leaves one thread to torch: the floor of the next, larger one must not follow from that."""
    import torch

    from helpers.machine import speed

    asked, before = [], torch.get_num_threads()
    monkeypatch.setattr(speed.machine, "cores", lambda: 2)
    monkeypatch.setattr(speed, "_fastest", lambda *arguments: asked.append(arguments[-2]) or arguments[-2])
    torch.set_num_threads(1)
    try:
        assert speed.bandwidth("cpu", 2**20) == 2 and set(asked) == {1, 2}
    finally:
        torch.set_num_threads(before)


def test_bandwidth_gives_its_buffer_back():
    before = machine.in_use("cpu")
    limits.bandwidth("cpu", 2**29)
    assert machine.in_use("cpu") < before + 2**27


def test_bandwidth_of_a_device_that_is_not_there():
    from helpers.errors import DeviceError

    with pytest.raises(DeviceError):
        limits.bandwidth("cuda:7")
