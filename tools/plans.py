"""The minute plans of docs/teaching/plans.md as data, and how long the notebooks ran: ``python -m tools.plans [PLAN] [--start 9:00]``.

Prints the blocks of a plan with their time of day. ``python -m tools.plans --times RESULTS`` reads the executed notebooks of a results folder (what
``make run`` leaves) and writes the seconds of each section to docs/teaching/times.json, which the tests hold the plans against.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from helpers import machine
from helpers.models import files
from tools import ROOT

PAGE, TIMES = ROOT / "docs" / "teaching" / "plans.md", ROOT / "docs" / "teaching" / "times.json"
PARTS = ("Goal", "Say", "Run", "Waits", "Stuck")  # of a block, in this order
TOP = "top"  # what stands above the first heading of a notebook: its set-up


@dataclass
class Block:
    """One block of a plan. start, minutes: counted from the plan's begin. parts: {one of PARTS: text}."""

    title: str
    start: int
    minutes: int
    parts: dict

    @property
    def runs(self):
        """[(path of a notebook, [its sections that are run])]."""
        found = []
        for target, rest in re.findall(r"\]\(([^)]+\.ipynb)\)(.*?)(?=\[|$)", self.parts["Run"]):
            found.append(((PAGE.parent / target).resolve(), re.findall(r'"([^"]+)"', rest)))
        return found


def plans(text=None):
    """{name of a plan: [its Blocks]} of the page. Raises ValueError, a sentence, where a block is not written as the others."""
    found = {}
    for name, body in re.findall(r"^## ([^\n]*\d+ minutes)\n(.*?)(?=^## |\Z)", text or PAGE.read_text(encoding="utf-8"), flags=re.M | re.S):
        found[name] = []
        for heading, block in re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", body, flags=re.M | re.S):
            head = re.fullmatch(r"(\d+):(\d\d) · (\d+) min · (.+)", heading)
            parts = dict(re.findall(r"^- \*\*(\w+):\*\* (.+)$", block, flags=re.M))
            if not head or tuple(parts) != PARTS:
                raise ValueError(f"{heading!r} of {name!r}: a block is '### hours:minutes · minutes min · title' and has {', '.join(PARTS)}, in this order.")
            found[name].append(Block(head[4], 60 * int(head[1]) + int(head[2]), int(head[3]), parts))
    return found


def cells(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def sections(path):
    """{heading: its code cells} of the notebook ``path``, in order; the first one is TOP. A heading that was there before gets a number: "By hand (2)"."""
    found, count = {TOP: []}, Counter()
    for cell in cells(path):
        if cell["cell_type"] == "code":
            found[next(reversed(found))].append(cell)
            continue
        for heading in re.findall(r"^##+ (.+)$", "".join(cell["source"]), flags=re.M):
            count[heading] += 1
            found[heading if count[heading] == 1 else f"{heading} ({count[heading]})"] = []
    return found


def said(path):
    """{section of the notebook ``path``: what the minute plans say of the block that begins with it}."""
    found = {}
    for name, blocks in plans().items():
        for block in blocks:
            for notebook, wanted in block.runs:
                if notebook.name == path.name and wanted:
                    text = f"**{name.split(':')[0]}, {block.start // 60}:{block.start % 60:02d}, {block.minutes} min.** {block.parts['Say']} *Stuck:* {block.parts['Stuck']}"
                    found.setdefault(wanted[0], []).append(text)
    return found


def lasted(cell):
    """Seconds that an executed code cell took; 0 if it was not executed."""
    at = cell["metadata"].get("execution", {})
    ends = [at.get(key) for key in ("iopub.status.busy", "iopub.status.idle")]
    return (datetime.fromisoformat(ends[1]) - datetime.fromisoformat(ends[0])).total_seconds() if all(ends) else 0.0


def needed(path, wanted, times):
    """Measured seconds from the top of the notebook ``path`` to the end of the last section of ``wanted`` (all of it without any)."""
    measured = times.get(Path(path).stem, {}).get("sections", {})
    names = list(measured)
    last = max((names.index(name) for name in wanted if name in names), default=len(names) - 1)
    return sum(measured[name] for name in names[: last + 1])


def record(results, said=""):
    """Write to TIMES how long the executed notebooks in the folder ``results`` took; others, also what stopped midway, stay. Return how many there were."""
    found = {}
    for path in sorted(Path(results).glob("[0-9][0-9]_*.ipynb")):
        inside = sections(path)
        parts = {heading: round(sum(map(lasted, some)), 1) for heading, some in inside.items()}
        if all("iopub.status.idle" in cell["metadata"].get("execution", {}) for some in inside.values() for cell in some if cell["source"]):
            about = {"machine": machine.device_name("cpu"), "date": date.today().isoformat(), "models": "embedded", "beside": said}
            found[path.stem] = about | {"sections": parts}
    before = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.is_file() else {}
    files.write(TIMES, json.dumps(dict(sorted((before | found).items())), indent=1, ensure_ascii=False) + "\n")
    return len(found)


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.plans", description=__doc__.split("\n", 1)[0])
    parser.add_argument("plan", nargs="?", default="", help="the beginning of a plan's name; all without it")
    parser.add_argument("--start", default="0:00", help="the time of day at which it begins")
    parser.add_argument("--times", metavar="RESULTS", help="write how long the notebooks of that folder took")
    parser.add_argument("--beside", default="", help="with --times: what else the machine did meanwhile")
    given = parser.parse_args(arguments)
    if given.times:
        if not (count := record(given.times, given.beside)):
            print(f"{given.times} holds no executed notebook: make run leaves them in results.", file=sys.stderr)
        return 0 if count else 1
    if not re.fullmatch(r"\d{1,2}:\d\d", given.start):
        print(f"{given.start!r} is no time of day: write --start 9:00.", file=sys.stderr)
        return 2
    hour, minute = map(int, given.start.split(":"))
    times, chosen = json.loads(TIMES.read_text(encoding="utf-8")), {name: blocks for name, blocks in plans().items() if name.startswith(given.plan)}
    for name, blocks in chosen.items():
        print(name)
        for block in blocks:
            at, seconds = 60 * hour + minute + block.start, sum(needed(path, wanted, times) for path, wanted in block.runs)
            print(f"  {at // 60:2d}:{at % 60:02d}  {block.minutes:3d} min  {block.title}" + (f"  (cells: {seconds:.0f} s)" if seconds else ""))
    if not chosen:
        print(f"No plan begins with {given.plan!r}: choose from {', '.join(plans())}.", file=sys.stderr)
    return 0 if chosen else 2


if __name__ == "__main__":
    sys.exit(main())
