"""What does one machine say about the article's claims? The reader's rows, or those of a recorded run, as evidence.

The claims stand in ``data/article.json``; notebook 09 has a rule for each. First used in notebook 09.
"""

from dataclasses import dataclass

from helpers import benchmark, ledger, plots
from helpers.article import breakdown
from helpers.timing import seconds

HOLDS, OTHERWISE, NOT, UNKNOWN = "holds", "holds for another reason", "does not hold", "can't be told on this hardware"
NOISE = ledger.NOISE


@dataclass(frozen=True)
class Evidence:
    """What one machine says. name: for the table. steps: {step's key as text: ledger row}, rounds pooled. quality: rows of notebook 08."""

    name: str
    steps: dict
    quality: dict

    def changes(self, before, after):
        """(change of the first call, change of the warm call, what counts as noise) from one step to another, in per cent; None if one is missing."""
        rows = [self.steps.get(key) for key in (before, after)]
        if None in rows or not all(row.get("warm_wall_s") for row in rows):
            return None
        found = [ledger.difference([rows[0]], [rows[1]], key) for key in ("wall_s", "warm_wall_s")]
        return *(percent for percent, _, _ in found), max(noise for _, noise, _ in found)


def own(rows, quality):
    """Return the reader's Evidence: the newest row's tier and device, and there the benchmark's newest run of all four steps, else notebooks 01 to 04."""
    if not rows:
        return Evidence("yours", {}, {})
    newest = next((row for row in reversed(rows) if row["step"]), rows[-1])  # one of the four, not another model of the reader's
    here = [row for row in rows if (row["tier"], row["device"]) == (newest["tier"], newest["device"])]
    steps = {str(number): row for number, row in ledger.latest(rows, newest["tier"], newest["device"]).items()}
    for run in dict.fromkeys(row["run"] for row in here if "run" in row):  # oldest first
        found = benchmark.by_step([row for row in here if row.get("run") == run])
        if all(found.get(str(number), {}).get("step") == number for number in (1, 2, 3, 4)):  # a size has taken no step's place
            steps = found
    return Evidence(f"yours: {plots.source(newest)}", steps, {str(key): row for key, row in quality.items() if row["tier"] == newest["tier"]})


def recorded(rows, quality):
    """Return the Evidence of one recorded run (rows of ledger.recorded_rows): its benchmark rows, or the rows of its notebooks."""
    runs = [row for row in rows if "run" in row]
    steps = benchmark.by_step(runs) if runs else {str(row["step"]): row for row in rows}
    return Evidence(plots.where(rows[-1]), steps, {str(key): row for key, row in quality.items()})


def savings(found):
    """Say which changes from step 1 to step 4 saved most of the time (two at most), from ``found.steps``; "" if none did."""
    parts = [(what, after - before) for what, before, after in breakdown.changes(found.steps) if after is not None]
    largest = sorted((part for part in parts if part[1] < 0), key=lambda part: part[1])[:2]
    return "; most of it: " + ", ".join(f"{what} ({seconds(-value)})" for what, value in largest) if largest else ""
