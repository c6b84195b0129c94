"""The notebooks themselves, beside one and beside two busy programs: no verdict contradicts the run without them.

That run is the one that nbmake has just left, else its notebooks run now. Where other programs disturb it as well, it says less, and then less is
held against it: a verdict that cannot be told contradicts none.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.busy import busy

from helpers import ROOT, ledger, machine
from helpers.article import ARTICLE, breakdown, claims

SOME, ALL = ("01", "02", "03", "04", "05", "09"), tuple(f"0{n}" for n in range(1, 10))
LIMIT = 1800  # seconds, of one run; 01 to 09 beside one program take about five minutes on two cores that nothing else uses
KNOWN = (claims.HOLDS, claims.OTHERWISE, claims.NOT, claims.UNKNOWN)
OPEN = (claims.UNKNOWN, "too noisy")


def run(folder, names):
    """Execute the notebooks ``names`` with their results in ``folder``."""
    command = [sys.executable, "-m", "tools.run", *names]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"RESULTS_DIR": str(folder)}, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def quiet(run_results):
    """Results of a run without busy children: as much of 01 to 09 as there is, and at least 01 to 05 and 09."""
    folder = Path(run_results)
    return folder if (folder / "claims.md").is_file() else run(folder, ["09"])


@pytest.fixture(scope="module", params=[(1, ALL), (2, SOME)], ids=["one", "two"])
def beside(request, tmp_path_factory):
    programs, names = request.param
    with busy(programs, LIMIT):
        return run(tmp_path_factory.mktemp("busy"), names)


def verdicts(folder):
    """{(claim, column): verdict} of claims.md: the verdict, and the one of the reader's own small models."""
    lines = [line.strip("| ").split(" | ") for line in (folder / "claims.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    found = {}
    for claim, verdict, *_, mine in ([cell.strip() for cell in line] for line in lines[2:]):
        found[claim, "verdict"] = verdict
        if mine.startswith(KNOWN):
            found[claim, "stand-ins"] = mine.split(": ")[0]
    assert {claim for claim, _ in found} == set(ARTICLE["statements"].values()) and set(found.values()) <= set(KNOWN)
    return found


def sentences(folder):
    """{what is compared: "less", "more", "about the same" or "too noisy"} of comparison.md's conclusions."""
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    found = re.findall(r"^- (First call, step 1 to step 4|Warm call, step 1 to step 4|Step 3 to step 4).*?(too noisy|about the same|less|more)", text, re.M)
    assert len(found) == 3, text
    return dict(found)


def signs(folder):
    """{what changes: ledger.Difference.sign} from step 1 to step 4, of the ledger's rows."""
    rows = ledger.read(folder / "ledger.jsonl")
    found = ledger.history(rows, "embedded", machine.device_name())
    pairs = {
        f"{what}, {a} to {b}": ledger.difference(found[a], found[b], what).sign for a, b in ((1, 2), (2, 3), (3, 4), (1, 4)) for what in ("wall_s", "tpot_s")
    }
    parts = [part for part in breakdown.changes(found) if part.after is not None]  # without 06, a bar holds the changes before it too: another one
    return pairs | {f"{part.what}, after {before}": part.sign for before, part in zip(["step 1", *(part.what for part in parts)], parts)}


def test_no_verdict_contradicts_the_run_without_them(quiet, beside):
    for what in (verdicts, sentences):
        idle, loud = what(quiet), what(beside)
        for key in idle.keys() & loud.keys():
            assert loud[key] in (idle[key], *OPEN) or idle[key] in OPEN, f"{key}: {idle[key]!r} quiet, {loud[key]!r} beside busy programs"


def test_no_change_has_the_other_sign(quiet, beside):
    """Those of the ledger's rows, and the bars of notebook 06's waterfall. About the same (0) and a small change are no contradiction."""
    idle, loud = signs(quiet), signs(beside)
    for key in idle.keys() & loud.keys():
        assert {idle[key], loud[key]} != {-1, 1}, key


def test_what_is_computed_or_recorded_does_not_move(quiet, beside):
    """The recorded run at Llama-2's shapes judges the claims about speed, whatever runs beside; and first calls beside other programs tell nothing."""
    idle, loud = verdicts(quiet), verdicts(beside)
    for name in ("cpu_saving", "two_3090s", "eight_to_bf16", "thirteen_faster_than_seven", "quantisation_saves_80_percent", "bf16_changes_the_type_only"):
        claim = ARTICLE["statements"][name], "verdict"
        assert idle[claim] == loud[claim] != claims.UNKNOWN
    assert loud[ARTICLE["statements"]["eight_to_bf16"], "stand-ins"] == claims.UNKNOWN and sentences(beside)["First call, step 1 to step 4"] == "too noisy"


def test_the_quiet_run_has_something_to_contradict(quiet):
    """Unless it was disturbed too."""
    rows = ledger.history(ledger.read(quiet / "ledger.jsonl"), "embedded", machine.device_name())
    if any(ledger.disturbed(row, key) for step in (1, 2) for row in rows[step] for key in ("wall_s", "warm_wall_s")):
        pytest.skip("other programs ran beside the run without busy children")
    assert verdicts(quiet)[ARTICLE["statements"]["eight_to_bf16"], "stand-ins"] != claims.UNKNOWN
