"""What does one machine say about the article's claims? The reader's rows, or those of a recorded run, as evidence.

The claims stand in ``data/article.json``; notebook 09 has a rule for each. First used in notebook 09.
"""

from dataclasses import dataclass
from math import inf, log

from helpers import ledger, limits, plots
from helpers.article import breakdown
from helpers.timing import seconds

HOLDS, OTHERWISE, NOT, UNKNOWN = "holds", "holds for another reason", "does not hold", "can't be told on this hardware"
LLAMA = "Llama-2 7B"


@dataclass(frozen=True)
class Evidence:
    """What one machine says. name: for the table. steps: {step's number or variant's name: all its rows}. quality: {the same: row of notebook 08}."""

    name: str
    steps: dict
    quality: dict

    def changes(self, before, after, key, after_key=None):
        """The ledger.Difference of ``key`` from one step to another; None if one is missing."""
        if not self.steps.get(before) or not self.steps.get(after):
            return None
        return ledger.difference(self.steps[before], self.steps[after], key, after_key)

    @property
    def parameters(self):
        """Of the smallest of the four steps' models; None without any."""
        return min((row["parameters"] for key, rows in self.steps.items() if key in (1, 2, 3, 4) for row in rows), default=None)

    @property
    def distance(self):
        """How far its models are from Llama-2's size: 0 if they have it, more the smaller they are."""
        ratio = self.parameters / limits.models()[LLAMA].parameters if self.parameters else 0
        return (0 if 0.8 < ratio < 1.25 else abs(log(ratio))) if ratio else inf

    @property
    def gpu(self):
        """Whether it was measured on a GPU, as the article's."""
        return any(row.get("peak_gpu_allocated_bytes") for rows in self.steps.values() for row in rows)


def size(rows):
    """The sizes of the models of ``rows``, in words, e.g. "6.7 and 13.0 billion parameters"."""
    sizes = sorted({row["parameters"] for row in rows})
    unit, name = (1e9, "billion") if sizes[-1] > 1e9 else (1e6, "million")
    return f"{' and '.join(f'{number / unit:.1f}' for number in sizes)} {name} parameters"


def own(rows, quality):
    """Return the reader's Evidence: all rows of the newest row's tier and device, of notebooks 01 to 04 and of the benchmark alike."""
    if not rows:
        return Evidence("yours", {}, {})
    newest = next((row for row in reversed(rows) if row["step"]), rows[-1])  # one of the four, not another model of the reader's
    steps = ledger.history(rows, newest["tier"], newest["device"])
    return Evidence(f"yours: {plots.source(newest)}", steps, {key: row for key, row in quality.items() if row["tier"] == newest["tier"]})


def recorded(rows, quality):
    """Return the Evidence of one recorded run (rows of ledger.recorded_rows). Its name has place, date, sizes and folder: no other has it too.

    Steps 1 to 3 are of one model: where one of them took a smaller one's place, it is left out.
    """
    steps = ledger.by_step(rows)
    most = max((row["parameters"] for step in (1, 2, 3) for row in steps.get(step, ())), default=0)
    rows = [row for row in rows if row["parameters"] >= most]
    return Evidence(f"{plots.where(rows[-1])}, {size(rows)} ({rows[-1]['recorded']})", ledger.by_step(rows), quality)


def nearest_first(yours, others):
    """Return [yours, *others] (each an Evidence), the nearest to Llama-2's size first; of equally near ones ``yours``, then those of a GPU. First used in notebook 09."""
    return sorted([yours, *others], key=lambda source: (source.distance, source is not yours, not source.gpu))


def save(report):
    """Write ``report`` (Markdown) as ``claims.md`` in the results folder and return its path. Raises DiskError. First used in notebook 09."""
    return plots.save("claims.md", f"# The article, claim by claim\n\n{report}\n")


def savings(found):
    """Say which changes from step 1 to step 4 saved most of the time (two at most), from ``found.steps``; "" if none did for sure."""
    parts = [(part.what, part.after - part.before) for part in breakdown.changes(found.steps) if part.sign == -1]
    largest = sorted(parts, key=lambda part: part[1])[:2]
    return "; most of it: " + ", ".join(f"{what} ({seconds(-value)})" for what, value in largest) if largest else ""


def disagreements(found):
    """Sentences on what notebooks 01 to 05 and the benchmark of notebook 06 say differently, from ``found.steps``: each for itself, beyond its noise."""
    said = []
    for before, after in ((1, 2), (2, 3), (3, 4), (1, 4)):
        for key, what in (("wall_s", "first call"), ("warm_wall_s", "warm call")):
            sides = [{n: [row for row in found.steps.get(n, ()) if ("run" in row) == run] for n in (before, after)} for run in (False, True)]
            if all(side[before] and side[after] for side in sides):
                theirs, ours = (ledger.difference(side[before], side[after], key) for side in sides)
                if None not in (theirs.sign, ours.sign) and theirs.sign != ours.sign:
                    words = [one.words("wall time") for one in (theirs, ours)]
                    said.append(f"Step {before} to step {after}, {what}: {words[0]} in notebook 05, {words[1]} in notebook 06.")
    return said
