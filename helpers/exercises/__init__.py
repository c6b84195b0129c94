"""What is asked of the reader, and how good was the answer? Exercises whose checks name the mistake, and questions.

An exercise is written once, in ``notebooks/exercises/source/NN.md``: task, hint, stub, solution, check and typical wrong answers. From it come the
learner's and the instructor's notebook (``python -m tools.exercises``), what ``%%exercise`` says of an answer, and the tests. First used in
notebook 00.
"""

import ast
import html
import json
import linecache
import re
import traceback
from dataclasses import dataclass

from helpers import ROOT
from helpers.errors import CourseError
from helpers.models import files
from helpers.setup import results_dir

SOURCE = ROOT / "notebooks" / "exercises" / "source"
PART = re.compile(r"^```python (given|stub|solution|check|wrong: .+?)\n(.*?)^```\n", re.M | re.S)
ANSWER = "<your answer>"  # the file name that tracebacks have for it
SAID = {"open": "○ Exercise {}: not done yet. {}", "wrong": "✗ Exercise {}: not yet. {}", "right": "✓ Exercise {}: right. {}"}


class ExerciseError(CourseError, ValueError):
    """An exercise or an answer that does not exist."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. wrong: [(name of the mistake, part of what the check says to it, code)]. right: what is said to a right answer."""

    number: int
    name: str
    level: str
    title: str
    task: str
    hint: str
    right: str
    given: list
    stub: str
    solution: str
    check: str
    wrong: list

    @property
    def asked(self):
        """The names (list) that the stub defines: what the check looks at."""
        tree = ast.parse(self.stub).body
        targets = [target for node in tree if isinstance(node, ast.Assign) for target in node.targets]
        names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        return names + [node.name for node in tree if isinstance(node, ast.FunctionDef)]


@dataclass(frozen=True)
class Sheet:
    """The exercises ({name: Exercise}) of one notebook, and its question. answers: [(text, whether it is right, what it means)]."""

    number: str
    title: str
    intro: str
    given: list
    exercises: dict
    question: str
    answers: list


def _split(text):
    """(prose, [(kind, code)], {"Hint": …, "Right": …}) of a part of a source."""
    pieces = PART.split(text)
    prose, said = "".join(pieces[::3]), {}
    for word in ("Hint", "Right"):
        if found := re.search(rf"^\*\*{word}\.\*\* (.*?)(?=\n\n|\Z)", prose, flags=re.M | re.S):
            prose, said[word] = prose.replace(found[0], ""), " ".join(found[1].split())
    return re.sub(r"\n{3,}", "\n\n", prose).strip(), list(zip(pieces[1::3], (code.rstrip("\n") for code in pieces[2::3]))), said


def read(number, folder=SOURCE):
    """Return the Sheet of notebook ``number`` ("00")."""
    try:
        text = (folder / f"{number}.md").read_text(encoding="utf-8")
    except OSError:
        raise ExerciseError(f"Notebook {number} has no exercises here: take one of {', '.join(sorted(path.stem for path in folder.glob('*.md')))}.") from None
    head, *sections = re.split(r"^## ", text, flags=re.M)
    title, _, head = head.partition("\n")
    intro, given, _ = _split(head)
    found, question, answers = {}, "", []
    for heading, _, body in (section.partition("\n") for section in sections):
        prose, codes, said = _split(body)
        if heading == "Question":
            question, *lines = re.split(r"^- (right|wrong): ", prose, flags=re.M)
            answers = [
                (text, kind == "right", " ".join(why.split())) for kind, (text, _, why) in zip(lines[::2], (line.partition(" | ") for line in lines[1::2]))
            ]
            continue
        name, level, title_ = heading.split(" · ")
        wrong = [(*kind.removeprefix("wrong: ").split(" -> "), code) for kind, code in codes if kind.startswith("wrong")]
        one = {kind: code for kind, code in codes}
        before = [code for kind, code in codes if kind == "given"]
        parts = (one["stub"], one["solution"], one["check"])
        found[name] = Exercise(len(found) + 1, name, level, title_, prose, said["Hint"], said["Right"], before, *parts, wrong)
    return Sheet(number, title.removeprefix("# "), intro, [code for _, code in given], found, question.strip(), answers)


def near(ours, theirs, share=1e-3):
    """Whether ``ours``, a number or an array of whatever kind, is ``theirs`` within ``share``; another shape is not."""
    import numpy as np

    try:
        ours, theirs = (np.asarray(each, dtype=float) for each in (ours, theirs))
    except (TypeError, ValueError):
        return False
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=share, atol=1e-9))


class _Wrong(Exception):
    """What a check says to a wrong answer."""


def _wrong(said):
    raise _Wrong(said)


