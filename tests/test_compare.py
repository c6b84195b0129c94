"""The article's changes, computed from its figures, are those it states; conclusions follow from the rows, in notebooks 02 to 04 too."""

import re

import pytest
from support import classroom
from support.book import cells

from helpers import article, ledger, plots, timing
from helpers.article import compare


def test_the_articles_changes():
    computed = {(c["from"], c["to"], c["quantity"]): value for c, value in compare.relative_changes(article.article_rows())}
    assert computed[1, 2, "cpu_total_s"] == pytest.approx(-6.55, abs=0.005)  # it says 6.66
    assert computed[1, 2, "wall_s"] == pytest.approx(-71, abs=0.5)
    assert computed[2, 3, "cpu_total_s"] == pytest.approx(-14, abs=0.5)
    assert computed[2, 3, "wall_s"] == pytest.approx(-8, abs=0.5)
    assert computed[1, 4, "cpu_total_s"] == pytest.approx(-81, abs=0.5)
    assert computed[1, 4, "wall_s"] == pytest.approx(-80, abs=0.5)


def test_the_articles_totals_are_user_plus_sys():
    for row in article.article_rows().values():
        assert row["cpu_total_s"] == pytest.approx(row["user_s"] + row["sys_s"], abs=0.01)


def rows(walls=(16.0, 4.0, 5.0, 8.0), warm=0.5, completions=("a", "a", "b", "c"), tier="embedded"):
    return {
        n: {
            "step": n, "title": t, "tier": tier, "device": "CPU", "date": "2026-11-22", "checkpoint": "small", "format": "x",
            "user_s": w / 2, "sys_s": w / 4, "cpu_total_s": w * 3 / 4, "wall_s": w, "warm_wall_s": w * warm, "tpot_s": w / 20,
            "decode_tokens_per_s": 20 / w, "weight_bytes": 1000 * n, "parameters": 10**6, "completion": c,
        }
        for n, w, c, t in zip((1, 2, 3, 4), walls, completions, ("small 8-bit", "small bf16", "small GPTQ", "large GPTQ"))
    }  # fmt: skip


def test_changes_of_rows_that_are_missing():
    only = {n: r for n, r in rows().items() if n != 4}
    values = [value for _, value in compare.relative_changes(only)]
    assert values[:2] == [-9.0, -75.0] and values[4:] == [None, None]
    assert (compare.changes_table(only)["yours"] == "not measured").sum() == 2


def test_changes_take_all_rows_and_mark_the_noisy_ones():
    some = rows()  # 16, 4, 5, 8 s
    history = {n: [row, row | {"wall_s": row["wall_s"] * 1.02}] for n, row in some.items()}
    name = "wall, step 1 to 4"
    assert compare.changes_table(some, history).loc[name, "yours"] == "-50 %"
    history[4].append(some[4] | {"wall_s": 80.0})
    assert compare.changes_table(some, history).loc[name, "yours"] == "-50 % ~ noisy"  # the middle of 8, 8.16 and 80 against 16.16
    assert compare.changes_table(some, history).loc["CPU total, step 1 to 2 (seconds)", "yours"] == "-9.00 s"


def text(some):
    return "\n".join(compare.conclusions(some))


def test_conclusions_turn_with_the_figures():
    assert "50 % less wall time here, 80 % less wall time in the article" in text(rows())
    assert "100 % more wall time here" in text(rows(walls=(4.0, 4.0, 5.0, 8.0)))
    assert "about the same wall time (-3 %) here" in text(rows(walls=(8.0, 4.0, 5.0, 7.76)))
    assert "2.0 to 2.0 times as long as a warm one: it measures start-up" in text(rows())
    assert "no start-up can be seen" in text(rows(warm=1.0))
    assert "1.33 times the bytes, 60 % more time a token" in text(rows())
    assert "1.33 times the bytes, 38 % less time a token" in text(rows(walls=(16.0, 4.0, 8.0, 5.0)))
    assert "shortest time a token has step 2: small bf16 (200 ms), the longest step 1: small 8-bit" in text(rows())
    assert "Not measured yet: step 1, 3." in text({n: r for n, r in rows().items() if n in (2, 4)})


def test_conclusions_on_texts():
    assert "Step 1: small 8-bit has 50 % of the bytes of bf16 and writes the same text" in text(rows())
    assert "Step 3: small GPTQ has 150 % of the bytes of bf16 and writes another text" in text(rows())


def test_the_articles_chat_model_is_not_compared_by_its_text():
    some = rows(tier="hub")
    some[3]["checkpoint"] = "TheBloke/Llama-2-7b-Chat-GPTQ"
    assert "is a chat model, so the texts can't be compared" in text(some)


