"""Which format, on which machine: sizes, a rule that is kept, ties and noise that are said, commands that load, a table that libraries confirm."""

import importlib
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
import test_hub
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from support.book import functions
from support.hub import Hub
from support.mocked_cuda import mock

from helpers import ROOT, kernels, ledger, limits, plots, setup, timing
from helpers.engines import advice, llamacpp
from helpers.models import catalogue, choose
from helpers.models.catalogue import CHECKPOINTS

SUPPORT = json.loads((ROOT / "data" / "support.json").read_text(encoding="utf-8"))
SIGNS = {"yes": "✓", "limited": "△", "no": "✗", "unknown": "?"}
BOOK = functions(
    "15", advice=advice, choose=choose, ledger=ledger, limits=limits, timing=timing, pd=pd, os=os, setup=setup, plots=plots, support=SUPPORT, SIGNS=SIGNS,
    context=200, MODEL="", GGUF={"bf16": "BF16", "8-bit": "Q8_0"}, sqrt=importlib.import_module("math").sqrt,
    mean=importlib.import_module("statistics").mean, stdev=importlib.import_module("statistics").stdev,
)  # fmt: skip
HERE = {"name": "a machine", "memory": 16, "bandwidth": 320}


WORDS = {"16": 16e9, "15.6 GB": 15.6e9, "8 GiB": 8 * 2**30, " 512mb": 512e6, "7,5gb": 7.5e9, 24: 24e9, "": None, None: None}


@pytest.mark.parametrize("text, size", WORDS.items())
def test_a_memory_in_words(text, size):
    assert advice.memory(text) == size


@pytest.mark.parametrize("text", ["a lot", "16 TB", "-4", "0", "1e9", "GB"])
def test_a_memory_that_is_no_number_is_one_sentence(text, capsys):
    with pytest.raises(limits.EstimateError, match=r"^The memory is .* for example 16 GB, or leave it empty for this machine's\.$"):
        advice.memory(text)
    step, size = advice.ask("", text)
    assert size is None and step.checkpoint == str(CHECKPOINTS / "small")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_model_that_is_not_there_or_quantised_already(capsys):
    for name, said in (
        ("no/such/name/at/all", "owner/name"),
        ("./nowhere", "There is no folder"),
        (str(CHECKPOINTS / "small-gptq"), "quantised already (gptq)"),
    ):
        step, size = advice.ask(name, "8 GB")
        told = capsys.readouterr().out
        assert said in told and told.count("\n") == 1 and "stands in" in told
        assert step.tier == "embedded" and size == 8e9
    assert advice.ask(str(CHECKPOINTS / "large"))[0].tier == "own"


def test_a_name_on_the_hub_costs_its_config_alone_and_no_network_one_sentence(tmp_path):
    program = "import json, sys; from helpers.engines import advice\nstep, _ = advice.ask(*sys.argv[1:]); print(json.dumps([step.tier, advice.sizes(step)['bf16'][0]]))"
    with Hub(test_hub.ARTICLE) as hub:
        assert test_hub.run(program, hub.url, tmp_path, test_hub.META) == ["own", 8_393_216]
        assert not hub.fetched("model.safetensors")
        assert test_hub.run(program, hub.url, tmp_path, "nobody/nothing") == ["embedded", 8_393_216]
    done = subprocess.run(
        [sys.executable, "-c", program, "some/model"], env=test_hub.settings("http://hub.invalid", tmp_path / "empty"), capture_output=True, text=True
    )
    said, found = done.stdout.splitlines()
    assert "cannot be resolved (DNS)" in said and json.loads(found)[0] == "embedded" and "Traceback" not in done.stderr


LLAMA = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"]}
SHAPES = {  # of the models' own config.json
    "7B": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    "13B": LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40},
}


@pytest.fixture(scope="module")
def of_size(tmp_path_factory):
    """A function: a step of the model "7B" or "13B", as far as its config.json goes, or of one whose config.json differs in ``more``."""

    def make(name, **more):
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(SHAPES[name] | more))
        return choose.get_step(2, checkpoint=folder)

    return make


