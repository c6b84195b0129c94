"""The ledger keeps every row, whatever happened to the file before."""

import json
import multiprocessing

import pytest

from helpers import ROOT, ledger
from helpers.errors import ImpossibleFigureError


def row(step=1, tier="embedded", device="CPU", wall=2.0):
    base = {"schema": ledger.SCHEMA, "date": "2026-11-22T10:00:00+00:00", "step": step, "title": "t", "tier": tier, "device": device}
    return base | {
        "checkpoint": "small", "format": "bf16", "user_s": 1.0, "sys_s": 0.5, "cpu_total_s": 1.5, "wall_s": wall, "ttft_s": 0.1,
        "completion": "x\ny “z”", "prompt": "p", "new_tokens": 15, "parameters": 10, "weight_bytes": 20, "read_bytes": 15,
    }  # fmt: skip


def test_round_trip(tmp_path):
    path = tmp_path / "ledger.jsonl"
    rows = [row(n) for n in (1, 2, 3)]
    for r in rows:
        ledger.append(r, path)
    assert ledger.read(path) == rows and path.read_text().count("\n") == 3


def test_no_ledger_yet(tmp_path):
    assert ledger.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("torn", ['{"schema": 1, "st', "\x00\x00", '"text"', "[1]", '{"schema": 99}', '{"schema": 1, "step": true}'])
def test_torn_and_foreign_lines_are_reported_and_kept(tmp_path, capsys, torn):
    path = tmp_path / "ledger.jsonl"
    ledger.append(row(1), path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(torn)  # no newline: the write was cut off
    ledger.append(row(2), path)
    assert [r["step"] for r in ledger.read(path)] == [1, 2]
    assert "line 2" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").splitlines()[1] == torn


@pytest.mark.parametrize(
    "wrong", [{"tier": "moon"}, {"tier": []}, {"step": 7}, {"wall_s": 0.0}, {"wall_s": -1.0}, {"wall_s": "2"}, {"ttft_s": None}, {"weight_bytes": True}]
)
def test_rows_that_could_break_a_table_are_skipped(tmp_path, capsys, wrong):
    path = tmp_path / "ledger.jsonl"
    for each in (row(1), row(2) | wrong, row(3)):
        ledger.append(each, path)
    assert [r["step"] for r in ledger.read(path)] == [1, 3] and f"line 2 lacks a usable '{next(iter(wrong))}'" in capsys.readouterr().err


CALL = {"user": 1.0, "sys": 0.1, "wall": 1.5, "ttft": 0.2, "new_tokens": 15, "others": 0.0, "passes": 0}
FULL = {  # of a row with warm calls
    "warm": [CALL, CALL], "warm_wall_s": 1.5, "warm_ttft_s": 0.2, "tpot_s": 0.1, "others_cores": 0.0, "cores": 2, "threads": None, "engine": "transformers",
    "variant": "", "batch": 1, "peak_rss_bytes": 30, "peak_gpu_allocated_bytes": None, "prediction_wall_s": None, "operations_s": {"attention": 0.1},
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"warm": [CALL, 5]}, {"warm": 5}, {"warm": [CALL | {"more": 1.0}]}, {"warm": [{"wall": 1.5}]}, {"warm": [CALL | {"wall": "1.5"}]}, {"warm": [CALL | {"wall": 0}]},
     {"warm": "text"}, {"warm": {"wall": 1.5}}, {"warm": [None]}, {"others_cores": "0"}, {"cores": "2"}, {"cores": [2]}, {"threads": 1.5}, {"tpot_s": "0.1"},
     {"tpot_s": None}, {"warm_wall_s": None}, {"warm_wall_s": 0}, {"warm_ttft_s": [0.2]}, {"variant": 5}, {"engine": []}, {"batch": "1"},
     {"peak_rss_bytes": "30"}, {"prediction_wall_s": "5"}, {"floor_bytes": {}}, {"bandwidth_bytes_per_s": True}, {"tokens_per_pass": "x"},
     {"operations_s": {"attention": "0.1"}}, {"operations_s": 5}, {"quantization": 4}, {"load_s": float("nan")}, {"load_s": 10**400},
     {"weight_bytes": 10**400}, {"read_bytes": -1}],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
def test_optional_figures_that_could_break_a_notebook_are_skipped(tmp_path, capsys, wrong):
    """And what is left works in what reads it."""
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (row(1) | FULL, row(2) | FULL | wrong, row(3) | FULL, row(4))))
    before = path.read_bytes()
    rows = ledger.read(path, engine=None)
    assert [r["step"] for r in rows] == [1, 3, 4] and f"line 2 lacks a usable '{next(iter(wrong))}'" in capsys.readouterr().err
    assert path.read_bytes() == before and ledger.difference(rows[:1], rows[1:2], "warm_wall_s").percent == 0
    ledger.append(row(2) | FULL, path)
    assert path.read_bytes().startswith(before)


