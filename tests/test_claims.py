"""Verdicts follow the figures: each of the four comes out where the rows say so, and the article's own slip is found."""

import json

import pandas as pd
import pytest
from support.book import functions

from helpers import ROOT, article, ledger, limits, quality
from helpers.article import ARTICLE, claims, compare, published
from helpers.timing import NEW_TOKENS, PROMPT, Call

VERDICTS = {name: getattr(claims, name) for name in ("HOLDS", "OTHERWISE", "NOT", "UNKNOWN")}
BOOK = functions("09", article=article, claims=claims, ledger=ledger, limits=limits, published=published, pd=pd, SAVED=-80 + ledger.NOISE, **VERDICTS)
COMPUTED = ("cpu_saving", "twice_the_parameters", "no_room_in_32_bits", "two_3090s")
BOOK |= {"rules": {name: BOOK[name] for name in ARTICLE["statements"]}}
BOOK["check"].__globals__.update(computed=[BOOK[name] for name in COMPUTED])

BASE = {"user_s": 0.5, "sys_s": 0.1, "dtype": "bfloat16", "parameters": 100, "prompt": PROMPT, "new_tokens": NEW_TOKENS}


def row(n, cold, warm, **other):
    """One row of step ``n`` with a first call and steady warm calls of these seconds; time a token and bytes follow from the warm call and the step."""
    calls = [vars(Call(0.8 * warm, 0.1 * warm, warm, 0.1 * warm, NEW_TOKENS))] * 5
    figures = {"wall_s": cold, "warm_wall_s": warm, "tpot_s": 0.9 * warm / (NEW_TOKENS - 1), "cpu_total_s": 0.9 * cold, "warm": calls}
    return BASE | figures | {"step": n, "variant": "", "weight_bytes": 100 * n, "weight_bytes_loaded": 200, "title": str(n)} | other


def evidence(cold, warm, quality=(), **other):
    """Four steps with these first and warm calls (s), two equal rows each: one alone would not tell how far runs lie apart."""
    rows = {n: [row(n, c, w, **other) for _ in range(2)] for n, (c, w) in enumerate(zip(cold, warm), start=1)}
    return claims.Evidence("here", rows, {k: {"perplexity": p, "protocol": "p", "tier": "hub", "title": str(k), "tokens": 9} for k, p in quality})


def verdict(name, found):
    answer = BOOK[name](found)
    return answer and answer[0]


@pytest.mark.parametrize(
    ("name", "cold", "warm", "expected"),
    [
        ("eight_to_bf16", (10, 3, 3, 3), (8, 2, 2, 2), claims.HOLDS),
        ("eight_to_bf16", (10, 3, 3, 3), (2, 2, 2, 2), claims.OTHERWISE),
        ("eight_to_bf16", (3, 3, 3, 3), (3, 1, 1, 1), claims.NOT),
        ("bf16_to_gptq", (9, 5, 4, 4), (9, 5, 2, 2), claims.HOLDS),
        ("bf16_to_gptq", (9, 5, 7, 7), (9, 5, 7, 7), claims.NOT),
        ("eight_to_13b", (10, 5, 4, 2), (8, 4, 1, 1.9), claims.OTHERWISE),
        ("eight_to_13b", (10, 5, 4, 2), (8, 4, 3, 2), claims.HOLDS),
        ("eight_to_13b", (2, 5, 4, 2), (8, 4, 3, 2), claims.NOT),
        ("thirteen_faster_than_seven", (1, 1, 1, 1), (1, 1, 1, 1.9), claims.NOT),
        ("thirteen_faster_than_seven", (1, 1, 4.33, 3.22), (1, 1, 1, 1.9), claims.OTHERWISE),
        ("thirteen_faster_than_seven", (1, 1, 1, 1), (1, 1, 1, 1.01), claims.UNKNOWN),
        ("thirteen_faster_than_seven", (1, 1, 1, 1), (1, 1, 2, 1), claims.HOLDS),
        ("quantisation_saves_80_percent", (1, 1, 1, 1), (10, 10, 2, 2), claims.HOLDS),
        ("quantisation_saves_80_percent", (1, 1, 1, 1), (20, 4, 2, 4), claims.OTHERWISE),
        ("quantisation_saves_80_percent", (1, 1, 1, 1), (5, 4, 3, 4), claims.NOT),
    ],
)
def test_verdicts_follow_the_figures(name, cold, warm, expected):
    assert verdict(name, evidence(cold, warm)) == expected


def test_a_slow_type_is_not_what_fewer_bits_save():
    """A T4 emulates bfloat16: 4 bits are held against the faster 16-bit type."""
    found = evidence((20, 20, 3, 3), (20, 20, 3, 3))
    assert verdict("bf16_to_gptq", found) == verdict("quantisation_saves_80_percent", found) == claims.HOLDS
    found.steps["fp16"] = found.steps[3]
    assert verdict("bf16_to_gptq", found) == verdict("quantisation_saves_80_percent", found) == claims.OTHERWISE


