"""The command of the class wall: reads, writes the page, says what was found."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pandas as pd

from helpers import ledger, plots, setup, timing
from helpers.errors import CourseError
from helpers.models import files
from helpers.timing import seconds
from tools.wall.findings import CHANCE, ENOUGH, FALLS, NOT, UNKNOWN, claims, decided, far, middle_half, percent, places, predictions, questions
from tools.wall.handed import CALLS, WRITTEN, class_predictions, read_class
from tools.wall.page import Page, many, strips


def show_group(page, group, peers):
    """Write what the places of ``group`` (one tier, one kind of device) say. peers: whom they are compared with."""
    tier, kind = group[0].tier, group[0].kind
    title = f"{plots.TIERS.get(tier, tier)}, {kind}"
    title = title[0].upper() + title[1:]
    page.heading(f"{title}: {many(len(group), 'machine')}")
    rows = {step: found[-1] for place in group for step, found in place.steps.items()}
    labels = {step: " ".join(plots.label(step, rows).split())[:40] for step in sorted(rows)}
    lines, table = {}, {}
    for step, label in labels.items():
        for key, call in CALLS.items():
            found = [place.figure(step, key) for place in group]
            if marks := [(value, "busy or noisy" if mark else "undisturbed") for value, mark in found if value]:
                low, middle, high = middle_half([value for value, _ in marks])
                lines[f"{label}\n{call}"] = marks
                busy = sum(sign != "undisturbed" for _, sign in marks)
                ends = [seconds(end) for end in (min(marks)[0], low, middle, high, max(marks)[0])]
                table[f"{label}, {call}"] = [len(marks), busy, *ends]
    names = ["machines", "busy or noisy", "shortest", "quarter", "median", "three quarters", "longest"]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=names).rename_axis("step")
    text = "; ".join(f"{what}: median {row[4]}, from {row[2]} to {row[6]}, {row[0]} machines" for what, row in table.items())
    page.picture(strips("Wall time of each step, one mark a machine", "", lines, seconds), f"Wall times. {text}.")
    page.table(f"Wall time of each step ({title})", frame)
    page.heading("Far from the rest", 3)
    outside = far(group, peers)
    if len(peers) < ENOUGH:
        page.say(f"With fewer than {ENOUGH} machines nobody is said to be far from the rest.")
    else:
        proof = " What is different there may be the reason; it is no proof." if outside else ""
        page.say(f"{len(outside)} of {len(group)} are far from the median of {len(peers)} machines.{proof}")
        page.points(f"{group[number].who}: {what}. Different there: {why}." for number, (what, why) in outside.items())
    page.heading("The article's changes", 3)
    show_claims(page, claims(group), title)


def show_claims(page, found, title):
    """Write how many machines each change of the article holds on."""
    table, lines, said = {}, {}, {}
    for name, words, own, verdicts in found:
        if verdicts:
            counts, much = (Counter(found[place] for found in verdicts) for place in (1, 2))
            low, middle, high = map(percent, middle_half([ratio for ratio, *_ in verdicts]))
            so = decided(counts[FALLS], counts[NOT]), decided(much[True], much[False])
            table[name] = [words or "not measured", middle, f"{low} to {high}", counts[FALLS], counts[NOT], counts[UNKNOWN], much[True], *so]
            label = name.replace(", ", "\n")
            lines[label], said[label] = [found[:2] for found in verdicts], words and own
    if not table:
        page.say("No machine has both steps of one of them.")
        return
    names = ["the article", "median here", "middle half", "falls", "does not fall", "can't tell", "falls by as much", "class: it falls", "class: by as much"]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=names).rename_axis("change")
    text = "; ".join(f"{name}: {row[3]} fall, {row[4]} do not, {row[5]} can't tell, median {row[1]}" for name, row in table.items())
    page.picture(
        strips("The article's changes, one mark a machine", "change of the time", lines, lambda ratio: percent(ratio) if ratio != 1 else "0 %", said),
        f"The article says that each falls. {text}.",
    )
    page.table(f"The article's changes ({title})", frame)
    page.say(
        f"A change counts where it is larger than {ledger.NOISE} % and than the machine's own noise; a machine whose rows are too noisy can't tell. By as much"
        f" means: no more than {ledger.NOISE} points short of the article's figure, for sure. The last two columns are the class's: a sign test of the machines that can tell, at"
        f" {100 * CHANCE:.0f} %. Warm calls are held against the article's first calls, for it measured no others; a fall in first calls only is start-up."
    )


def show_predictions(page, everyone, guesses=()):
    """Write how good the predictions were: those of the first call's time in ledgers, and ``guesses``, see ``questions``."""
    page.heading("Predictions against results")
    show_guesses(page, questions(guesses))
    found = {}
    for place in everyone:
        for step, guess, wall in predictions(place):
            word = timing.closeness(guess, wall, "long", "short")
            found.setdefault(f"step {step}", []).append((guess / wall, word))
    if not found:
        page.say("Nobody made a prediction." if not guesses else "No ledger holds a prediction of a time.")
        return
    table, lines = {}, {}
    for step, guesses in sorted(found.items()):
        words = Counter(word.split()[-1] for _, word in guesses)  # predicted, long, short
        table[step] = [len(guesses), words["predicted"], words["long"], words["short"], f"{median(ratio for ratio, _ in guesses):.2g}"]
        lines[step] = [(ratio, "well predicted" if word.endswith("predicted") else "far off") for ratio, word in guesses]
    names = ["predictions", "well predicted", "too long", "too short", "median of said / measured"]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=names).rename_axis("step")
    text = "; ".join(f"{step}: {row[1]} of {row[0]} well predicted, {row[2]} too long, {row[3]} too short" for step, row in table.items())
    page.picture(strips("Predicted / measured time of the first call", "", lines, lambda ratio: f"{ratio:g}"), f"Predictions. {text}.")
    page.table("Predictions of the first call's wall time; the first one of each step counts", frame)