def published():
    """{(model, format): bytes} that others publish: of the checkpoints as in notebook 07, and the sizes of GGUF files on the Hub (with their heads)."""
    return {
        ("7B", "bf16"): 13_476_831_232, ("7B", "8-bit"): 7_006_265_344, ("7B", "GPTQ 4-bit"): 3_893_862_400, ("13B", "GPTQ 4-bit"): 7_255_009_280,
        ("7B", "Q8_0"): 7_161_089_728, ("7B", "Q4_K_M"): 4_081_004_224,
    }  # fmt: skip


@pytest.mark.parametrize("model, format", list(published()))
def test_sizes_are_the_published_ones(of_size, model, format):
    found = advice.sizes(of_size(model))[format][0]
    assert found == pytest.approx(published()[model, format], rel=1e-3)


@pytest.mark.parametrize("name", ["small", "large"])
def test_sizes_of_gguf_files_are_those_of_files_that_are_written(name, tmp_path):
    for type in advice.TYPES:
        file = llamacpp.write(CHECKPOINTS / name, type, tmp_path / f"{name}-{type}.gguf")
        assert advice.gguf_bytes(choose.get_step(2, checkpoint=CHECKPOINTS / name).shape, type) == llamacpp.sizes(file)


def test_sizes_of_shared_keys_a_tied_table_and_odd_layers(of_size):
    """Against plain arithmetic: 8 heads for keys and values in place of 32, one table for embedding and head; and layers that GPTQ cannot pack."""
    shared = advice.sizes(of_size("7B", num_key_value_heads=8, tie_word_embeddings=True))
    linear, table, norms = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 11008), 32000 * 4096, 65 * 4096
    assert shared["bf16"] == (2 * (linear + table + norms), 2 * (linear + table + norms))  # the tied table is read as the head
    assert shared["Q4_0"][0] == linear * 4.5 / 8 + table * 6.5625 / 8 + 4 * norms == shared["Q4_0"][1]
    assert "GPTQ 4-bit" in shared and not any(name.startswith("GPTQ") for name in advice.sizes(of_size("7B", intermediate_size=11009)))


def test_bits_of_ggmls_types():
    import gguf

    for type, bits in advice.BLOCKS.items():
        count, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
        assert bits == 8 * size / count


def test_outlook_of_llama_2_on_a_t4(of_size):
    """By hand: bytes that are read, less the embedding table, and 524,288 bytes of cache a token, at 320 GB/s."""
    t4, step = limits.machines()["NVIDIA T4 (free Colab, Kaggle)"], of_size("7B")
    looks = advice.outlook(step, t4, 1000)
    assert looks["bf16"].floor == pytest.approx((13_476_831_232 - 2 * 32000 * 4096 + 1000 * 524_288) / 320e9)
    assert looks["GPTQ 4-bit"].needed == 3_893_862_400 + 1000 * 524_288 + 0.8e9 + catalogue.LLAMA_2["7B"].exllama_bytes
    assert looks["bf16"].fits == choose.TIGHT and looks["GPTQ 4-bit"].fits == choose.FITS
    assert advice.outlook(step, t4, 1000, 8e9)["bf16"].fits == choose.TOO_LARGE
    weights = [look.weights for look in looks.values()]
    assert weights == sorted(weights, reverse=True) and looks["GPTQ 8-bit"].weights > looks["GPTQ 4-bit"].weights > looks["GPTQ 3-bit"].weights
    for context in (0, -1, 1.5, True):
        with pytest.raises(limits.EstimateError, match="give a whole number of tokens"):
            advice.outlook(step, t4, context)


def row(tpot, spread=0.0, title="x", weights=10**9):
    """A row of the ledger whose five warm calls take ``tpot`` a token, apart by ``spread`` (a share)."""
    calls = [{"user": 0, "sys": 0, "wall": 15 * tpot * (1 + spread * (n - 2) / 2), "ttft": tpot, "new_tokens": 15, "others": 0.0} for n in range(5)]
    return {"title": title, "tpot_s": tpot, "warm": calls, "warm_wall_s": 15 * tpot, "weight_bytes": weights, "others_cores": 0.0, "threads": 1, "cores": 2}


