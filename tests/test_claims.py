"""Verdicts follow the figures: each of the four comes out where the rows say so, and the article's own slip is found."""

import pandas as pd
import pytest
from support.book import functions

from helpers import article, limits
from helpers.article import ARTICLE, claims, published

VERDICTS = {name: getattr(claims, name) for name in ("HOLDS", "OTHERWISE", "NOT", "UNKNOWN")}
BOOK = functions("09", article=article, claims=claims, limits=limits, published=published, pd=pd, **VERDICTS)
COMPUTED = ("cpu_saving", "twice_the_parameters", "no_room_in_32_bits", "two_3090s")
BOOK |= {"rules": {name: BOOK[name] for name in ARTICLE["statements"]}}
BOOK["check"].__globals__.update(rules=BOOK["rules"], computed=[BOOK[name] for name in COMPUTED])

BASE = {"user_s": 0.5, "sys_s": 0.1, "warm": [{"user": 0.8, "sys": 0.1, "wall": 1.0, "ttft": 0.1, "new_tokens": 15}], "dtype": "bfloat16", "parameters": 100}


def evidence(cold, warm, quality=(), **other):
    """Four steps with these first and warm calls (s); time a token and bytes follow from the warm call and the step."""
    rows = {}
    for n, (c, w) in enumerate(zip(cold, warm), start=1):
        rows[str(n)] = (
            BASE
            | {"wall_s": c, "warm_wall_s": w, "tpot_s": w / 15, "cpu_total_s": 0.9 * c, "weight_bytes": 100 * n, "weight_bytes_loaded": 200, "title": str(n)}
            | other
        )
    return claims.Evidence("here", rows, {k: {"perplexity": p, "protocol": "p", "tier": "hub", "title": k, "tokens": 9} for k, p in quality})


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
    found.steps["fp16"] = found.steps["3"] | {"tpot_s": 3 / 15}
    assert verdict("bf16_to_gptq", found) == verdict("quantisation_saves_80_percent", found) == claims.OTHERWISE


def test_calls_that_differ_much_decide_nothing():
    found = evidence((10, 9, 3, 3), (10, 9, 2, 2))
    assert verdict("eight_to_bf16", found) == claims.HOLDS
    found.steps["1"]["warm"] = [BASE["warm"][0] | {"wall": wall} for wall in (8, 10, 12)]
    assert verdict("eight_to_bf16", found) == claims.UNKNOWN


def test_a_size_of_ones_own_takes_no_steps_place():
    row = BASE | {
        "tier": "synthetic",
        "device": "CPU",
        "prompt": "A great hobby to have is ",
        "prompt_tokens": 8,
        "batch": 1,
        "new_tokens": 15,
        "wall_s": 1,
        "ttft_s": 1,
    }
    row |= {"cpu_total_s": 1, "load_s": 1, "floor_tpot_s": 0.01, "title": "t", "run": "a"}
    four = [row | {"step": n, "variant": "", "title": str(n)} for n in (1, 2, 3, 4)]
    other = [row | {"step": 0, "variant": str(n), "title": f"1.3B {n}", "run": "b"} for n in (1, 2, 3, 4)]
    assert {r["title"] for r in claims.own(four + other, {}).steps.values()} == {"1", "2", "3", "4"}
    assert claims.own(other, {}).steps == {}


def test_the_gap_between_wall_and_cpu():
    found = evidence((10, 1, 1, 1), (1, 1, 1, 1))
    for cpu, warm_cpu, expected in ((9.5, 0.9, claims.UNKNOWN), (4, 0.9, claims.NOT), (4, 0.3, claims.OTHERWISE)):
        found.steps["1"] |= {"cpu_total_s": cpu, "warm": [BASE["warm"][0] | {"user": warm_cpu - 0.1}]}
        assert verdict("gap_is_memory_work", found) == expected


@pytest.mark.parametrize(("first", "last", "expected"), [(5.5, 5.0, claims.HOLDS), (5.0, 5.5, claims.NOT), (5.0, 4.97, claims.UNKNOWN)])
def test_better_completion_is_a_matter_of_perplexity(first, last, expected):
    found = evidence((1, 1, 1, 1), (1, 1, 1, 1), quality=(("1", first), ("4", last)))
    assert verdict("better_completion", found) == expected
    found.quality["4"]["protocol"] = "another"
    assert verdict("better_completion", found) is None


def test_bits_of_bf16():
    found = evidence((1, 1, 1, 1), (1, 1, 1, 1))
    assert verdict("bf16_changes_the_type_only", found) == claims.HOLDS
    found.steps["2"]["weight_bytes_loaded"] = 210
    assert verdict("bf16_changes_the_type_only", found) == claims.NOT


def test_what_is_computed_from_shapes_and_from_the_article():
    nobody = claims.Evidence("nobody", {}, {})
    table = BOOK["check"]([nobody])
    assert list(table.columns) == ["verdict", "because", "measured by"] and list(table.index) == list(ARTICLE["statements"].values())
    verdicts = dict(zip(ARTICLE["statements"], table["verdict"]))
    assert len(verdicts) == 12 and verdicts["cpu_saving"] == claims.NOT and "6.55" in table.loc[ARTICLE["statements"]["cpu_saving"], "because"]
    assert {name for name, verdict in verdicts.items() if verdict != claims.UNKNOWN} == set(COMPUTED)
    assert verdicts["no_room_in_32_bits"] == verdicts["twice_the_parameters"] == claims.HOLDS


def test_the_readers_own_measurement_comes_first():
    mine, other = (claims.Evidence(name, evidence((10, 3, 3, 3), warm).steps, {}) for name, warm in (("mine", (8, 2, 2, 2)), ("other", (2, 2, 2, 2))))
    claim = ARTICLE["statements"]["eight_to_bf16"]
    first = BOOK["check"]([mine, other]).loc[claim]
    assert (first["verdict"], first["measured by"]) == (claims.HOLDS, "mine")
    nothing = claims.Evidence("mine", {}, {})
    second = BOOK["check"]([nothing, other]).loc[claim]
    assert (second["verdict"], second["measured by"]) == (claims.OTHERWISE, "other")
