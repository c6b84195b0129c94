"""The benchmark measures what it says, keeps what it has, and agrees with another tool on the same call."""

import json
import statistics
import subprocess
import sysconfig
import time
import venv
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from helpers import ROOT, benchmark, ledger, machine, process
from helpers.article import breakdown
from helpers.benchmark import job, profile
from helpers.errors import CheckpointError, CourseError, DiskError, UnknownStepError
from helpers.models import catalogue, choose, files
from helpers.timing import PROMPT
from tools import benchmark as command

QUICK = {"repeats": 2, "warmups": 1, "tier": "embedded"}
OTHER_TOOL = [
    "optimum-benchmark==0.6.0",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
    "flatten-dict==0.4.2",
    "six==1.17.0",
    "colorlog==6.9.0",
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of two steps, two rounds and two prompt lengths, with the ledger that it wrote."""
    path = tmp_path_factory.mktemp("benchmark") / "ledger.jsonl"
    return benchmark.run((1, 2, "gptq-marlin"), rounds=1, path=path, prompt_tokens=(None, 32), batches=(1, 2), **QUICK), path


def test_rows_are_complete_and_in_the_ledger(measured, capsys):
    found, path = measured
    assert ledger.read(path) == found.rows and not capsys.readouterr().err
    assert [(r["step"], r["prompt_tokens"], r["batch"]) for r in found.rows] == [(n, p, b) for n in (1, 2) for p in (8, 32) for b in (1, 2)]
    for row in found.rows:
        assert len(row["warm"]) == 2 and row["run"] == found.id and row["round"] == 1
        assert row["floor_bytes"] > row["read_bytes"] and row["floor_tpot_s"] == row["floor_bytes"] / row["bandwidth_bytes_per_s"]
        assert row["peak_generating_bytes"] > row["weight_bytes"] and row["load_s"] > 0
        assert "--tier embedded" in row["command"] and set(row["operations_s"]) == set(profile.KINDS)
    assert found.rows[0]["prompt"] == PROMPT and found.rows[2]["prompt"] != PROMPT


def test_a_step_that_cannot_run_here_is_said_and_the_others_go_on(measured):
    found, _ = measured
    if "gptq-marlin" in {row["variant"] for row in found.rows}:
        pytest.skip("this machine has Marlin")
    (sentence,) = found.problems.values()
    assert "CUDA" in sentence and "\n" not in sentence


def test_operations_show_what_each_format_does(measured):
    eight_bit, sixteen = measured[0].rows[0]["operations_s"], measured[0].rows[4]["operations_s"]
    assert eight_bit["quantise and dequantise"] > 0 == sixteen["quantise and dequantise"]
    assert min(eight_bit["matrix products"], sixteen["matrix products"], sixteen["attention"], sixteen["other operations"]) > 0


def test_table_and_pooling(measured):
    found, _ = measured
    twice = found.rows + [row | {"wall_s": row["wall_s"] + 2, "floor_tpot_s": row["floor_tpot_s"] / 2} for row in found.rows]
    pooled = list(benchmark.pool(twice).values())
    assert [row["rounds"] for row in pooled] == [2] * 8 and len(pooled[0]["warm"]) == 4
    first = found.rows[0]
    assert pooled[0]["wall_s"] == pytest.approx(first["wall_s"] + 1) and pooled[0]["floor_tpot_s"] == first["floor_tpot_s"] / 2
    assert pooled[0]["over_floor"] == pytest.approx(2 * first["tpot_s"] / first["floor_tpot_s"])
    assert list(benchmark.table(found.rows).index) == [first["title"]] * 4 + [found.rows[4]["title"]] * 4


def test_faster_than_the_floor_is_refused(measured):
    row = measured[0].rows[0]
    assert ledger.refusal(row, measured[0].rows) == ""
    call = row["warm"][0] | {"ttft": 1.0, "wall": 1.0 + 14 * 0.89 * row["floor_tpot_s"]}
    assert "error of the measurement" in ledger.refusal(row | {"warm": [*row["warm"], call]}, [])
    assert "error of the measurement" in ledger.refusal(row | {"warm_ttft_s": 0.89 * row["floor_tpot_s"]}, [])
    other = row | {"bandwidth_bytes_per_s": row["floor_bytes"] / row["tpot_s"] / 1.01}  # the floor just below the median
    assert "error of the measurement" in ledger.refusal(other | {"floor_bytes": row["floor_bytes"] * 2}, [])


def test_a_refused_row_is_not_written(measured, tmp_path, monkeypatch):
    row = {k: v for k, v in measured[0].rows[0].items() if k not in ("run", "job", "round", "command", "busy_cores_before")}
    monkeypatch.setattr(benchmark, "_in_a_process", lambda *_: ([row | {"floor_bytes": 10**15}], ""))
    found = benchmark.run((1,), rounds=1, path=tmp_path / "ledger.jsonl", **QUICK)
    assert not found.rows and "was not written down" in next(iter(found.problems.values())) and not ledger.read(tmp_path / "ledger.jsonl")


def test_a_refused_row_takes_no_other_with_it(measured, tmp_path, monkeypatch):
    rows = [{k: v for k, v in row.items() if k not in ("run", "job", "round", "command", "busy_cores_before")} for row in measured[0].rows[:4]]
    rows[1] |= {"floor_bytes": 10**15}
    monkeypatch.setattr(benchmark, "_in_a_process", lambda *_: (rows, ""))
    found = benchmark.run((1,), rounds=1, path=tmp_path / "ledger.jsonl", **QUICK)
    kept = [(row["prompt_tokens"], row["batch"]) for row in ledger.read(tmp_path / "ledger.jsonl")]
    assert kept == [(row["prompt_tokens"], row["batch"]) for row in (rows[0], *rows[2:])] and len(found.rows) == 3
    assert next(iter(found.problems.values())).count("was not written down") == 1


@pytest.mark.parametrize("fits", [0, 1])
def test_a_disk_that_takes_no_more_loses_no_row_of_a_job(measured, tmp_path, monkeypatch, capsys, fits):
    """All rows of the job are kept in this kernel and printed; the same call goes on behind it once there is room. The disk is played: test_writes fills one."""
    rows = [{k: v for k, v in row.items() if k not in ("run", "job", "round", "command", "busy_cores_before")} for row in measured[0].rows[:4]]
    path, asked, real, taken = tmp_path / "ledger.jsonl", [], files.append, []
    monkeypatch.setattr(benchmark, "_in_a_process", lambda each, _: asked.append(each.key) or (rows, ""))
    with monkeypatch.context() as patch:

        def append(place, line):
            if len(taken) >= fits:
                raise DiskError("ledger.jsonl could not be written, the disk is full: make room; then run this again.")
            taken.append(real(place, line))

        patch.setattr(files, "append", append)
        with pytest.raises(DiskError, match="the disk is full"):
            benchmark.run((1, 2), rounds=1, path=path, **QUICK)
        assert asked == [1] and capsys.readouterr().err.count("Not in the ledger, but kept in this kernel") == 4 - fits
    found = benchmark.run((1, 2), rounds=1, path=path, **QUICK)
    assert asked == [1, 2] and len(found.rows) == len(ledger.read(path)) == 8 and len({row["run"] for row in found.rows}) == 1


def test_interrupted_it_keeps_what_it_has_and_goes_on(measured, tmp_path, monkeypatch):
    """Jobs go in turns; what is done is not done again; a complete run is followed by a new one."""
    path, asked = tmp_path / "ledger.jsonl", []
    real = {row["step"]: {k: v for k, v in row.items() if k not in ("run", "job", "round", "command", "busy_cores_before")} for row in measured[0].rows}

    def job_in_turn(each, _):
        asked.append((each.key, each.round))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [real[each.key]], ""

    monkeypatch.setattr(benchmark, "_in_a_process", job_in_turn)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run((1, 2), rounds=2, path=path, **QUICK)
    assert asked == [(1, 1), (2, 1), (1, 2)] and len(ledger.read(path)) == 2
    first = benchmark.run((1, 2), rounds=2, path=path, **QUICK)
    assert asked[3:] == [(1, 2), (2, 2)] and len(first.rows) == 4 and len({row["run"] for row in first.rows}) == 1
    benchmark.run((2,), rounds=1, path=path, **QUICK)  # another plan
    assert len(benchmark.run((1, 2), rounds=2, path=path, **QUICK).rows) == 4 and asked[6:] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert len(ledger.read(path)) == 9 and not list(tmp_path.glob("*.unfinished"))


def test_a_step_that_never_works_does_not_bring_old_rows_back(measured, tmp_path, monkeypatch):
    row, asked = {k: v for k, v in measured[0].rows[0].items() if k not in ("run", "job", "round", "command", "busy_cores_before")}, []
    monkeypatch.setattr(benchmark, "_in_a_process", lambda each, _: asked.append(each.key) or (([row], "") if each.key == 1 else ([], "not here")))
    for _ in range(2):
        assert len(benchmark.run((1, "gptq-marlin"), rounds=2, path=tmp_path / "ledger.jsonl", **QUICK).rows) == 2
    assert asked == [1, "gptq-marlin", 1] * 2


def test_a_download_that_is_interrupted_stops_the_benchmark(tmp_path, monkeypatch):
    from helpers.models import hub

    def fetch(_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise CheckpointError("interrupted: what is here stays") from None

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(job.Job, "step", lambda _: choose.Chosen(**vars(catalogue.STEPS[2]) | {"checkpoint": "meta-llama/none", "tier": "hub"}))
    monkeypatch.setattr(choose.Chosen, "bytes", 10)
    with pytest.raises(KeyboardInterrupt):
        benchmark._in_a_process(job.Job(2, "hub"))


def test_a_process_that_dies_is_a_sentence(monkeypatch):
    monkeypatch.setattr(process, "call", partial(process.call, python="/bin/false"))
    assert (
        benchmark._in_a_process(job.Job(1, "embedded"))[1]
        == "The process of 1 ended with status 1 and gave no answer: it said nothing. Run the cell again, or set up the packages again."
    )


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"batches": (0,)}, {"prompt_tokens": (0,)}, {"repeats": 0}, {"warmups": -1}, {"layers": 2}])
def test_senseless_requests(wrong):
    with pytest.raises(CourseError, match="1|layers with a size only"):
        benchmark.run((2,), tier="embedded", **wrong)


def test_unknown_step_and_words_for_numbers(capsys):
    with pytest.raises(UnknownStepError, match="this course adds"):
        benchmark.run(("int3",), tier="embedded")
    assert command.main(["2", "--prompt-tokens", "many"]) == 2 and "whole numbers" in capsys.readouterr().err
    assert command.main(["int3"]) == 2 and "no step 'int3'" in capsys.readouterr().err
    assert command.main(["2", "--tier", "embedded", "--size", "9B", "--rounds", "1"]) == 1 and "choose one of 1.3B" in capsys.readouterr().out


def test_a_size_with_random_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHETIC_DIR", str(tmp_path))
    found = benchmark.run((3,), tier="embedded", sizes=("1.3B",), layers=1, rounds=1, repeats=1, warmups=0, path=tmp_path / "l.jsonl", new_tokens=3)
    (row,) = found.rows
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["llama-2-1.3b-1-layers-gptq"]  # and nothing of Llama-2's size
    assert (row["step"], row["variant"], row["tier"], row["title"]) == (0, "3", "synthetic", "1.3B cut to 1 layers GPTQ")
    assert row["weight_bytes"] == replace(catalogue.Shape(2048, 5504, 24), num_hidden_layers=1).weight_bytes("gptq")


def changes(rows):
    return [part[:3] for part in breakdown.changes(ledger.by_step(rows))]


def test_the_changes_add_up_and_a_missing_step_is_in_the_next(measured):
    base, walls = measured[0].rows[0], {"1": (9, 8), "int8-no-outliers": (7, 6), "fp16": (5, 4), "2": (6, 5), "3": (4, 2), "4": (4.5, 3)}
    rows = []
    for key, (cold, warm) in walls.items():
        call = base["warm"][0] | {"wall": warm}
        known = {"step": int(key) if key.isdigit() else 0, "variant": "" if key.isdigit() else key, "title": key, "dtype": "bfloat16"}
        rows.append(base | known | {"wall_s": cold, "warm": [call], "warm_wall_s": warm})
    parts = changes(rows)
    assert [after for _, _, after in parts] == [8, 6, 4, 5, None, None, 2, 3, 4.5]  # two kernels are missing; nothing goes back to float16
    assert parts[6][1] == 5 and sum(after - before for _, before, after in parts if after is not None) == 4.5 - 9
    on_gpu = [row | {"dtype": "float16"} if row["step"] == 3 else row for row in rows]
    assert ("back to float16", 5, 4) in changes(on_gpu)
    assert changes(rows[:-1]) == []

    triton = rows[4] | {"step": 0, "variant": "gptq-triton", "title": "Triton", "warm": [base["warm"][0] | {"wall": 2.5}], "warm_wall_s": 2.5}
    other = triton | {"layer_class": "TritonV2Linear"}
    assert ("4 bits, Triton kernel", 5, 2.5) in changes([*rows, other])
    same = changes([*rows, triton])  # step 3 has that kernel itself, as on a machine without a compiler: it is no change
    assert "4 bits, Triton kernel" not in [what for what, *_ in same] and sum(after - before for _, before, after in same if after is not None) == 4.5 - 9


def test_memory_in_a_pass_of_its_own():
    """A buffer that exists only during the call is in the peak, and nothing of it afterwards."""
    import torch

    def call():
        buffer = torch.ones(50_000_000)
        time.sleep(0.5)  # on a busy machine too the memory is looked at while it is there
        return len(buffer)

    before = machine.in_use("cpu")
    assert machine.peak("cpu", call) > before + 150e6
    with pytest.raises(KeyError):
        machine.peak("cpu", lambda: {}["no"])


def test_another_tool_says_the_same_of_the_same_call():
    """optimum-benchmark's tracker and ours, both logits processors of one call: prefill and decode within 1 %."""
    folder = ROOT / ".venv" / "optimum-benchmark"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    made = f"{OTHER_TOOL} beside {sysconfig.get_path('purelib')}"
    if not ready.is_file() or ready.read_text() != made:
        venv.create(folder, with_pip=True, clear=True)
        packages = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
        (Path(packages.stdout.strip()) / "course.pth").write_text(sysconfig.get_path("purelib"))  # torch and transformers: the course's own
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *OTHER_TOOL]
        subprocess.run(install, check=True, timeout=300)
        ready.write_text(made)
    done = subprocess.run([python, ROOT / "tests" / "support" / "other_tracker.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    calls = json.loads(done.stdout.splitlines()[-1])
    assert len(calls) == 5
    for theirs, ours in ((0, 1), (2, 3)):
        assert statistics.median(call[ours] / call[theirs] for call in calls) == pytest.approx(1, abs=0.01)
