"""How near are the reader's predictions, over the whole course?

Each is a ratio, or an order, said before the figure is shown, with a reason. Those that can be scored are kept beside the ledger, in
``results/predictions.jsonl``. First used in notebook 01.
"""

import json
import os
from datetime import UTC, datetime
from itertools import combinations
from statistics import median

from helpers.models import files
from helpers.setup import results_dir

NONE = "(You made no prediction.)"
NEAR = 25  # per cent: a prediction that is off by no more is near
ENOUGH = 3  # predictions, before anything is said about all of them


def closeness(prediction, actual, above="high", below="low"):
    """Say how near ``prediction`` is to ``actual``, e.g. "well predicted" or "2.0 times too high". above, below: the words for too much, too little."""
    ratio = prediction / actual
    if 1 / (1 + NEAR / 100) <= ratio <= 1 + NEAR / 100:
        return "well predicted"
    return f"{ratio:.1f} times too {above}" if ratio > 1 else f"{1 / ratio:.1f} times too {below}"


def pairs(said, measured):
    """(how many pairs of the order ``said`` stand as in ``measured``, how many there are); names that were not measured are left out."""
    places = {name: place for place, name in enumerate(measured)}
    both = list(combinations([places[name] for name in dict.fromkeys(said) if name in places], 2))
    return sum(first < second for first, second in both), len(both)


def number(prediction):
    """``prediction``, if it is a number above 0 that can be held against a figure, else None: text, for example, is none."""
    good = isinstance(prediction, (int, float)) and not isinstance(prediction, bool) and 0 < prediction < 1e9
    return prediction if good else None


def in_seconds(prediction, once):
    """Return the time that the reader's ratio ``prediction`` says, where ``once`` seconds are its 1; None without one of them. First used in notebook 01."""
    return None if number(prediction) is None or once is None else prediction * once


def guess(prediction, actual, what="", reason="", noisy=""):
    """Say in a sentence how near the reader's ``prediction`` is to ``actual``, and keep both as ``what`` ("02: …"), if that is given.

    prediction: a number above 0, or a list of names in order; None is none. actual: the same, None where it was not measured; a figure that is
    noisy (why, in words) is not counted either. reason: the reader's, in words.
    """
    if prediction is None or prediction in ([], 0):
        return NONE
    in_order = isinstance(prediction, (list, tuple))
    if not in_order and number(prediction) is None:
        return f"(You said {prediction!r}, and a prediction is a number above 0, for example 0.5 or 2.)"
    said = ", ".join(map(str, prediction)) if in_order else f"{prediction:g}"
    if noisy or not actual:
        why = f"too noisy to tell, {noisy}" if noisy else "there is no figure here to hold it against" if actual is None else "a ratio to 0 says nothing"
        return f"You said {said}. It is not counted: {why}."
    if in_order != isinstance(actual, (list, tuple)):
        wanted = "a number" if in_order else f"a list of names in order, of {', '.join(map(str, actual))}"
        return f"(You said {said}, and what is asked for is {wanted}.)"
    if in_order:
        right, count = pairs(prediction, actual)
        if not count:
            return f"(You said {said}, and the names are {', '.join(map(str, actual))}: put two or more of them in order.)"
        found = f"{right} of {count} pairs stand in the right order"
    else:
        actual = float(actual)
        found = closeness(prediction, actual)
    if what:
        row = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, "prediction": prediction, "measured": actual, "reason": str(reason)}
        row |= {"participant": name} if (name := os.environ.get("PARTICIPANT")) else {}
        files.append(results_dir() / "predictions.jsonl", json.dumps(row, ensure_ascii=False))
    return f"You said {said}: {found}."


def read(path=None):
    """Return the predictions (list of dicts, oldest first) in ``path``, by default this machine's; of each question only the first, and no damaged line."""
    try:
        lines = (path or results_dir() / "predictions.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            if isinstance(row["what"], str) and (row["what"] not in found) and (ratio(row) or order(row)):
                found[row["what"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def ratio(row):
    """Said / measured of a row that holds numbers, else None."""
    values = row["prediction"], row["measured"]
    good = all(isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-9 < value < 1e9 for value in values)
    return values[0] / values[1] if good else None


def order(row):
    """``pairs`` of a row that holds an order, else None."""
    values = row["prediction"], row["measured"]
    return pairs(*values) if all(isinstance(value, list) for value in values) and pairs(*values)[1] else None


def calibration():
    """Print how well calibrated the reader's predictions are, and return them as a table (pandas.DataFrame), one line a question."""
    import pandas as pd

    rows, lines = read(), {}
    for row in sorted(rows, key=lambda row: row["what"]):
        in_order = order(row)
        shown = [f"{value:.3g}" if not in_order else ", ".join(map(str, value)) for value in (row["prediction"], row["measured"])]
        near = f"{in_order[0]} of {in_order[1]} pairs" if in_order else closeness(row["prediction"], row["measured"])
        lines[row["what"]] = [*shown, near, str(row.get("reason") or "-")]
    print(summary(rows))
    return pd.DataFrame.from_dict(lines, orient="index", columns=["you said", "measured", "how near", "your reason"]).rename_axis("prediction")


def summary(rows):
    """Say of all predictions ``rows`` (see ``read``) how near they came and whether they lean to one side."""
    ratios, orders = list(filter(None, map(ratio, rows))), list(filter(None, map(order, rows)))
    said = []
    if len(ratios) >= ENOUGH:
        near, twice = (sum(1 / limit <= each <= limit for each in ratios) for limit in (1 + NEAR / 100, 2))
        above, middle = sum(each > 1 + NEAR / 100 for each in ratios), median(ratios)
        said.append(
            f"Of {len(ratios)} ratios you said {near} within {NEAR} % and {twice} within a factor of two; {above} were too high, {len(ratios) - near - above} too low."
        )
        lean = f"{middle:.1f} times the measured value" if middle > 1 else f"{1 / middle:.1f} times less than was measured"
        said.append(
            "In the middle they lie where they should."
            if closeness(middle, 1) == "well predicted"
            else f"The middle one is {lean}: the next time, correct for that."
        )
    elif ratios:
        said.append(f"{len(ratios)} of your ratios could be scored: too few to say whether you lean to one side.")
    if orders:
        right, count = (sum(part) for part in zip(*orders))
        said.append(f"Of the pairs that you put in order, {right} of {count} are right; by chance it would be half.")
    return " ".join(said) or "No prediction of yours could be scored yet: write them into the cells my_prediction of the notebooks."