def _stopped(error):
    """What stopped an answer, in a sentence in place of a traceback."""
    said = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0].rstrip('.')}"
    if isinstance(error, SyntaxError) and error.filename == ANSWER:
        return f"Python cannot read line {error.lineno} ({(error.text or '').strip()}): {error.msg}."
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == ANSWER]
    if lines:
        return f"Your code stopped in line {lines[-1].lineno} ({lines[-1].line}) with {said}."
    return f"The check cannot use your answer ({said}): look at what kind of value it is, print it and its type."


def attempt(exercise, code, namespace):
    """Run ``code``, an answer to ``exercise``, in ``namespace`` (dict) and return ("open", "wrong" or "right", what is said to it). It never raises an Exception."""
    try:
        tree = ast.parse(code, ANSWER)
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for part in ast.walk(node.slice)}  # x[..., None] is code
        if any(isinstance(node, ast.Constant) and node.value is ... and id(node) not in inside for node in ast.walk(tree)):
            return "open", "Replace each ... by code of your own, then run the cell again."
        for name in exercise.asked:
            namespace.pop(name, None)  # an answer of before must not count
        linecache.cache[ANSWER] = len(code), None, code.splitlines(True), ANSWER  # so that a traceback knows its lines
        exec(compile(tree, ANSWER, "exec"), namespace)
        if missing := [name for name in exercise.asked if name not in namespace]:
            return "wrong", f"There is no {' and no '.join(missing)}: the check looks for what the cell defined at first."
        exec(compile(exercise.check, "<check>", "exec"), {**namespace, "wrong": _wrong, "near": near})
    except _Wrong as found:
        return "wrong", str(found)
    except (Exception, SystemExit) as error:
        return "wrong", _stopped(error)
    return "right", exercise.right


_now = {"sheet": None, "states": {}}


def begin(number):
    """Open the exercises of notebook ``number``: from here on a cell that begins with ``%%exercise NAME`` is an answer, and is checked."""
    from IPython import get_ipython

    _now.update(sheet=read(number), states={})
    if shell := get_ipython():
        shell.register_magic_function(lambda line, cell: print(tell(line, cell, shell.user_ns)), "cell", "exercise")


def tell(name, code, namespace):
    """Return what is said to ``code``, an answer to the exercise ``name`` of the notebook that is open, and keep how it stands."""
    exercises = _now["sheet"].exercises
    if not (exercise := exercises.get(name.strip())):
        return f"There is no exercise {name.strip()!r} here: the first line of the cell has to end in one of {', '.join(exercises)}."
    state, said = attempt(exercise, code, namespace)
    _now["states"][exercise.name] = state
    return SAID[state].format(exercise.number, _plain(said))


def _plain(text):
    """``text`` without Markdown's stars, for where it is printed."""
    return re.sub(r"\*{1,2}(\w[^*\n]*?\w)\*{1,2}", r"\1", text)


def question(answer=None):
    """Show the answers to the notebook's question as buttons, or say what the ``answer`` with that number means. Without widgets: as text."""
    answers = _now["sheet"].answers

    def meaning(number):
        text, right, why = answers[number - 1]
        _now["states"]["question"] = "right" if right else "wrong"
        return _plain(f"{number}. {text} {'Right' if right else 'No'}: {why}")

    if answer is not None:
        if answer not in range(1, len(answers) + 1):
            raise ExerciseError(f"There is no answer {answer!r}: choose from 1 to {len(answers)}.")
        return print(meaning(answer))
    try:
        import ipywidgets
    except ImportError:
        return print(f"Without buttons: write exercises.question(1) and run the cell to see what answer 1 means, up to {len(answers)}.")
    choice = ipywidgets.ToggleButtons(options=[(f"answer {n}", n) for n in range(1, len(answers) + 1)], value=None)
    said = ipywidgets.HTML()
    choice.observe(lambda change: setattr(said, "value", html.escape(meaning(change["new"]))), names="value")
    return ipywidgets.VBox([choice, said])


def summary():
    """Print how each exercise stands, and keep it in ``results/exercises.json``: {notebook: {exercise: "right", "wrong" or "open"}}."""
    sheet, states = _now["sheet"], _now["states"]
    found = {name: states.get(name, "open") for name in [*sheet.exercises, "question"]}
    for name, exercise in sheet.exercises.items():
        print(f"{exercise.number}. {exercise.title} ({exercise.level}): { {'open': 'not done yet', 'wrong': 'not right yet', 'right': 'right'}[found[name]] }")
    print(f"{sum(found[name] == 'right' for name in sheet.exercises)} of {len(sheet.exercises)} are right.")
    path, kept = results_dir() / "exercises.json", {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # the first, or a damaged one: the others' states are gone with it
    files.write_json(path, (kept if isinstance(kept, dict) else {}) | {sheet.number: found}, indent=1)