def test_a_small_model_never_passes_for_llama_2():
    assert "not how fast Llama-2 is" in text(rows()) and "Llama-2" not in text(rows(tier="hub"))


def test_random_weights_are_not_compared_by_their_text():
    assert "random" in text(rows(tier="synthetic")) and "writes" not in text(rows(tier="synthetic"))


def test_nothing_measured():
    assert "Nothing was measured yet" in text({}) and compare.report({})


def test_report_names_its_source_and_escapes_pipes():
    some = rows(completions=("a|b", "a", "b", "c"))
    report = compare.report(some)
    assert "embedded stand-ins (not Llama-2), CPU" in report and "a\\|b" in report and "## The article's changes" in report


def test_report_of_a_run(run_results):
    with open(f"{run_results}/comparison.md", encoding="utf-8") as file:
        report = file.read()
    assert "1: small 8-bit" in report and "4: large GPTQ" in report and "not measured" not in report


WALLS = {1: 4.0, 2: 1.0, 3: 2.0, 4: 3.0}  # seconds of a warm call; a first call takes twice as long
SAID = {
    "02": ("First call, held against step 1's: 0.25 times as long.", "fewer bytes, 300 % more wall time.", "a token in 8 bits, held against bf16: 4.00 times as long"),
    "03": ("Time a token, warm, held against bf16's: 2.00 times as long.", "First call, held against bf16's: 2.00 times as long."),
    "04": ("First call, held against step 3's: 1.50 times as long.", "The first call, held against a warm one: 2.00 times as long.", "Start-up is 50% of the first call.",
           "step 4 reads 1.89 times the bytes of step 3. A token, held against step 3's: 1.50 times as long."),
}  # fmt: skip


def made(number, others=0.0):
    """A row of step ``number`` that took as long as WALLS says, while other programs used so many cores."""
    wall = WALLS[number]
    call = {"user": wall, "sys": 0.0, "wall": wall, "ttft": 0.3 * wall, "new_tokens": 15, "others": others}
    times = {"wall_s": 2 * wall, "warm": [call] * 5, "warm_wall_s": wall, "tpot_s": 0.05 * wall}
    about = {"device": "Some CPU", "threads": 1, "cores": 2, "others_cores": others, "cold_others_cores": others}
    return classroom.rows("cpu-2-cores")[number] | times | about


def printed(notebook, rows, capsys):
    """What the cells of ``notebook`` between "So far" and the self-check print, if ``rows`` are the ledger's."""
    for row in rows:
        ledger.append(row)
    sources = cells(notebook, "")
    begin, end = (next(n for n, source in enumerate(sources) if source.startswith(first)) for first in ("rows = ledger.latest(", "assert "))
    names = {"ledger": ledger, "plots": plots, "timing": timing, "row": rows[-1], "my_prediction": 0.5, "my_reason": ""}
    capsys.readouterr()
    for source in sources[begin:end]:
        exec(source, names)
    return capsys.readouterr().out


@pytest.fixture
def empty(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))


@pytest.mark.parametrize("notebook", SAID)
@pytest.mark.parametrize("earlier", [True, False], ids=["as the newest", "before a disturbed one"])
def test_the_notebooks_of_the_steps_say_what_all_rows_tell(empty, capsys, notebook, earlier):
    """A quiet row counts in the place of a disturbed one, whichever is the newer."""
    number = int(notebook)
    own = [made(number), made(number, others=1.9)]
    out = printed(notebook, [made(n) for n in WALLS if n < number] + (own[::-1] if earlier else own), capsys)
    assert all(said in out for said in SAID[notebook]) and "too noisy" not in out, out


@pytest.mark.parametrize("notebook", SAID)
def test_the_notebooks_of_the_steps_build_no_verdict_on_disturbed_rows(empty, capsys, notebook):
    """Bytes and what was recorded can be told all the same."""
    number = int(notebook)
    out = printed(notebook, [made(n, others=1.9 * (n == number)) for n in WALLS if n <= number], capsys)
    judged = [line for line in out.splitlines() if re.search(r"\d times|\d %|[Yy]ou said|slower|faster", line) and not re.match("Bytes|[Rr]ecorded", line)]
    assert len(judged) >= len(SAID[notebook]) and all("too noisy to tell" in line for line in judged), out


@pytest.mark.parametrize("notebook", SAID)
def test_the_first_of_these_notebooks_that_runs_compares_nothing(empty, capsys, notebook):
    out = printed(notebook, [made(int(notebook))], capsys)
    assert "2.00 times" in out if notebook == "04" else "to see the comparison" in out and "your rows" not in out
