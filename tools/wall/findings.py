"""What a class's ledgers show: who is far from the rest and why, on how many machines the article's changes hold, how good predictions were."""

from collections import Counter
from dataclasses import dataclass
from math import comb, exp, inf, log
from statistics import median, quantiles

from helpers import ledger
from helpers.article import ARTICLE, article_rows, change
from helpers.article.compare import QUANTITIES
from helpers.exercises.predictions import order, ratio
from tools.wall.handed import CALLS

FALLS, NOT, UNKNOWN = "falls", "does not fall", "can't tell"
ENOUGH = 5  # machines: with fewer, nobody is said to be far from the rest
FAR, ROBUST = log(1.25), 3.5 / 0.6745  # median absolute deviations: Iglewicz and Hoaglin, How to detect and handle outliers, 1993
CHANCE = 0.05  # of the sign test


@dataclass
class Place:
    """A line of the wall: one ledger's steps ({number: rows}) with one tier's models on one device. kind: the GPU's name, or CPU."""

    who: str
    number: int
    tier: str
    device: str
    steps: dict

    @property
    def kind(self):
        return "CPU" if self.device.startswith("CPU") else self.device

    def figure(self, step, key):
        """(the median of the step's figure ``key``, the mark of its rows or ""), of undisturbed rows where there are any; (None, "") without one."""
        rows = [row for row in self.steps.get(step, ()) if row.get(key)]
        calm = any(not ledger.disturbed(row, key) for row in rows)
        return (ledger.middle(rows, key), "" if calm else ledger.mark(rows[-1], key)) if rows else (None, "")

    def verdict(self, before, after, quantity, stated):
        """(ratio of the figure ``quantity`` of step ``after`` to that of ``before``, FALLS, NOT or UNKNOWN, whether by as much as ``stated`` per cent).

        The last as ledger.Difference.below; None if a step is missing.
        """
        both = [[row for row in self.steps.get(step, ()) if row.get(quantity)] for step in (before, after)]
        if not all(both):
            return None
        found = ledger.difference(*both, quantity, many=True)
        return 1 + found.percent / 100, {-1: FALLS, None: UNKNOWN}.get(found.sign, NOT), found.below(stated + ledger.NOISE)


def places(ledgers):
    """Return the lines of the wall: a Place for each tier and device of each ledger."""
    found = []
    for each in ledgers:
        for tier, device in sorted({(row["tier"], row["device"]) for row in each.rows}):
            who = each.who + (" (simulated)" if any(row.get("simulated") for row in each.rows) else "")
            if steps := dict(sorted(ledger.history(each.rows, tier, device).items())):
                found.append(Place(who, each.number, tier, device, steps))
    return found


def features(row):
    """What may make ``row`` differ from others' rows of the same step."""
    versions = {name: (row.get("versions") or {}).get(name) for name in ("torch", "transformers")}
    return {"device": row["device"], "kernel": row.get("kernel") or row.get("layer_class"), "threads": row.get("threads")} | versions


def reasons(rows, key, rest):
    """What is different in ``rows`` (of one place and step) from ``rest`` (rows of those that are near each other), in words."""
    found = [why] if (why := ledger.disturbed(rows[-1], key)) else []
    for name, value in features(rows[-1]).items():
        usual, count = Counter(str(features(row)[name]) for row in rest).most_common(1)[0]
        if count > len(rest) / 2 and str(value) != usual:
            found.append(f"{name} {value} (most: {usual})")
    return found


def far(group, peers):
    """Return {place's index in ``group``: (what, why)} of the places whose calls are far from the median of ``peers``, by a robust rule in logarithms."""
    told = {}
    for step in sorted({step for place in peers for step in place.steps}):
        for key, call in CALLS.items():
            values = {id(place): log(value) for place in peers if (value := place.figure(step, key)[0])}
            if len(values) < ENOUGH:
                continue
            middle = median(values.values())
            limit = max(FAR, ROBUST * median(abs(value - middle) for value in values.values()))
            rest = [place.steps[step][-1] for place in peers if abs(values.get(id(place), inf) - middle) <= limit]
            for number, place in enumerate(group):
                if abs(values.get(id(place), middle) - middle) > limit:
                    what, why = told.setdefault(number, ({}, {}))
                    what.setdefault(call, {})[step] = exp(values[id(place)] - middle)
                    why |= dict.fromkeys(reasons(place.steps[step], key, rest))
    result = {}
    for number, (what, why) in told.items():
        parts = [f"{call} {median(ratios.values()):.2g} times the median (step {', '.join(map(str, ratios))})" for call, ratios in what.items()]
        if list(what) == ["first call"]:
            why["only the first call: a cold start"] = None
        result[number] = "; ".join(parts), "; ".join(why) or "nothing in its rows says why"
    return result


def middle_half(values):
    """(first quartile, median, third quartile) of ``values``, one or more."""
    return tuple(quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3


def decided(yes, no):
    """The verdict of a class in which ``yes`` machines say that a change holds and ``no`` that it does not: a two-sided sign test."""
    count = yes + no
    chance = min(1, 2 * sum(comb(count, k) for k in range(min(yes, no) + 1)) / 2**count)
    return UNKNOWN if chance >= CHANCE else "holds" if yes > no else "does not hold"


def percent(times):
    return f"{100 * (times - 1):+.0f} %"


def claims(group):
    """Return [(what, the article's words, its ratio, [Place.verdict of each place that has both steps])], the article's changes in order.

    Each change of wall time is followed by that of warm calls, which the article did not measure: its words are "" then.
    """
    found, theirs = [], article_rows()
    for claim in ARTICLE["claims"]:
        ends, key = (claim["from"], claim["to"]), claim["quantity"]
        own = 1 + change(*(theirs[step][key] for step in ends)) / 100
        said = f"{claim['stated']:+g} {claim['unit']}" + (f" ({percent(own)})" if claim["unit"] == "s" else "")
        name = f"{QUANTITIES[key]}, step {ends[0]} to {ends[1]}"
        for quantity in (key, "warm_wall_s")[: 1 + (key == "wall_s")]:
            verdicts = [verdict for place in group if (verdict := place.verdict(*ends, quantity, 100 * (own - 1)))]
            found.append((name, said, own, verdicts) if quantity == key else (f"warm {name}", "", own, verdicts))
    return found


def predictions(place):
    """Yield (step, what was said, how long the first call then took) of the first prediction of each step."""
    for step, rows in place.steps.items():
        for row in rows:
            guess = row.get("prediction_wall_s")
            if isinstance(guess, (int, float)) and not isinstance(guess, bool) and 1e-6 < guess < 1e6:
                yield step, guess, row["wall_s"]
                break


def questions(guesses):
    """{question: ([said / measured of each person's number], [share of the pairs that stand in the right order, of each person's order])}.

    guesses: [one person's predictions], see helpers.exercises.predictions.read.
    """
    found = {}
    for row in (row for said in guesses for row in said):
        ratios, orders = found.setdefault(row["what"], ([], []))
        if number := ratio(row):
            ratios.append(number)
        elif pairs := order(row):
            orders.append(pairs[0] / pairs[1])
    return {what: both for what, both in sorted(found.items()) if any(both)}