def unsteady(found, n):
    """The warm calls of step ``n`` differ by 40 %."""
    for each in found.steps[n]:
        each["warm"] = [each["warm"][0] | {"wall": wall * each["warm_wall_s"]} for wall in (0.8, 1, 1.2, 1.4, 1.6)]


def test_calls_that_differ_much_decide_nothing():
    found = evidence((10, 9, 3, 3), (10, 9, 2, 2))
    assert verdict("eight_to_bf16", found) == claims.HOLDS
    unsteady(found, 1)
    assert verdict("eight_to_bf16", found) == claims.UNKNOWN


LOUD = {"others_cores": 1.9, "cold_others_cores": 1.9, "cores": 2, "threads": 1}
RULES = [name for name in ARTICLE["statements"] if name not in COMPUTED]


@pytest.mark.parametrize("factor", [0.2, 19, 1])
def test_beside_other_programs_no_speed_is_judged(factor):
    """Whatever a busy machine makes of the figures, e.g. +1787 %: the idle machine's verdict, or none."""
    for idle in (evidence((10, 3, 3, 3), (8, 2, 1, 2)), evidence((3, 4, 5, 6), (3, 1, 4, 5)), evidence((20, 20, 3, 3), (20, 20, 3, 3))):
        busy = claims.Evidence("busy", {n: [r | LOUD | {"wall_s": r["wall_s"] * (factor if n == 2 else 1)} for r in rs] for n, rs in idle.steps.items()}, {})
        for name in RULES:
            assert verdict(name, busy) in (verdict(name, idle), claims.UNKNOWN), name
        assert verdict("eight_to_bf16", busy) == claims.UNKNOWN != verdict("eight_to_bf16", idle)


def kind(sentence):
    """What one of notebook 05's sentences says: "less", "more", "same" or "noisy"."""
    sentence = sentence.split(" here,")[0]
    return next(name for word, name in (("too noisy", "noisy"), ("about the same", "same"), ("% less", "less"), ("% more", "more")) if word in sentence)


FIGURES = {
    "idle": evidence((16, 5, 5, 3.2), (8, 4, 2, 1.6)),
    "idle, slower": evidence((3, 5, 5, 16), (1, 4, 2, 4)),
    "idle, no change": evidence((3, 3, 3, 3.01), (1, 1, 1, 1.01)),
    "busy": evidence((16, 5, 5, 3.2), (8, 4, 2, 1.6), **LOUD),
}
FIGURES["torn: one row says 80 % less, a later one 80 % more"] = claims.Evidence(
    "torn", {n: rows + [row(n, c, w)] for (n, rows), c, w in zip(FIGURES["idle"].steps.items(), (2, 5, 5, 16), (1, 4, 2, 8))}, {}
)
FIGURES["one busy row among calm ones"] = claims.Evidence("", {n: [*rows, row(n, 90, 90, **LOUD)] for n, rows in FIGURES["idle"].steps.items()}, {})


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_05_never_says_what_09_denies(name):
    """The sentences of 05 and the verdicts of 09 about one change, from the same rows."""
    found = FIGURES[name]
    rows = {n: rows[-1] | {"tier": "hub", "checkpoint": "x", "completion": "y"} for n, rows in found.steps.items()}
    said = compare.conclusions(rows, found.steps)
    first, warm = (kind(next(s for s in said if s.startswith(f"{call} call, step 1 to step 4"))) for call in ("First", "Warm"))
    larger = kind(next(s for s in said if s.startswith("Step 3 to step 4")))
    allowed = {"less": {claims.HOLDS, claims.OTHERWISE, claims.UNKNOWN}, "more": {claims.NOT}, "same": {claims.NOT}, "noisy": {claims.UNKNOWN}}
    assert verdict("eight_to_13b", found) in allowed[first]
    assert kind(found.changes(1, 4, "warm_wall_s").words("wall time")) == warm
    answer = {"less": {claims.HOLDS}, "more": {claims.NOT, claims.OTHERWISE, claims.UNKNOWN}, "same": {claims.UNKNOWN}, "noisy": {claims.UNKNOWN}}
    assert verdict("thirteen_faster_than_seven", found) in answer[larger]
    wanted = {"busy": "noisy", "idle, slower": "more", "idle, no change": "same"}.get(name, "noisy" if "torn" in name else "less")
    assert first == wanted and (first != "less" or "80 % less wall time here, 80 % less wall time in the article" in " ".join(said))


def rows_of(run=None, walls=(10, 3, 3, 3), **other):
    place = {"tier": "embedded", "device": "CPU", "batch": 1} | ({"run": run} if run else {})
    return [row(n, w, w, **place | other) for n, w in enumerate(walls, start=1)]