def test_recorded_rows_and_unknown_keys_are_rows(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(row(1) | FULL | {"later": {"a": [1]}, "beside_torch": True, "new_tokens": 1, "tpot_s": None}) + "\n")
    assert len(ledger.read(path)) == 1
    lines = [line for file in (ROOT / "data" / "recorded").glob("*/*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 100 and not [problem for line in lines if (problem := ledger.problem(json.loads(line)))]


@pytest.mark.parametrize("line", ['{"schema": 1, "wall_s": NaN}', "[" * 100_000], ids=["nan", "deep"])
def test_lines_that_are_no_rows(tmp_path, capsys, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(line + "\n" + json.dumps(row(4)) + "\n")
    assert [r["step"] for r in ledger.read(path)] == [4] and "line 1" in capsys.readouterr().err


def test_bytes_that_are_no_text(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\xff\xfe\n" + json.dumps(row(4)).encode() + b"\n")
    assert [r["step"] for r in ledger.read(path)] == [4] and "line 1" in capsys.readouterr().err


def _append_many(path, step):
    for _ in range(50):
        ledger.append(row(step), path)


def test_two_notebooks_at_once(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, step)) for step in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(r["step"] for r in ledger.read(path)) == [1] * 50 + [2] * 50 and not capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"wall_s": float("nan")}, {"warm": [CALL | {"wall": float("inf")}]}, {"tpot_s": float("nan")}], ids=str)
def test_a_row_that_is_none_without_a_number_is_refused(tmp_path, wrong):
    path = tmp_path / "ledger.jsonl"
    ledger.append(row(1), path)
    with pytest.raises(ImpossibleFigureError, match="not finite. This is an error of the measurement, so it was not written down: run it again"):
        ledger.append(row(2) | FULL | wrong, path)
    ledger.append(row(3), path)
    assert [r["step"] for r in ledger.read(path)] == [1, 3]


def test_numbers_that_are_not_finite_are_null(tmp_path, capsys):
    """A reader's guess, for example: what was measured is kept."""
    path, guess = tmp_path / "ledger.jsonl", row(1) | FULL
    ledger.append(guess | {"prediction_wall_s": float("inf"), "more": [1.0, float("nan")]}, path)
    assert ledger.read(path) == [guess | {"more": [1.0, None]}]
    said = capsys.readouterr().err
    assert "prediction_wall_s is inf, more is [1.0, nan], not finite" in said and "null" in said


def test_latest_takes_the_newest_of_one_machine():
    rows = [row(2, wall=9.0), row(1), row(2, wall=3.0), row(2, device="T4", wall=1.0), row(3, tier="hub")]
    chosen = ledger.latest(rows, "embedded", "CPU")
    assert list(chosen) == [1, 2] and chosen[2]["wall_s"] == 3.0


def test_the_middle_is_over_all_rows_that_stand():
    """Of three rows, one was disturbed: the median of the other two."""
    rows = [row(wall=wall) | {"cores": 2, "cold_others_cores": others} for wall, others in ((2.0, 0.0), (4.0, 0.0), (90.0, 1.9))]
    assert ledger.middle(rows, "wall_s") == 3.0 and ledger.middle(rows[2:], "wall_s") == 90.0


def test_rows_of_a_run_are_complete_and_consistent(run_results):
    rows = ledger.read(f"{run_results}/ledger.jsonl")
    newest = ledger.latest(rows, "embedded", rows[-1]["device"])
    assert list(newest) == [1, 2, 3, 4]
    for r in newest.values():
        assert r["cpu_total_s"] == pytest.approx(r["user_s"] + r["sys_s"])
        assert r["wall_s"] >= r["ttft_s"] > 0
        assert r["new_tokens"] == 15 and len(r["warm"]) == 5 and all(c["new_tokens"] == 15 for c in r["warm"])
        assert r["decode_tokens_per_s"] == pytest.approx(1 / r["tpot_s"])
        assert r["completion"] and r["versions"]["torch"] and r["peak_rss_bytes"] > r["weight_bytes"]
    assert [r["layer_class"] for r in newest.values()][:2] == ["Linear8bitLt", "Linear"]
    assert newest[4]["parameters"] > 1.8 * newest[3]["parameters"]