def show_guesses(page, found):
    """Write how near predictions of ratios and orders were, a line a question."""
    table, lines = {}, {}
    for what, (ratios, orders) in found.items():
        words = [timing.closeness(ratio, 1).split()[-1] for ratio in ratios]  # predicted, high, low
        counts = [words.count(word) for word in ("predicted", "high", "low")] if ratios else ["-"] * 3
        table[what] = [len(ratios) + len(orders), *counts, f"{median(ratios):.2g}" if ratios else "-", f"{100 * median(orders):.0f} %" if orders else "-"]
        if ratios:
            lines[what[:40]] = [(ratio, "well predicted" if word == "predicted" else "far off") for ratio, word in zip(ratios, words)]
    if not table:
        return
    names = ["predictions", "well predicted", "too high", "too low", "median of said / measured", "median of pairs in the right order"]
    text = "; ".join(f"{what}: {row[1]} of {row[0]} well predicted, {row[2]} too high, {row[3]} too low" for what, row in table.items() if row[1] != "-")
    if lines:
        page.picture(strips("Said / measured", "", lines, lambda ratio: f"{ratio:g}"), f"Predictions of ratios. {text}.")
    page.table(
        "Predictions of ratios and orders; the first one of each question counts",
        pd.DataFrame.from_dict(table, orient="index", columns=names).rename_axis("question"),
    )


def show_everyone(page, everyone):
    """Write one line a machine: thirty T4s are thirty lines."""
    page.heading("Every machine")
    lines = []
    for place in everyone:
        line = {"who": place.who, "no.": place.number, "device": place.device, "models": place.tier}
        for step in (1, 2, 3, 4):
            (warm, mark), (first, _) = place.figure(step, "warm_wall_s"), place.figure(step, "wall_s")
            line[f"step {step}: warm (first)"] = f"{seconds(warm)} ({seconds(first)}) {mark}".strip() if first else "-"
        rows = [rows[-1] for rows in place.steps.values()]
        line["threads"] = ", ".join(sorted({str(row.get("threads") or "-") for row in rows}))
        line["kernel of GPTQ"] = ", ".join(sorted({str(row["kernel"]).split(":")[0] for row in rows if row.get("kernel")})) or "-"
        guesses = [timing.closeness(guess, wall) for _, guess, wall in predictions(place)]
        lines.append(line | {"well predicted": f"{guesses.count('well predicted')} of {len(guesses)}" if guesses else "-"})
    if lines:
        page.table("One line a machine", pd.DataFrame(lines).set_index("who"))


def wall(ledgers, notes, guesses=()):
    """Return the Page of ``ledgers`` (see ``read_class``) and ``guesses`` (see ``class_predictions``)."""
    page, everyone = Page("The class wall"), places(ledgers)
    everyone.sort(key=lambda place: (place.tier, place.kind, place.number))
    groups = {}
    for place in everyone:
        groups.setdefault((place.tier, place.kind), []).append(place)
    dates = sorted(row["date"][:10] for each in ledgers for row in each.rows)
    page.say(f"{many(len(ledgers), 'ledger')}, {many(len(everyone), 'machine')}, measured from {dates[0]} to {dates[-1]}.")
    if count := sum(any(row.get("simulated") for row in each.rows) for each in ledgers):
        page.say(f"{count} of the ledgers are simulated: their figures were made up to try this page, and nobody measured them.")
    page.heading("What was handed in")
    page.points(notes) if notes else page.say("Every file is a ledger, no two have one name, and none came twice.")
    for (tier, _), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        show_group(page, group, group if len(group) >= ENOUGH else [place for place in everyone if place.tier == tier])
    show_predictions(page, everyone, guesses)
    show_everyone(page, everyone)
    return page


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.wall", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", help="what was handed in: files, folders and zip archives with a ledger.jsonl")
    parser.add_argument("--hide-names", action="store_true", default=os.environ.get("HIDE_NAMES", "") not in ("", "0"), help="numbers only (or HIDE_NAMES=1)")
    given = parser.parse_args(arguments)
    if not given.folder or not Path(given.folder).is_dir():
        problem = f"There is no folder {given.folder!r}" if given.folder else "No folder is named"
        print(f"{problem}: name the one with the ledgers, make wall CLASS=folder.", file=sys.stderr)
        return 2
    ledgers, notes = read_class(given.folder, given.hide_names)
    print("\n".join(notes))
    if not ledgers:
        print(f"{given.folder} holds no ledger with rows of notebooks 01 to 04: put the participants' ledger.jsonl there.", file=sys.stderr)
        return 1
    page = wall(ledgers, notes, class_predictions(given.folder))
    try:
        folder = setup.results_dir()
        for name, text in zip(WRITTEN, (page.html(), page.markdown())):
            files.write(folder / name, text)
    except (CourseError, OSError) as error:
        print(f"The page could not be written ({error}): set RESULTS_DIR to another folder.", file=sys.stderr)
        return 2
    print(f"{many(len(ledgers), 'ledger')}: {folder / WRITTEN[0]} and {WRITTEN[1]}.")
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows console that lacks a character shows a question mark
    sys.exit(main())