def test_two_notebooks_that_disagree_are_named():
    found = claims.own(rows_of() + rows_of("a", (3, 10, 3, 3)), {})
    said = claims.disagreements(found)
    assert "Step 1 to step 2, first call: 70 % less wall time in notebook 05, 233 % more wall time in notebook 06." in said
    assert {sentence.split(",")[0] for sentence in said} == {"Step 1 to step 2", "Step 2 to step 3", "Step 1 to step 4"}
    assert verdict("eight_to_bf16", found) == claims.UNKNOWN, "rows that far apart decide nothing"
    assert claims.disagreements(claims.own(rows_of() + rows_of("a", (11, 3, 3, 3)), {})) == []
    assert claims.disagreements(claims.own(rows_of() + rows_of("a", (3, 10, 3, 3), **LOUD), {})) == [], "a disturbed row contradicts nothing"
    assert claims.disagreements(claims.own(rows_of(), {})) == []


def test_all_rows_of_a_step_count_and_nothing_else():
    own_size = [r | {"step": 0, "variant": str(r["step"]), "title": f"1.3B {r['step']}", "parameters": 5, "run": "b"} for r in rows_of()]
    other_batch, other_prompt = ([r | change for r in rows_of("c")] for change in ({"batch": 8}, {"prompt": "x"}))
    variant = [rows_of("d")[1] | {"step": 0, "variant": "fp16", "title": "fp16"}, own_size[0] | {"variant": "fp16"}]
    steps = claims.own(own_size + other_batch + other_prompt + variant + rows_of() + rows_of("a"), {}).steps
    assert {key: [r["title"] for r in rows] for key, rows in steps.items()} == {"fp16": ["fp16"], **{n: [str(n)] * 2 for n in (1, 2, 3, 4)}}
    assert claims.own(own_size, {}).steps == {}


def test_the_gap_between_wall_and_cpu():
    found = evidence((10, 1, 1, 1), (1, 1, 1, 1))
    for cpu, warm_cpu, expected in ((9.5, 0.9, claims.UNKNOWN), (4, 0.9, claims.NOT), (4, 0.3, claims.OTHERWISE)):
        calls = [call | {"user": warm_cpu - 0.1, "sys": 0.1} for call in found.steps[1][0]["warm"]]
        found.steps[1] = 2 * [found.steps[1][0] | {"cpu_total_s": cpu, "warm": calls}]
        assert verdict("gap_is_memory_work", found) == expected
    found.steps[1] = 2 * [found.steps[1][0] | {"cold_others_cores": 1.0, "cores": 2}]
    assert verdict("gap_is_memory_work", found) == claims.UNKNOWN, "it waited for a processor that others used"


@pytest.mark.parametrize(("first", "last", "expected"), [(5.5, 5.0, claims.HOLDS), (5.0, 5.5, claims.NOT), (5.0, 4.97, claims.UNKNOWN)])
def test_better_completion_is_a_matter_of_perplexity(first, last, expected):
    found = evidence((1, 1, 1, 1), (1, 1, 1, 1), quality=((1, first), (4, last)))
    assert verdict("better_completion", found) == expected
    found.quality[4]["change_from_1_se"] = 0.2
    assert verdict("better_completion", found) == claims.UNKNOWN, "within twice the standard error"
    found.quality[4]["change_from_1_se"] = 0.001
    assert verdict("better_completion", found) == {5.5: claims.NOT}.get(last, claims.HOLDS)
    found.quality[4]["protocol"] = "another"
    assert verdict("better_completion", found) is None


def test_bits_of_bf16():
    found = evidence((1, 1, 1, 1), (1, 1, 1, 1))
    assert verdict("bf16_changes_the_type_only", found) == claims.HOLDS
    for each in found.steps[2]:
        each["weight_bytes_loaded"] = 210
    assert verdict("bf16_changes_the_type_only", found) == claims.NOT


def check(sources, yours):
    BOOK["check"].__globals__.update(yours=yours, rules=BOOK["rules"])
    return BOOK["check"](sources)


def test_what_is_computed_from_shapes_and_from_the_article():
    nobody = claims.Evidence("nobody", {}, {})
    table = check([nobody], nobody)
    assert list(table.columns) == ["verdict", "because", "measured by"] and list(table.index) == list(ARTICLE["statements"].values())
    verdicts = dict(zip(ARTICLE["statements"], table["verdict"]))
    assert len(verdicts) == 12 and verdicts["cpu_saving"] == claims.NOT and "6.55" in table.loc[ARTICLE["statements"]["cpu_saving"], "because"]
    assert {name for name, verdict in verdicts.items() if verdict != claims.UNKNOWN} == set(COMPUTED)
    assert verdicts["no_room_in_32_bits"] == verdicts["twice_the_parameters"] == claims.HOLDS