def evidence(name, tpot=0.01, kl=(0.01, 0.012, 0.008, 0.01), weights=10**9, engine="transformers", needed=1e9, spread=0.0, missing=""):
    look = advice.Outlook(name, engine, weights, weights, needed, choose.FITS, 0.001)
    return advice.Evidence(look, [] if missing else [row(tpot, spread, name, weights)], list(kl), name, missing)


ROOM = {"transformers": 16e9, "llama.cpp": 16e9}
FIRST = ["speed", "bytes", "quality"]


def decide(*found, limit=0.05, wishes=FIRST, room=ROOM):
    return BOOK["decide"](list(found), room, limit, wishes)


def test_the_first_wish_decides():
    quick, small = evidence("A", 0.010, weights=3 * 10**9), evidence("B", 0.020)
    near = evidence("C", 0.030, kl=(0.001, 0.0012, 0.0012, 0.001), weights=2 * 10**9)
    assert decide(quick, small, near)["chosen"] is quick
    assert decide(quick, small, near, wishes=["bytes", "speed", "quality"])["chosen"] is small
    found = decide(quick, small, near, wishes=["quality", "speed", "bytes"])
    assert found["chosen"] is near and found["level"] == [] and found["said"] == ["Quality: C has 0.0011 nats; A 0.01; B 0.01."]


def test_what_is_out_and_why():
    found = decide(
        evidence("large", needed=15e9), evidence("gone", missing="It is not there."), evidence("bad", kl=(0.2, 0.21, 0.19, 0.2)),
        evidence("noisy", kl=(0.0, 0.0, 0.0, 0.16)), evidence("unknown", kl=()), evidence("good"),
    )  # fmt: skip
    assert found["chosen"].look.name == "good" and found["said"] == []
    assert found["out"] == {
        "large": "it needs about 15.0 GB, and 90% of 16.0 GB may be used",
        "gone": "it was not measured (It is not there)",
        "bad": "KL divergence 0.2 ± 0.008, above the limit of 0.05",
        "noisy": "KL divergence 0.04 ± 0.08: too noisy to tell whether that is below 0.05",
        "unknown": "its quality was not measured, because bf16, the yardstick, is missing",
    }
    assert set(decide(*[evidence("noisy", kl=(0.0, 0.0, 0.0, 0.16)), evidence("unknown", kl=())], limit=None)["out"]) == set()
    nothing = decide(evidence("bad", kl=(0.2, 0.21, 0.19, 0.2)))
    assert nothing["chosen"] is None and BOOK["told"](nothing)[-1].startswith("Nothing is chosen: allow more memory")


def test_noise_does_not_decide_and_is_said():
    """B is 4 % slower in calm rows (counts as none), then 30 % slower where repeats differ by more: both times the bytes decide."""
    for slower, spread, said in ((0.0104, 0.0, "B: about as long (1.04 times as long)"), (0.013, 0.8, "too noisy to tell (1.30 times as long")):
        fast, small = evidence("A", 0.010, weights=2 * 10**9, spread=spread), evidence("B", slower)
        found = decide(fast, small)
        assert found["chosen"] is small and said in found["said"][0] and found["said"][1].startswith("Bytes: B has 1,000.0 MB of weights; A has 2.00 times")
    sure = decide(evidence("A", 0.010, weights=2 * 10**9), evidence("B", 0.013))
    assert sure["chosen"].look.name == "A" and "1.30 times as long" in sure["said"][0] and len(sure["said"]) == 1


def test_a_tie_is_said():
    found = decide(evidence("A", 0.010), evidence("B", 0.0101, kl=(0.012, 0.01, 0.01, 0.008)))
    assert found["chosen"].look.name == "A" and [each.look.name for each in found["level"]] == ["B"]
    assert BOOK["told"](found)[-2:] == ["Nothing that was measured tells A from B: take either.", "Chosen: A with transformers."]
    with pytest.raises(limits.EstimateError, match="There is no wish 'beauty': choose from speed, bytes, quality"):
        decide(evidence("A"), wishes=["beauty"])


