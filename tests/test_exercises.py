"""Every exercise, from its one source: the solution is right, the stub is open, each typical wrong answer is told what is wrong with it.

And what the reader sees around them: notebooks in step with the source, "run all" that goes through, questions, predictions.
"""

import html
import json
import re
import subprocess
import sys
from functools import lru_cache

import nbformat
import pytest

from helpers import ROOT, exercises, ledger
from helpers.exercises import predictions
from tools import badges
from tools import exercises as writer

SHEETS = {path.stem: exercises.read(path.stem) for path in sorted(exercises.SOURCE.glob("*.md"))}
CASES = [(number, name) for number, sheet in SHEETS.items() for name in sheet.exercises]
LEVELS = ["easy", "medium", "hard"]
FOLDER = ROOT / "notebooks" / "exercises"


@lru_cache
def given(number, name=None):
    """The names (dict) that an exercise finds: what the sheet and the exercise itself define."""
    sheet = SHEETS[number]
    found = {"course": str(ROOT)} if name is None else dict(given(number))
    for code in sheet.given if name is None else sheet.exercises[name].given:
        exec(compile(code, f"{number} {name or ''}", "exec"), found)
    return found


def attempt(number, name, code):
    return exercises.attempt(SHEETS[number].exercises[name], code, dict(given(number, name)))