LLAMA, CLAIM = {"parameters": 6_738_415_616}, ARTICLE["statements"]["eight_to_bf16"]


def test_the_nearest_size_judges_and_the_stand_in_stands_beside_it():
    mine, large = claims.Evidence("mine", evidence((10, 3, 3, 3), (8, 2, 2, 2)).steps, {}), evidence((3, 9, 3, 3), (3, 9, 2, 2), **LLAMA)
    line = check(claims.nearest_first(mine, [large]), mine).loc[CLAIM]
    assert (line["verdict"], line["measured by"]) == (claims.NOT, "here")
    assert line.iloc[-1].startswith("holds: first call: 70 % less wall time") and line.index[-1] == "your stand-ins, 0.0 million parameters"


def test_the_readers_own_measurement_comes_first_at_llama_2s_size():
    mine = claims.Evidence("mine", evidence((10, 3, 3, 3), (8, 2, 2, 2), **LLAMA).steps, {})
    table = check(claims.nearest_first(mine, [evidence((3, 9, 3, 3), (3, 9, 2, 2), **LLAMA)]), mine)
    assert tuple(table.loc[CLAIM])[::2] == (claims.HOLDS, "mine") and len(table.columns) == 3


def test_a_recorded_stand_in_never_speaks_for_the_readers_noisy_one():
    mine, other = claims.Evidence("mine", evidence((10, 3, 3, 3), (8, 2, 2, 2), **LOUD).steps, {}), evidence((10, 3, 3, 3), (2, 2, 2, 2))
    assert check([mine, other], mine).loc[CLAIM, "verdict"] == claims.UNKNOWN
    nobody = claims.Evidence("nobody", {}, {})
    line = check([nobody, other], nobody).loc[CLAIM]
    assert (line["verdict"], line["measured by"]) == (claims.OTHERWISE, "here")


def test_no_two_recorded_runs_have_one_name():
    rows = ledger.recorded_rows()
    runs = {name: claims.recorded([r for r in rows if r["recorded"] == name], {}) for name in {r["recorded"] for r in rows}}
    assert len({run.name for run in runs.values()}) == len(runs) >= 4
    large = runs["cpu-2-cores-llama-2"]
    assert large.distance == 0 and "6.7 and 13.0 billion parameters" in large.name and {1, 2, 3, 4, "fp16"} <= set(large.steps)
    gpu = runs["nvidia-h200-llama-2"]
    assert gpu.distance == 0 and gpu.gpu and set(gpu.steps) == {1, 2}, "its GPTQ row is of a smaller model than its other steps"
    assert all(run.distance > 1 and not run.gpu for name, run in runs.items() if not name.endswith("-llama-2"))
    assert {r["title"] for r in runs["cpu-2-cores-sheared"].steps[4]} == {"2.7B GPTQ"}, "of two sizes, one takes the step's place"


def test_among_equals_a_gpu_speaks_first():
    rows = ledger.recorded_rows()
    runs = [claims.recorded([r for r in rows if r["recorded"] == name], {}) for name in ("cpu-2-cores-llama-2", "nvidia-h200-llama-2")]
    nobody = claims.Evidence("nobody", {}, {})
    table = check(claims.nearest_first(nobody, runs), nobody)
    raw = {r["title"]: r for r in rows if r["recorded"] == "nvidia-h200-llama-2"}
    cold, warm = (raw["7B bf16"][key] < 0.9 * raw["7B 8-bit"][key] for key in ("wall_s", "warm_wall_s"))
    assert cold and warm and table.loc[CLAIM, "verdict"] == claims.HOLDS and "NVIDIA H200" in table.loc[CLAIM, "measured by"]
    other = ARTICLE["statements"]["thirteen_faster_than_seven"]  # it has no step 4
    assert "2 threads" in table.loc[other, "measured by"]


def test_a_recorded_run_of_one_row_a_step_says_what_its_figures_say():
    """Independently: the medians of the raw warm calls of the rows at Llama-2's shapes."""
    path = ROOT / "data" / "recorded" / "cpu-2-cores-llama-2" / "ledger.jsonl"
    raw = {r["step"]: r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if r["step"]}
    walls = {n: sorted(call["wall"] for call in r["warm"]) for n, r in raw.items()}
    eight, bf16 = (walls[n][len(walls[n]) // 2] for n in (1, 2))
    found = claims.recorded([r for r in ledger.recorded_rows() if r["recorded"] == path.parent.name], quality.read(path.parent / "quality.json"))
    assert found.changes(1, 2, "warm_wall_s").percent == pytest.approx(100 * (bf16 / eight - 1), abs=1)
    assert verdict("eight_to_bf16", found) == (claims.NOT if raw[2]["wall_s"] > 1.1 * raw[1]["wall_s"] else claims.HOLDS)
