"""Homework: fill the rubric from what was handed in. ``python -m tools.grade FOLDER [--hide-names]``.

FOLDER holds folders and zip archives, one for each person, with exercises.json (what the checks of the exercises say), ledger.jsonl and
predictions.jsonl. What the rubric asks and for how many points stands in docs/teaching/homework.md. grades.md and grades.csv are written to the results folder.
"""

import argparse
import csv
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ledger, setup
from helpers.article import markdown
from helpers.exercises import SOURCE, predictions
from helpers.models import files
from tools import ROOT
from tools.wall import handed

PAGE = ROOT / "docs" / "teaching" / "homework.md"
STATES = {"right": "✓", "wrong": "✗", "open": "–"}
WRITTEN = ("grades.md", "grades.csv")


def rubric(text=None):
    """{key: (points each, points at most)} of the rubric's lines that a program fills in; the key stands in backquotes."""
    rows = re.findall(r"^\|[^|]*`(\w+)`[^|]*\| (\d+) each(?:, (\d+) at most)? \|", text or PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {key: (int(each), int(most or 10**6)) for key, each, most in rows}


def levels():
    """{exercise, as "00.row": "easy", "medium" or "hard"} of the course."""
    found = {}
    for path in sorted(SOURCE.glob("[0-9][0-9].md")):
        for name, level in re.findall(r"^## (\S+) · (\w+) · ", path.read_text(encoding="utf-8"), flags=re.M):
            found[f"{path.stem}.{name}"] = level
    return found


def read(path):
    """{exercise, as "00.row": "right", "wrong" or "open"} of an exercises.json. Raises ValueError, words without a subject."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        flat = {f"{notebook}.{name}": state for notebook, states in found.items() for name, state in states.items()}
    except (OSError, ValueError, AttributeError):
        flat = {}
    if not flat or any(state not in STATES or not re.match(r"\d\d\.", key) for key, state in flat.items()):
        raise ValueError("is no exercises.json of this course")
    return flat


def hand_ins(folder):
    """([(name, {exercise: state}, rows of the ledger, predictions)], notes): one for each person, in the order of their names."""
    people, notes = {}, []
    with TemporaryDirectory() as scratch:
        for where, name, path, problem in handed.entries(Path(folder), scratch, kinds=(".json", ".jsonl"), what="exercises.json"):
            key = where.rsplit("/", 1)[0] if "/" in where else where
            one = people.setdefault(key, [name, {}, [], []])
            try:
                if problem:
                    raise ValueError(problem)
                if path.suffix.lower() != ".jsonl":
                    one[1].update(read(path))
                elif said := predictions.read(path):
                    one[3].extend(said)
                else:
                    rows, problems = handed.read_rows(path)
                    one[2].extend(rows)
                    notes += [f"{where}: {said}" for said in problems]
            except ValueError as error:
                notes.append(f"{where}: {error}")
    there = sorted((each for each in people.values() if any(each[1:])), key=lambda each: (each[0].casefold(), str(each)))
    names = Counter(name.casefold() for name, *_ in there)
    notes += [f"{count} people are called {name}: each counts, with a number behind it" for name, count in names.items() if name and count > 1]
    return [(f"{name} ({n})" if name and names[name.casefold()] > 1 else name or f"no. {n}", *rest) for n, (name, *rest) in enumerate(there, 1)], notes


def points(states, rows, guesses, worth, level):
    """{line of the rubric: points} of one person. worth: see ``rubric``; level: see ``levels``; an exercise that the course has not counts nothing."""
    right = [key for key, state in states.items() if state == "right"]
    counts = Counter("question" if key.endswith(".question") else level.get(key) for key in right)
    for step, own in ledger.by_step(rows).items():
        counts["measured"] += any(not ledger.disturbed(row) for row in own)
        counts["predicted"] += any(isinstance(row.get("prediction_wall_s"), (int, float)) for row in own)
    counts["predicted"] = max(counts["predicted"], len(guesses))  # of one prediction both may tell
    return {key: min(each * counts[key], most) for key, (each, most) in worth.items()}


def report(people, notes, worth, level):
    """(the page, the text of the CSV file)."""
    import pandas as pd

    wanted, lines = sorted({key for _, states, *_ in people for key in states}), {}
    for name, states, rows, guesses in people:
        got = points(states, rows, guesses, worth, level)
        lines[name] = {key: STATES[states.get(key, "open")] for key in wanted} | got | {"points": sum(got.values())}
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("who")
    wrong = Counter(key for _, states, *_ in people for key, state in states.items() if state == "wrong")
    parts = ["# Homework", f"{len(people)} handed in. ✓ right, ✗ wrong, – not done. What a program cannot see, the half page, is yours: the rubric names it."]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [markdown(table), "## What went wrong most often"]
    parts.append("\n".join(f"- {key} ({level.get(key, 'question')}): {count} of {len(people)}" for key, count in wrong.most_common(10)) or "Nothing.")
    text = io.StringIO()
    csv.writer(text).writerows([["who", *table.columns], *([name, *line] for name, line in zip(table.index, table.to_numpy().tolist()))])
    return "\n\n".join(parts).replace("<", "&lt;") + "\n", text.getvalue()


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.grade", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder")
    parser.add_argument("--hide-names", action="store_true", help="numbers in place of names")
    given = parser.parse_args(arguments)
    if not Path(given.folder).is_dir():
        print(f"There is no folder {given.folder!r}: name the one with what was handed in.", file=sys.stderr)
        return 2
    people, notes = hand_ins(given.folder)
    if given.hide_names:
        people, notes = [(f"no. {number}", *rest) for number, (_, *rest) in enumerate(people, 1)], []
    print("\n".join(notes))
    if not people:
        print(f"{given.folder} holds no exercises.json and no ledger.jsonl.", file=sys.stderr)
        return 1
    for name, text in zip(WRITTEN, report(people, notes, rubric(), levels())):
        files.write(setup.results_dir() / name, text)
    print(f"{len(people)} people: {setup.results_dir() / WRITTEN[0]} and {WRITTEN[1]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