def test_quality_is_compared_text_by_text():
    """Both means have errors that overlap; but C is above A by the same amount on every text, so the difference is sure."""
    a, c = (0.001, 0.011, 0.021, 0.031), (0.003, 0.013, 0.0231, 0.0329)
    found = decide(evidence("A", kl=a), evidence("C", kl=c), wishes=["quality", "bytes", "speed"])
    assert found["chosen"].look.name == "A" and not found["level"]
    tail = [0.0001 * (n + 1) for n in range(23)] + [0.3]  # one text decides the mean; yet all of them differ from bf16's 0
    assert BOOK["sure"](tail) and not BOOK["sure"]([each * (-1) ** n for n, each in enumerate(tail)])
    assert sum(tail) / 24 < 2 * pd.Series(tail).std() / 24**0.5  # by the mean alone it would not be sure


def test_shortlist(of_size):
    step = of_size("7B")
    assert BOOK["shortlist"](advice.outlook(step, HERE, 200)) == ["bf16", "GPTQ 4-bit", "Q4_K_M"]
    assert BOOK["shortlist"](advice.outlook(step, HERE, 200), twin=False) == ["bf16", "NF4", "Q4_K_M"]
    assert BOOK["shortlist"](advice.outlook(step, HERE, 200, 6e9)) == ["GPTQ 4-bit", "Q4_K_M"]  # bf16 does not fit
    odd = advice.outlook(of_size("7B", intermediate_size=11009), HERE, 200)  # GPTQ cannot pack it
    assert BOOK["shortlist"](odd) == ["bf16", "NF4", "Q4_K_M"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """(the trial, {name: Evidence}) of three candidates of the small model, measured by the real libraries with 12 texts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RESULTS_DIR", str(tmp_path_factory.mktemp("advice")))
    step = choose.get_step(2)
    trial = advice.Trial(step, advice.outlook(step, HERE, 200), texts=12)
    yield trial, {name: trial.measure(name) for name in ("bf16", "GPTQ 4-bit", "Q4_K_M")}
    patch.undo()


def test_evidence_is_measured_and_exact(trial):
    trial, found = trial
    for name, each in found.items():
        assert not each.missing and len(each.kl) == 12 and len(each.rows) == 1
        assert each.rows[0]["weight_bytes"] == each.look.weights and each.rows[0]["read_bytes"] == each.look.reads, name
        assert each.rows[0]["tpot_s"] == each.tpot > 0
    assert found["bf16"].divergence == (0, 0)
    assert 0 < found["Q4_K_M"].divergence[0] < 0.2 and 0 < found["GPTQ 4-bit"].divergence[0] < 0.2


def test_kl_is_that_of_plain_transformers(trial):
    """Computed again without any helper: the twelve texts padded to one batch, the head and all that follows in 64 bits; within 1 %.

    (One text at a time differs by some per cent: in bfloat16 the sums are rounded in another order.)
    """
    from transformers import AutoModelForCausalLM

    trial, found = trial
    longest = max(map(len, trial.prompts)) + 1
    ids = torch.zeros(12, longest, dtype=torch.long)
    mask = torch.zeros(12, longest, dtype=torch.long)
    for number, prompt in enumerate(trial.prompts):
        ids[number, : len(prompt)], mask[number, : len(prompt) + 1] = torch.tensor(prompt), 1
        ids[number, len(prompt)] = prompt[-1]
    last = torch.tensor([len(prompt) - 1 for prompt in trial.prompts])
    probabilities = []
    for folder in ("small", "small-gptq"):
        model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        with torch.no_grad():
            hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[torch.arange(12), last]
        probabilities.append((hidden.double() @ model.lm_head.weight.double().T).softmax(-1))
    p, q = probabilities
    assert found["GPTQ 4-bit"].divergence[0] == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=0.01)


def test_rows_of_the_ledger_are_taken_and_what_cannot_be_had_is_a_sentence(trial, monkeypatch, capsys):
    trial, found = trial
    monkeypatch.setattr(timing, "measure", lambda *_: pytest.fail("it is in the ledger already"))
    assert trial.measure("GPTQ 4-bit").rows == found["GPTQ 4-bit"].rows
    capsys.readouterr()
    for name in ("GPTQ 3-bit", "GPTQ 8-bit"):
        each = trial.measure(name)
        assert not each.rows and each.missing == f"There is no ready checkpoint in {name}: make one (notebook 10), or take another format."
        assert capsys.readouterr().out == f"{name} is left out: {each.missing}\n"
    own = advice.Trial(choose.get_step(2, checkpoint=CHECKPOINTS / "small"), trial.looks)
    assert "has no GPTQ twin" in own.measure("GPTQ 4-bit").missing
    capsys.readouterr()
    monkeypatch.setattr(setup, "installed", lambda name: None)
    each = trial.measure("Q8_0")
    assert "llama.cpp is not here (xllamacpp and gguf missing)" in each.missing and capsys.readouterr().out == f"Q8_0 is left out: {each.missing}\n"


LOADED = """
import json, sys
for code in json.loads(sys.argv[1]):
    exec(code)
    print("class", type(model.model.layers[0].self_attn.q_proj).__name__)
"""


def test_the_commands_for_transformers_load_what_they_say(tmp_path):
    """As they stand on the card, in a process of its own, in the course's folder."""
    step, codes = choose.get_step(2), []
    commands = functions("15", advice=advice, os=os, setup=setup, step=step, GGUF={"bf16": "BF16", "8-bit": "Q8_0"})["commands"]
    file = llamacpp.write(CHECKPOINTS / "small", "Q8_0", tmp_path / "small-Q8_0.gguf")
    places = {"bf16": "small", "8-bit": "small", "NF4": "small", "GPTQ 4-bit": "small-gptq", "Q8_0": str(file)}
    for name, place in places.items():
        look = advice.Outlook(name, "llama.cpp" if name in advice.TYPES else "transformers", 1, 1, 1, "", 1)
        found = commands(advice.Evidence(look, place=str(CHECKPOINTS / place)), 200)
        codes.append(found["transformers"])
        assert set(found) == {"transformers", "llama.cpp", "vLLM"} and "--max-model-len 200" in found["vLLM"]
        assert str(file) in found["vLLM"] if name == "Q8_0" else "data/checkpoints/small" in found["vLLM"]
        assert re.search(r"llama-server -m \S*small-(BF16|Q8_0|Q4_K_M)\.gguf -c 200", found["llama.cpp"])
    done = subprocess.run([sys.executable, "-c", LOADED, json.dumps(codes)], cwd=ROOT, capture_output=True, text=True)
    layers = re.findall(r"^class (\w+)$", done.stdout, flags=re.M)
    assert layers[:3] == ["Linear", "Linear8bitLt", "Linear4bit"] and len(layers) == 5, done.stderr[-1500:]
    assert layers[3].startswith("Torch")  # one of gptqmodel's kernels for processors


def test_vllm_is_told_float16_on_a_card_without_bfloat16(monkeypatch):
    step, look = choose.get_step(2), advice.Outlook("bf16", "transformers", 1, 1, 1, "", 1)
    book = functions("15", advice=advice, os=os, setup=setup, step=step, torch=torch, GGUF={"bf16": "BF16"}, HALF="# float16 has as many bytes\n")
    for capability, dtype in (((7, 5), "half"), ((8, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        said = book["commands"](advice.Evidence(look, place=step.checkpoint), 200, "cuda:0")["vLLM"]
        assert f"--dtype {dtype} " in said and ("as many bytes" in said) == (dtype == "half")


def test_the_card(trial):
    trial, found = trial
    step, here = trial.step, HERE | {"device": "cpu"}
    others = dict(advice=advice, os=os, setup=setup, step=step, GGUF={"bf16": "BF16", "8-bit": "Q8_0"}, ledger=ledger, timing=timing, pd=pd, plots=plots)
    book = functions("15", **others, here=here, memory=None, context=200, LIMIT=0.05, WISHES=FIRST, trial=trial)
    choice = BOOK["decide"](list(found.values()), ROOM, None, FIRST)
    book["loading"] = book["commands"](choice["chosen"], 200)
    card = book["card"](choice, list(found.values()))
    name = choice["chosen"].look.name
    assert card.startswith(f"# Which format? small: {name} with {choice['chosen'].look.engine}\n") and "embedded stand-ins (not Llama-2)" in card
    for each in found.values():
        assert re.search(rf"^\| {each.look.name} \|.*\b{timing.seconds(each.tpot)} ", card, flags=re.M)
    assert found["bf16"].rows[0]["device"] in card and found["bf16"].rows[0]["date"][:10] in card
    assert all(f"## {engine}" in card for engine in ("transformers", "llama.cpp", "vLLM")) and "vllm serve" in card and "llama-server" in card
    assert "GPTQ 4-bit: Torch" in card and "Q4_K_M: llama.cpp" in card  # what multiplied
    figure = advice.drawn(card)
    drawn = " ".join(text.get_text() for text in figure.texts)
    assert name in drawn and "vllm serve" in drawn and "|" not in drawn and "```" not in drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.x1 and min(box.y0 for box in boxes) >= 0  # nothing is cut off


def test_every_cell_has_a_claim_a_source_and_a_day():
    for format in SUPPORT["formats"]:
        for hardware in SUPPORT["hardware"]:
            assert BOOK["claims"](format, hardware), (format, hardware)
            assert BOOK["cell"](format, hardware)[0] in SIGNS.values()
    for claim in SUPPORT["claims"]:
        assert claim["format"] in SUPPORT["formats"] and claim["state"] in SIGNS and claim["engine"] and set(claim["hardware"]) <= set(SUPPORT["hardware"])
        assert claim["source"] in SUPPORT["sources"] and {"kernel", "since"} <= set(claim)
        assert claim["state"] != "limited" or claim.get("note"), "what is lost?"
    keys = [(claim["format"], claim["engine"], hardware) for claim in SUPPORT["claims"] for hardware in claim["hardware"]]
    assert len(keys) == len(set(keys)), "two claims about one thing"
    used = {claim["source"] for claim in SUPPORT["claims"]}
    assert used == set(SUPPORT["sources"]), "sources that no claim needs"
    for source in SUPPORT["sources"].values():
        assert date.fromisoformat(source["read"]) >= date(2026, 11, 26) and source["what"]
        assert source["url"].startswith("https://") or (ROOT / source["url"]).is_file()


def checks(kind):
    """[(claim, its check)] of those claims that a library confirms by the check ``kind``."""
    found = [(claim, claim["check"]) for claim in SUPPORT["claims"] if kind in claim.get("check", {})]
    assert found, kind
    return found


@pytest.mark.parametrize("claim, check", checks("bf16"), ids=lambda value: "-".join(value.get("hardware", [])))
def test_bf16_as_torch_says(claim, check, monkeypatch):
    if check["bf16"] == "hip":
        monkeypatch.setattr(torch.version, "hip", "7.0", raising=False)
    else:
        mock(monkeypatch, tuple(check["bf16"]))
    assert torch.cuda.is_bf16_supported(including_emulation=False) == (claim["state"] == "yes")


@pytest.mark.parametrize("claim, check", checks("bitsandbytes"), ids=lambda value: "-".join(value.get("hardware", [])))
def test_bitsandbytes_as_it_says(claim, check):
    """Its supported devices, and whether the source of that device's backend has a kernel of its own for the format's product."""
    import bitsandbytes

    device, folder = check["bitsandbytes"], Path(bitsandbytes.__file__).parent
    assert device in bitsandbytes.supported_torch_devices
    source = (folder / "backends" / device / "ops.py").read_text(encoding="utf-8")
    product = {"int8": "int8_linear_matmul", "nf4": "gemv_4bit"}[claim["format"]]
    assert (f'register_kernel("bitsandbytes::{product}", "{device}")' in source) == check["own"]
    if "library" in check and sys.platform == "linux":  # the wheel carries what it was built for
        assert list(folder.glob(f"libbitsandbytes_{check['library']}*.so"))


@pytest.mark.parametrize("claim, check", checks("gptqmodel"), ids=lambda value: "-".join(value.get("hardware", [])) or value.get("gptqmodel"))
def test_gptqmodel_as_its_classes_declare(claim, check):
    kernels.library()
    from gptqmodel.models._const import DEVICE

    module, name = check["gptqmodel"].split(".")
    layer = getattr(importlib.import_module(f"gptqmodel.nn_modules.qlinear.{module}"), name)
    assert 4 in layer.SUPPORTS_BITS
    declared = {each.value for each in layer.SUPPORTS_DEVICES}
    if "on" in check:
        assert {check["on"], DEVICE.ALL.value} & declared
    if "not on" in check:
        assert not {check["not on"], DEVICE.ALL.value} & declared
    if "constant" in check:
        path, value = check["constant"]
        module, constant = path.rsplit(".", 1)
        package = "gptqmodel." if module.startswith("utils.") else "gptqmodel.nn_modules.qlinear."
        assert getattr(importlib.import_module(package + module), constant) == tuple(value)


def test_marlin_for_a_t4_is_the_courses_own_finding():
    """The note of the table on GPTQ and a T4: the library declares 7.5, and the course leaves Marlin out there."""
    settings = {"bits": 4, "group_size": 128}
    assert "cannot be compiled for compute capability 7.5" in kernels._unsupported("marlin", settings, (7, 5))
    assert kernels._unsupported("marlin", settings, (8, 6)) == ""


def quantizer(format, monkeypatch, capability):
    """transformers' quantizer of a checkpoint in ``format`` on a GPU of ``capability``, None for a machine without, "mps" for Apple's, "cpu"."""
    import transformers
    from transformers.quantizers import quantizer_finegrained_fp8, quantizer_mxfp4, quantizer_nvfp4

    if isinstance(capability, (list, tuple)):
        mock(monkeypatch, tuple(capability))
    elif capability == "mps":
        monkeypatch.setattr(quantizer_mxfp4, "get_current_accelerator", lambda: torch.device("mps"))
    elif capability == "cpu":
        monkeypatch.setattr(quantizer_mxfp4, "get_current_accelerator", lambda: None)
    for module in (quantizer_mxfp4, quantizer_nvfp4):  # the packages that it asks for are not the question here
        monkeypatch.setattr(module, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(quantizer_mxfp4, "is_triton_available", lambda *_: True)
    kinds = {
        "fp8": (quantizer_finegrained_fp8.FineGrainedFP8HfQuantizer, "FineGrainedFP8Config"), "mxfp4": (quantizer_mxfp4.Mxfp4HfQuantizer, "Mxfp4Config"),
        "nvfp4": (quantizer_nvfp4.NVFP4HfQuantizer, "NVFP4Config"),
    }  # fmt: skip
    kind, config = kinds[format]
    return kind(getattr(transformers, config, None) and getattr(transformers, config)() or quantizer_nvfp4.NVFP4Config(), pre_quantized=format != "nvfp4")


CASES = [(format, check[format], check["packed"]) for format in ("fp8", "mxfp4", "nvfp4") for _, check in checks(format)]


@pytest.mark.parametrize("format, capability, packed", CASES, ids=lambda value: str(value))
def test_packed_or_not_as_transformers_says(format, capability, packed, monkeypatch):
    """FP8 below 8.9 and MXFP4 on Apple's GPU are turned into bf16, NVFP4 below 10.0 is refused. (5.23 has all three; older ones lack NVFP4.)"""
    if format == "nvfp4":
        pytest.importorskip("transformers.quantizers.quantizer_nvfp4")
    found = quantizer(format, monkeypatch, capability)
    if format == "nvfp4" and not packed:
        with pytest.raises(RuntimeError, match="requires Blackwell|requires a CUDA GPU"):
            found.validate_environment(device_map="cuda:0")
    else:
        found.validate_environment(device_map="cuda:0")
        assert format == "nvfp4" or found.quantization_config.dequantize == (not packed)


def test_file_formats_of_gguf():
    import gguf

    assert {check["gguf"] for _, check in checks("gguf")} <= set(gguf.GGMLQuantizationType.__members__)


def test_what_this_course_has_run_itself():
    """Claims whose source is a run: their steps are the catalogue's, and tests/test_formats.py and test_llamacpp.py load them."""
    runs = {check["runs"] for _, check in checks("runs")}
    assert runs <= {step.format for step in (*catalogue.STEPS.values(), *catalogue.VARIANTS.values())} | {"gguf"}