def test_every_notebook_has_a_sheet():
    assert {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")} <= set(SHEETS)


@pytest.mark.parametrize("number", SHEETS)
def test_a_sheet_is_complete(number):
    sheet = SHEETS[number]
    assert sheet.title.startswith(f"{number} · ") and re.search(r"\d+ minutes", sheet.intro)
    assert 2 <= len(sheet.exercises) <= 3 and sheet.question.endswith("?") or "?" in sheet.question
    assert len({one.level for one in sheet.exercises.values()}) > 1 and {one.level for one in sheet.exercises.values()} <= set(LEVELS)
    assert len(sheet.answers) >= 3 and sum(right for _, right, _ in sheet.answers) == 1
    assert all(len(why.split()) >= 6 for *_, why in sheet.answers)
    for one in sheet.exercises.values():
        assert one.asked and one.hint and len(one.right.split()) >= 8 and len(one.wrong) >= 3
        assert len({said for _, said, _ in one.wrong}) == len(one.wrong), "each mistake has a sentence of its own"


@pytest.mark.parametrize(("number", "name"), CASES)
def test_the_solution_is_right(number, name, capsys):
    one = SHEETS[number].exercises[name]
    assert attempt(number, name, one.solution) == ("right", one.right)


@pytest.mark.parametrize(("number", "name"), CASES)
def test_the_stub_is_open_and_fails_loudly_without_its_dots(number, name):
    stub = SHEETS[number].exercises[name].stub
    assert attempt(number, name, stub) == ("open", "Replace each ... by code of your own, then run the cell again.")
    for nothing in ("None", "0"):
        state, said = attempt(number, name, stub.replace("...", nothing))
        assert state == "wrong" and len(said) > 20, said


@pytest.mark.parametrize(("number", "name", "mistake"), [(*case, mistake[0]) for case in CASES for mistake in SHEETS[case[0]].exercises[case[1]].wrong])
def test_a_typical_wrong_answer_is_told_what_is_wrong(number, name, mistake):
    said, code = next(rest for what, *rest in SHEETS[number].exercises[name].wrong if what == mistake)
    state, answer = attempt(number, name, code)
    assert state == "wrong" and said in answer, answer


ANSWERS = {  # code in place of an answer to 00's first exercise: what is said
    "scale = np.abs(row).max() / 7\nintegers = row / nothing\nrestored = 1": "Your code stopped in line 2 (integers = row / nothing) with NameError: name 'nothing' is not defined.",
    "scale = (": "Python cannot read line 1 (scale = (): '(' was never closed.",
    "scale = 'a'\nintegers = restored = 1": "The scale is a. It should be the largest absolute weight, 0.84, divided by 7.",
    "scale = 0.12": "There is no integers and no restored: the check looks for what the cell defined at first.",
    "import sys\nsys.exit(1)": "Your code stopped in line 2 (sys.exit(1)) with SystemExit: 1.",
}


@pytest.mark.parametrize("code", ANSWERS)
def test_what_a_learner_breaks_is_a_sentence(code):
    assert attempt("00", "row", code) == ("wrong", ANSWERS[code])


def test_an_error_inside_of_a_learners_function_names_its_line():
    state, said = attempt("06", "pays", "def pays_after(first, first_compiled, token, token_compiled):\n    return first_compiled / 0")
    assert (
        state == "wrong"
        and said == "Your code stopped in line 2 (return first_compiled / 0) with ZeroDivisionError: float division by zero."
        or "line 2" in said
    )


def test_an_answer_of_before_does_not_count():
    names = dict(given("00", "row"))
    one = SHEETS["00"].exercises["row"]
    assert exercises.attempt(one, one.solution, names)[0] == "right"
    assert exercises.attempt(one, "scale = 0.12", names)[0] == "wrong"


def test_dots_in_an_index_are_code():
    assert attempt("00", "row", "scale = np.abs(row)[...].max() / 7\nintegers = np.round(row / scale)\nrestored = integers * scale")[0] == "right"


def test_near():
    import torch

    assert exercises.near(torch.tensor([1.0, 2.0]), [1, 2.0001]) and not exercises.near([1, 2], [1, 2, 3]) and not exercises.near("a", 1)
    assert not exercises.near(1.01, 1) and exercises.near(0, 0) and not exercises.near(None, 1)


def test_no_such_sheet():
    with pytest.raises(exercises.ExerciseError, match="take one of 00, 01"):
        exercises.read("99")


# The notebooks


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """An IPython in this process, with nothing of the reader's own."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


def run_all(shell, notebook, capsys):
    """What the code cells of ``notebook`` print, the set-up cell left out; each must end without an error."""
    shell.user_ns["course"] = str(ROOT)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"][1:]:
        assert shell.run_cell(cell.source).success, cell.source
    return capsys.readouterr().out


@pytest.mark.parametrize("solved", [False, True], ids=["learner", "instructor"])
@pytest.mark.parametrize("number", SHEETS)
def test_run_all_goes_through(number, solved, shell, capsys, tmp_path):
    text = next(text for path, text in writer.written(badges.REPOSITORY, solved=solved).items() if path.name.startswith(number))
    printed = run_all(shell, nbformat.reads(text, as_version=4), capsys)
    count = len(SHEETS[number].exercises)
    sign = "✓ Exercise" if solved else "○ Exercise"
    assert printed.count(sign) == count and f"{count if solved else 0} of {count} are right." in printed
    kept = json.loads((tmp_path / "exercises.json").read_text(encoding="utf-8"))[number]
    assert set(kept.values()) <= ({"right", "open"} if solved else {"open"}) and len(kept) == count + 1


def test_notebooks_are_in_step_with_their_source():
    for path, text in writer.written(badges.REPOSITORY).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m tools.exercises writes it"
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        first, last = notebook.cells[0].source, notebook.cells[-1].source
        for service in ("colab.research.google.com/github", "kaggle.com/kernels/welcome?src=https://github.com"):
            assert f"{service}/{badges.REPOSITORY}/blob/main/notebooks/exercises/{path.name})" in first
        assert badges.START in last and not any(cell.get("outputs") for cell in notebook.cells)
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(path.name for path in writer.written(badges.REPOSITORY))


def test_notebooks_lead_to_their_exercises():
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert f"](exercises/{writer.name(path.name[:2])})" in nbformat.read(path, as_version=4).cells[-1].source


def test_the_set_up_cell_finds_the_course_from_there():
    source = next(cell.source for cell in nbformat.read(FOLDER / "00_exercises.ipynb", as_version=4).cells if cell.cell_type == "code")
    done = subprocess.run([sys.executable, "-c", f"{source}\nprint(course)"], cwd=FOLDER, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["Set-up: everything is here.", "../.."], done.stderr


def test_one_in_a_kernel_of_its_own():
    """nbmake runs the learner's notebook when it is named; the folder is left out otherwise."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "notebooks/exercises/00_exercises.ipynb"], cwd=ROOT, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout[-2000:]
    done = subprocess.run([*command, "--collect-only", "notebooks"], cwd=ROOT, capture_output=True, text=True)
    assert "14_more" in done.stdout and "_exercises" not in done.stdout


def test_an_unknown_exercise_is_named(capsys):
    exercises.begin("00")
    assert exercises.tell("rwo", "1", {}) == "There is no exercise 'rwo' here: the first line of the cell has to end in one of row, cost, card."


# Questions


@pytest.mark.parametrize("number", SHEETS)
def test_each_answer_is_explained_by_the_buttons(number):
    exercises.begin(number)
    choice, said = exercises.question().children
    assert choice.value is None and len(choice.options) == len(SHEETS[number].answers)
    for n, (_, right, why) in enumerate(SHEETS[number].answers, 1):
        choice.value = n
        assert ("Right: " if right else "No: ") in said.value and html.escape(exercises._plain(why)) in said.value


def test_without_widgets_a_question_is_text(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    exercises.begin("00")
    assert exercises.question() is None and "exercises.question(1)" in capsys.readouterr().out
    exercises.question(2)
    assert capsys.readouterr().out.startswith("2. On neither: both read the same bytes at the same speed. Right: ")
    with pytest.raises(exercises.ExerciseError, match="choose from 1 to 4"):
        exercises.question(5)


# Predictions


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The file of the predictions, in a folder of its own."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    return tmp_path / "predictions.jsonl"


def test_a_prediction_is_kept_and_the_first_one_counts(kept):
    assert predictions.guess(2, 1.0, "02: a token", "half the bytes") == "You said 2: 2.0 times too high."
    predictions.guess(1, 1.0, "02: a token", "now I know")
    with open(kept, "a", encoding="utf-8") as file:
        file.write('{"what": "torn\n[]\n{"what": "x", "prediction": "a lot", "measured": 1}\n')
    [row] = predictions.read()
    assert (row["prediction"], row["measured"], row["reason"]) == (2, 1.0, "half the bytes")


@pytest.mark.parametrize("prediction", [None, 0, -1, [], "2 times", True, float("nan"), float("inf")])
def test_what_is_no_prediction_is_not_kept(kept, prediction):
    assert predictions.guess(prediction, 1.0, "02: a token").startswith("(You ")
    assert not kept.exists()


@pytest.mark.parametrize("prediction", [None, 0, -1, [], ["8-bit"], "1.5", "2 times", True, float("nan"), float("inf"), 10**30])
def test_what_is_no_number_says_no_time(prediction):
    """The notebooks have measured by then: nothing may stop them before the row is in the ledger."""
    assert predictions.in_seconds(prediction, 4.0) is None


def test_a_ratio_says_a_time():
    assert predictions.in_seconds(1.5, 4.0) == 6.0 and predictions.in_seconds(2, 0.5) == 1.0 and predictions.in_seconds(1.5, None) is None


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_no_notebook_computes_with_what_the_reader_wrote(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not re.search(
                r"\bmy_(prediction|order|share)\b(?! = )\s*[^,)\s]|[-+*/<>] *my_(prediction|order|share)\b|if my_(prediction|order|share)\b", cell.source
            )


def test_noise_is_not_scored(kept):
    assert "too noisy to tell, the repeats differ by 30 %" in predictions.guess(2, 1.0, "02", noisy="the repeats differ by 30 %")
    assert "no figure here" in predictions.guess(2, None, "02") and not kept.exists()


def test_an_order_is_scored_by_its_pairs(kept):
    measured = ["8-bit", "NF4", "GPTQ", "rounded"]
    assert (
        predictions.guess(["NF4", "8-bit", "GPTQ", "rounded"], measured, "08: damage")
        == "You said NF4, 8-bit, GPTQ, rounded: 5 of 6 pairs stand in the right order."
    )
    assert predictions.pairs(["rounded", "GPTQ", "NF4", "8-bit"], measured) == (0, 6) and predictions.pairs(["GPTQ", "int3"], measured) == (0, 0)
    assert "the names are 8-bit" in predictions.guess(["a", "b"], measured, "08")
    assert "a list of names in order, of 8-bit" in predictions.guess(2, measured, "08") and "asked for is a number" in predictions.guess(["NF4"], 2.0, "02")


def test_the_score_page(kept, capsys):
    for what, said, measured in (("02", 3, 1.0), ("03", 2.2, 1.0), ("04", 1.1, 1.0), ("07", 0.2, 0.5), ("10", 5, 2.5)):
        predictions.guess(said, measured, what, "a reason")
    predictions.guess(["a", "b", "c"], ["a", "c", "b"], "08")
    table = predictions.calibration()
    assert list(table.index) == ["02", "03", "04", "07", "08", "10"]
    assert list(table["how near"]) == ["3.0 times too high", "2.2 times too high", "well predicted", "2.5 times too low", "2 of 3 pairs", "2.0 times too high"]
    assert capsys.readouterr().out.strip() == (
        "Of 5 ratios you said 1 within 25 % and 2 within a factor of two; 3 were too high, 1 too low. The middle one is 2.0 times the measured value: the next"
        " time, correct for that. Of the pairs that you put in order, 2 of 3 are right; by chance it would be half."
    )


def test_an_empty_score_page(kept, capsys):
    assert predictions.calibration().empty and "could be scored yet" in capsys.readouterr().out


def test_a_change_is_a_prediction_of_a_ratio(kept):
    assert ledger.Difference(-50.0).guess(0.5, "02: a token") == "You said 0.5: well predicted."
    assert "too noisy to tell, repeats differ by 60 %" in ledger.Difference(-50.0, 60.0, "repeats differ by 60 %").guess(0.5, "03: a token")
    assert [row["what"] for row in predictions.read()] == ["02: a token"]


def test_every_notebook_with_a_prediction_asks_for_a_ratio_or_an_order_and_a_reason():
    """00 to 14, whose last part is the score page."""
    asked = 0
    for path in (path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")) if path.name < "15"):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        cells = [source for source in code if "my_prediction = None" in source]
        asked += len(cells)
        for source in cells:
            assert "my_reason = " in source and not re.search(r"\bseconds\b|per cent", source), path.name
            assert any(f'"{path.name[:2]}: ' in other and "my_prediction" in other and "my_reason" in other for other in code), f"{path.name} does not score it"
    assert asked >= 13
