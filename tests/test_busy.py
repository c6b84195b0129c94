"""Beside other programs the course says the same as on a quiet machine, or that it is too noisy to tell; and each row keeps how busy it was."""

import os
import time

import psutil
import pytest
from support.busy import busy

from helpers import ledger, machine, timing
from helpers.article import breakdown, claims, compare
from helpers.errors import UnknownStepError
from helpers.models import choose
from helpers.timing import Call

PAIRS = ((1, 2), (1, 4), (2, 3), (3, 4))


def measured():
    return {n: [ledger.measure_step(choose.get_step(n, tier="embedded"))] for n in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def runs():
    """{number of busy programs: {step: [row]}}."""
    found = {}
    for programs in (0, 1, 2):
        with busy(programs):
            found[programs] = measured()
    return found


def test_no_verdict_contradicts_the_quiet_machine(runs):
    for programs in (1, 2):
        for before, after in PAIRS:
            for key in ("wall_s", "warm_wall_s", "tpot_s"):
                quiet, noise, _ = ledger.difference(runs[0][before], runs[0][after], key)
                beside, louder, why = ledger.difference(runs[programs][before], runs[programs][after], key)
                told = abs(quiet) > noise and abs(beside) > louder
                assert not told or (quiet > 0) == (beside > 0), (
                    f"{key}, step {before} to {after}: {quiet:+.0f} % quiet, {beside:+.0f} % beside {programs} ({why})"
                )


def test_time_a_token_holds_beside_one_program(runs):
    """No limit on time here; the figures are printed (pytest -s), and docs/recorded-runs.md names them."""
    for programs in (1, 2):
        ratios = {n: runs[programs][n][0]["tpot_s"] / runs[0][n][0]["tpot_s"] for n in runs[0]}
        print(f"\nTPOT beside {programs} / alone: " + ", ".join(f"step {n} {ratio:.2f}" for n, ratio in ratios.items()))
    assert all(row["threads"] == choose.threads(choose.get_step(n, tier="embedded").shape) for n, (row,) in runs[0].items())


@pytest.mark.parametrize("programs", [1, 2])
def test_the_load_is_what_the_others_used(programs):
    """At least what the children say that they used themselves; whatever else runs here comes on top."""

    def used():
        return sum(sum(psutil.Process(child.pid).cpu_times()[:2]) for child in children)

    with busy(programs) as children:
        time.sleep(0.5)  # they have started
        load, before, start = machine.Load(), used(), time.perf_counter()
        time.sleep(2)
        theirs = (used() - before) / (time.perf_counter() - start)
        assert load.stop().others >= theirs - 0.1 > 0


def test_rows_keep_how_busy_it_was(runs):
    quiet, loud = ([row["others_cores"] for (row,) in runs[programs].values()] for programs in (0, 2))
    assert min(loud) > 0.5
    if max(quiet) < machine.QUIET:  # nothing but the children ran here
        assert min(loud) > max(quiet)
    if machine.cores() == 2:
        assert all(ledger.mark(row) == "~ busy" for (row,) in runs[2].values())


def row(walls, cold=2.0, others=0.0, cold_others=0.0, threads=1):
    calls = [vars(Call(1.0, 0.0, wall, 0.1, 15)) for wall in walls]
    middle = sorted(walls)[len(walls) // 2]
    return {"title": "small", "wall_s": cold, "warm_wall_s": middle, "warm": calls, "cores": 2, "threads": threads, "others_cores": others} | {
        "cold_others_cores": cold_others
    }


STEADY = (1.0, 1.01, 1.02)


@pytest.mark.parametrize(
    ("found", "key", "said"),
    [
        (row(STEADY), "warm_wall_s", ""),
        (row(STEADY, others=1.0), "warm_wall_s", ""),  # one thread, one program, two cores
        (row(STEADY, others=1.0, threads=2), "warm_wall_s", "other programs used 1.0 of 2 cores"),
        (row(STEADY, others=1.2), "warm_wall_s", "other programs used 1.2 of 2 cores"),  # three programs share two cores: nobody gets a whole one
        (row(STEADY, others=1.9), "warm_wall_s", "other programs used 1.9 of 2 cores"),
        (row(STEADY, others=1.9), "wall_s", ""),
        (row(STEADY, cold_others=1.9), "wall_s", "other programs used 1.9 of 2 cores"),
        (row(STEADY, others=0.9, cold_others=0.9), "warm_wall_s", ""),
        (row(STEADY, others=0.9, cold_others=0.9), "wall_s", "other programs used 0.9 of 2 cores"),  # a first call never keeps its time
        (row((1.0, 1.5, 2.0)), "warm_wall_s", "the repeats differ by 33 %"),
    ],
)
def test_what_disturbs_a_row(found, key, said):
    assert ledger.disturbed(found, key) == said


def test_the_mark_is_of_the_figures_that_are_shown():
    beside_one = row(STEADY, others=0.9, cold_others=0.9)
    assert ledger.mark(beside_one) == "" and ledger.mark(beside_one, "wall_s", "warm_wall_s") == "~ busy"
    assert ledger.mark(row((1.0, 1.5, 2.0))) == "~ noisy"


def test_a_difference_must_be_larger_than_the_noise():
    assert ledger.difference(2 * [row(STEADY)], 2 * [row([w / 2 for w in STEADY])], "warm_wall_s")[:2] == (pytest.approx(-50), ledger.NOISE)
    percent, noise, why = ledger.difference([row(STEADY), row([1.6, 1.61, 1.62])], [row(STEADY)], "warm_wall_s")  # two rows of one step lie far apart
    assert abs(percent) < noise and "repeats differ" in why
    loud = row([3.0, 3.0, 3.0], others=1.9)
    assert ledger.difference([row(STEADY)], [loud], "warm_wall_s")[1:] == (float("inf"), "small: other programs used 1.9 of 2 cores")
    calm = 2 * [row(STEADY)]
    assert ledger.difference(calm, [loud, *calm], "warm_wall_s")[:2] == (0, ledger.NOISE), "calm rows count in place of a disturbed one"


def test_one_run_does_not_tell_how_far_runs_lie_apart():
    """Its warm calls may agree to a per cent, and those of the next run be 14 % slower: only a larger change is one, and a small one is none."""
    for key, least in (("warm_wall_s", ledger.ONE_WARM), ("wall_s", ledger.ONE_COLD)):
        for change in (0, 4, -4, least - 1, 1 - least, least + 1, -least - 1):
            factor = 1 + change / 100
            other = row([factor * wall for wall in STEADY], cold=2.0 * factor)
            sign = 0 if abs(change) < ledger.NOISE else None if abs(change) < least else (change > 0) - (change < 0)
            for before in ([row(STEADY)], 2 * [row(STEADY)]):
                found = ledger.difference(before, [other], key)
                assert found.sign == sign and found.noise == least and found.why == ("" if abs(change) < ledger.NOISE else found.why), (key, change)
            assert ledger.difference(2 * [row(STEADY)], 2 * [other], key).sign == ((change > 0) - (change < 0) if abs(change) > ledger.NOISE else 0)
            asked_of_many = ledger.difference([row(STEADY)], [other], key, many=True)  # a class: its machines tell how far runs lie apart
            assert asked_of_many.noise == ledger.NOISE and asked_of_many.percent == found.percent
    said = ledger.difference([row(STEADY)], [row([1.1 * wall for wall in STEADY])], "warm_wall_s").words("time")
    assert said == "time too noisy to tell (+10 %, and one run of small does not tell how far runs lie apart)"


def test_beside_another_program_a_difference_must_be_larger_still():
    """One thread, one program, two cores: the row stands, but in four runs of one notebook such a step came out between 7 and 26 % slower than another."""
    beside = row(STEADY, others=0.9)
    found = ledger.difference([beside], [row([1.25 * w for w in STEADY])], "warm_wall_s")
    assert found.noise == ledger.BESIDE and found.sign is None and found.why == "other programs ran beside small"
    assert ledger.difference([row(STEADY)], [row([1.25 * w for w in STEADY])], "warm_wall_s").sign == 1
    assert ledger.difference([beside], [row([0.4 * w for w in STEADY])], "warm_wall_s").sign == -1
    assert ledger.difference([row(STEADY), beside], [row([1.25 * w for w in STEADY])], "warm_wall_s").sign == 1, "a quiet row counts in its place"


def test_measuring_again_heals():
    """One of five rows lies apart: their interquartile range is that of the other four."""
    torn = [row(STEADY), row([5.0] * 3)]
    assert ledger.difference(torn, [row([0.5] * 3)], "warm_wall_s").sign is None
    assert ledger.difference([*torn, *[row(STEADY)] * 3], 2 * [row([0.5] * 3)], "warm_wall_s")[:2] == (pytest.approx(100 * (0.5 / 1.01 - 1)), ledger.NOISE)


def test_the_noise_is_that_of_the_quantity_compared():
    """Repeats whose wall time is steady and whose first token comes at very different times."""
    calls = [vars(Call(1.0, 0.0, 1.0, ttft, 15)) for ttft in (0.1, 0.2, 0.3)]
    rows = 2 * [row(STEADY) | {"warm": calls, "warm_ttft_s": 0.2}]
    assert ledger.difference(rows, rows, "warm_ttft_s").noise == pytest.approx(50)  # (0.25 - 0.15) / 0.2
    assert ledger.difference(rows, rows, "warm_wall_s").noise == ledger.NOISE


@pytest.mark.parametrize(
    ("found", "sign", "words", "times"),
    [
        ((-80, 5, ""), -1, "80 % less time", "0.20 times as long"),
        ((400, 30, "w"), 1, "400 % more time", "5.00 times as long"),
        ((3, 5, ""), 0, "about the same time (+3 %)", "about as long (1.03 times as long)"),
        ((3, 9, "w"), None, "time too noisy to tell (+3 %, and w)", "too noisy to tell (1.03 times as long, and w)"),
        ((3193, float("inf"), "w"), None, "time too noisy to tell (+3193 %, and w)", "too noisy to tell (32.93 times as long, and w)"),
    ],
)
def test_a_difference_in_words(found, sign, words, times):
    difference = ledger.Difference(*found)
    assert (difference.sign, difference.words("time"), difference.times()) == (sign, words, times)


@pytest.mark.parametrize(
    ("percent", "noise", "below"), [(-80, 5, True), (-60, 5, False), (-75, 5, None), (-80, 40, None), (-90, 40, True), (-80, float("inf"), None)]
)
def test_a_change_to_a_limit_or_lower(percent, noise, below):
    assert ledger.Difference(percent, noise, "w").below(-75) is below


def test_sentences_of_noisy_rows():
    rows = {n: row(STEADY) | {"tier": "hub", "tpot_s": 0.1 * n, "weight_bytes": n, "checkpoint": "x", "completion": "", "title": f"s{n}"} for n in (1, 2, 3, 4)}
    assert "too noisy" not in " ".join(compare.conclusions(rows))
    rows[4] |= {"others_cores": 1.9, "cold_others_cores": 1.9}
    said = compare.conclusions(rows)
    assert sum("too noisy" in sentence for sentence in said) == 5, said
    found = claims.Evidence("", {n: [r] for n, r in rows.items()}, {})
    assert found.changes(1, 4, "wall_s").noise == float("inf") and found.changes(1, 2, "wall_s").noise == ledger.ONE_COLD


def test_a_bar_of_the_waterfall_knows_whether_it_is_noise():
    about = {"tier": "hub", "device": "CPU", "prompt": timing.PROMPT, "new_tokens": timing.NEW_TOKENS, "dtype": "bfloat16", "layer_class": "Linear"}
    found = {n: [row(walls, cold) | about] for n, (walls, cold) in {1: (STEADY, 2.0), 2: ([0.5] * 3, 0.6), 4: ([0.3, 0.5, 0.9], 0.5)}.items()}
    assert {part.what: part.sign for part in breakdown.changes(found) if part.after} == {
        "start-up of step 1": -1,  # 2 s to 1.01
        "bfloat16 in place of float16": -1,  # to 0.5
        "larger model": None,  # to 0.5, and repeats differ by 60 %
        "start-up of step 4": None,
    }
    found[4] = [row([0.5] * 3, 0.51) | about]
    assert [part.sign for part in breakdown.changes(found)][-2:] == [0, 0]


def test_unsteady_repeats_are_repeated_and_the_steadiest_kept():
    rounds = iter([[Call(1, 0, w, 0.1, 15) for w in walls] for walls in ((1.0, 2.0, 3.0), (1.0, 1.0, 1.02))])
    steady = timing.steadiest([Call(1, 0, w, 0.1, 15) for w in (1.0, 4.0, 9.0)], lambda: next(rounds))
    assert [call.wall for call in steady] == [1.0, 1.0, 1.02]
    calm = [Call(1, 0, 1.0, 0.1, 15)] * 3
    assert timing.steadiest(calm, lambda: pytest.fail("steady repeats are not repeated")) is calm


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.delenv("THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    return choose.get_step(2, tier="embedded").shape


@pytest.mark.parametrize(("times", "number"), [({1: 1.1, 2: 1.0, 4: 9.0}, 1), ({1: 4.0, 2: 2.0, 4: 1.0}, 4), ({1: 4.0, 2: 1.2, 4: 1.0}, 2), ({1: 0.0}, 1)])
def test_fewest_threads_that_are_about_as_fast(fresh, monkeypatch, times, number):
    monkeypatch.setattr(choose, "_block_times", lambda shape: times)
    monkeypatch.setattr(machine, "QUIET", 99)
    assert choose.threads(fresh) == number
    monkeypatch.setattr(choose, "_block_times", lambda shape: pytest.fail("measured twice"))
    assert choose.threads(fresh) == number


def test_a_choice_made_beside_other_programs_is_not_kept(fresh, monkeypatch):
    monkeypatch.setattr(machine, "QUIET", -1)
    asked = []
    monkeypatch.setattr(choose, "_block_times", lambda shape: asked.append(shape) or {1: 1.0, 2: 2.0})
    assert choose.threads(fresh) == choose.threads(fresh) == 1 and len(asked) == 2


@pytest.mark.parametrize(("unit", "others", "number"), [(1e-3, 0.1, 4), (1e-3, 0.9, 2), (1e-3, 2.6, 1), (1e-3, 3.9, 1), (1e-2, 0.9, 4), (1e-2, 3.9, 4)])
def test_cores_that_others_use_are_not_counted_on(fresh, monkeypatch, unit, others, number):
    """Beside others a median of a small block may say anything: threads that wait for each other lose most there. A 7B's block takes 50 ms."""
    monkeypatch.setattr(choose, "_block_times", lambda shape: {1: 4 * unit, 2: 2 * unit, 4: unit})
    monkeypatch.setattr(machine.Load, "stop", lambda self: setattr(self, "others", others) or self)
    assert choose.threads(fresh) == number


def test_a_variable_overrides_the_choice(fresh, monkeypatch):
    monkeypatch.setenv("THREADS", "3")
    assert choose.threads(fresh) == 3


@pytest.mark.parametrize("value", ["all", "²", "0", "-1", "1.5", "9999999999", "9" * 5000, " "])
def test_a_number_of_threads_that_no_library_takes(fresh, monkeypatch, value):
    """It is one sentence before a library sees it. What a large machine may ask for is taken."""
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setenv("THREADS", value)
    with pytest.raises(UnknownStepError, match=f"THREADS is '{value[:40]}': set it to a whole number of threads from 1 to 384, or delete the variable"):
        choose.threads(fresh)
    monkeypatch.setenv("THREADS", "384")
    assert choose.threads(fresh) == choose.threads_of(256, 768, 4) == 384
