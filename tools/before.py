"""What must be done before a workshop, with a date for each thing: ``make before DATE=2026-12-05``, or ``python -m tools.before 2026-12-05``.

Each line is looked at now: [x] was found done, [ ] was found missing, [?] could not be looked at (and says why). Nothing is ticked because a person
says so. The exit status is 0 when everything whose day has come is ticked, else 1.
"""

import argparse
import json
import sys
import time
from datetime import date, timedelta

from helpers import ROOT, ledger, machine, setup
from helpers.errors import CourseError
from helpers.models import catalogue, hub
from tools import badges, platforms
from tools.links import ask

DONE, MISSING, UNKNOWN = "[x]", "[ ]", "[?]"
OLD = 14  # days: a platform's list, and a run of the notebooks, say nothing about today when they are older
NO_ADDRESS = "the course has no address yet (make badges)"


def age(path):
    """Days since ``path`` was written."""
    return (time.time() - path.stat().st_mtime) / 86400


def address():
    if badges.REPOSITORY == badges.UNSET:
        return MISSING, "no address is set: push the course to GitHub, then make badges"
    stale = badges.stale()
    return (MISSING, f"{len(stale)} files name another one: make badges") if stale else (DONE, f"github.com/{badges.REPOSITORY}")


def colab():
    """Colab fetches a notebook from GitHub under this address; that it runs there, only a browser with a Google account can say."""
    if badges.REPOSITORY == badges.UNSET:
        return UNKNOWN, f"not checked: {NO_ADDRESS}"
    url = f"https://raw.githubusercontent.com/{badges.REPOSITORY}/{badges.BRANCH}/notebooks/00_start_here.ipynb"
    status, said = ask(url, patience=10)
    if status is None:
        return UNKNOWN, f"not checked: no answer ({said}); is there a network?"
    if status >= 400:
        return MISSING, f"{url} answers {status}: push the branch {badges.BRANCH}, and make the repository public"
    return DONE, "GitHub gives notebook 00 to everybody, so Colab can open it; run it there once by hand"


def lists():
    paths = [platforms.FOLDER / f"{name}.txt" for name in ("colab", "kaggle")]
    if missing := [path.name for path in paths if not path.is_file()]:
        return MISSING, f"no {' and no '.join(missing)}: make platforms, then make replica LIST=platforms/colab.txt"
    days = max(map(age, paths))
    return (
        (DONE, f"fetched {days:.0f} days ago") if days <= OLD else (MISSING, f"{days:.0f} days old: make platforms, then make replica LIST=platforms/colab.txt")
    )


def weekly():
    """The last weekly run of the course's workflow: every notebook on today's packages of Colab and Kaggle, and on Windows."""
    if badges.REPOSITORY == badges.UNSET:
        return UNKNOWN, f"not checked: {NO_ADDRESS}"
    url = f"https://api.github.com/repos/{badges.REPOSITORY}/actions/workflows/weekly.yml/runs?status=completed&per_page=1"
    found = json.loads(platforms.fetch(url))["workflow_runs"]
    if not found:
        return MISSING, "it has not run yet: turn on Actions, and start it there by hand (weekly, Run workflow)"
    last, days = found[0], (date.today() - date.fromisoformat(found[0]["created_at"][:10])).days
    good = last["conclusion"] == "success" and days <= OLD
    return (DONE if good else MISSING), f"{last['conclusion']}, {days} days ago: {last['html_url']}"


def licence():
    """Whether this machine's token may read Meta's repository is asked of the Hub; what a class may do with it: LICENSE-TEXT.md."""
    repository = catalogue.STEPS[1].hub
    if why := hub.silence(catalogue.STEPS[4].hub):
        return UNKNOWN, f"not checked: {why}"
    reason = hub.refusal(repository)[0]
    return (MISSING, f"{repository}: {reason}; or let the class use the open copy") if reason else (DONE, f"{repository} can be read with this machine's token")


def disk():
    free, need = machine.disk(ROOT), 8e9
    return (DONE if free > need else MISSING), f"{free / 1e9:.0f} GB free, a laptop needs 2 GB for .venv (6 GB with CUDA) and some for results"


def ran():
    path = setup.results_dir() / "ledger.jsonl"
    rows = [row for row in ledger.read(path) if row["step"]] if path.is_file() else []
    if lacking := sorted({1, 2, 3, 4} - {row["step"] for row in rows}):
        return MISSING, f"steps {', '.join(map(str, lacking))} were not measured on this machine: make run"
    return (DONE, f"all four steps, {age(path):.0f} days ago") if age(path) <= OLD else (MISSING, f"the last run is {age(path):.0f} days old: make run")


def stick():
    from tools.stick import CHECKED

    found = [path for path in (setup.results_dir(), *setup.results_dir().glob("*")) if (path / CHECKED).is_file()]
    return (
        (DONE, (found[0] / CHECKED).read_text(encoding="utf-8").strip())
        if found
        else (MISSING, "no stick in the results folder: make stick FOLDER=results/stick")
    )


def made(name, command):
    path = setup.results_dir() / name
    return (DONE, f"{name} in the results folder, {age(path):.0f} days old") if path.exists() else (MISSING, f"no {name} in the results folder: {command}")


THINGS = (  # (days before, what, a function that looks, returning a sign and words)
    (21, "the course has an address of its own", address),
    (21, "the badges lead to it in Colab", colab),
    (14, "Llama-2: this machine may read it", licence),
    (14, "the packages of Colab and Kaggle are today's", lists),
    (7, "the notebooks run on these packages", weekly),
    (7, "the course ran on this machine", ran),
    (7, "room on the disk", disk),
    (7, "a stick for a room without network, installed from once", stick),
    (3, "slides", lambda: made("slides/index.html", "make slides")),
    (3, "the wall was tried", lambda: made("wall.html", "python -m tests.support.classroom folder, then make wall CLASS=folder")),
)


def looked(what):
    """What the function ``what`` found; what stops it is no tick."""
    try:
        return what()
    except (CourseError, platforms.PlatformError, OSError, ImportError, ValueError, KeyError) as error:
        return UNKNOWN, f"not checked: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"


def main(arguments=None, today=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.before", description=__doc__.split("\n", 1)[0])
    parser.add_argument("date", nargs="?", default="", help="the day of the workshop, e.g. 2026-12-05")
    given, today = parser.parse_args(arguments), today or date.today()
    try:
        day = date.fromisoformat(given.date)
    except ValueError:
        print(f"{given.date!r} is no date: make before DATE=2026-12-05.", file=sys.stderr)
        return 2
    print(f"Before {day:%A, %d %B %Y} (in {(day - today).days} days). [x] found done, [ ] missing, [?] could not be looked at")
    open_ = 0
    for days, what, function in THINGS:
        due = day - timedelta(days)
        sign, words = looked(function)
        late = due <= today and sign != DONE
        open_ += late
        print(f"{sign} by {due:%a %d %b}{'  DUE' if late else ''}  {what}: {words}")
    print(f"{open_} of {len(THINGS)} are due and not ticked." if open_ else "Nothing is due.")
    return bool(open_)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
