"""What was handed in: ledgers in files, folders and zip archives, each read once, with a name or a number. No file is changed."""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ledger
from helpers.exercises import predictions

WRITTEN = ("wall.html", "wall.md")
CALLS = {"wall_s": "first call", "warm_wall_s": "warm call"}


@dataclass
class Ledger:
    """What one participant handed in. file: where it was found. name: "" if nobody chose one. rows: oldest first. number: see ``read_class``."""

    file: str
    name: str
    rows: list
    lines: frozenset = frozenset()
    number: int = 0
    who: str = ""


def named(text, otherwise=""):
    """The name that a file or a folder called ``text`` gives: without "ledger", "copy of" and a browser's (1); ``otherwise`` if nothing is left."""
    text = re.sub(r"(?i)\bcopy of\b|(?<![a-z])(?:ledger|exercises|predictions)(?![a-z])|\(\d+\)", " ", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split()).strip(" _-.,")[:40]
    return otherwise if text.lower() in ("", "results") else text


def unpack(path, into, kinds):
    """Take the files of ``kinds`` and the archives out of the zip file ``path``; none takes another's place, even if they have one name."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = Path(*(part for part in Path(info.filename).parts if part not in ("..", "/")))
            if name.suffix.lower() in (*kinds, ".zip") and not any(map(hidden, name.parts)):
                count, target = 1, name
                while (into / target).exists():
                    count += 1
                    target = name.with_name(f"{name.stem} ({count}){name.suffix}")
                info.filename = target.as_posix()
                archive.extract(info, into)


def hidden(name):
    """Whether a file or a folder is one that systems write by themselves."""
    return name.startswith((".", "__MACOSX"))


def entries(folder, scratch, name="", shown="", top=True, kinds=(".jsonl",), what="ledger"):
    """Yield (where it was found, the name that this gives, a path, why there is none or "") of everything in ``folder`` that may be a ``what``, by its suffix."""
    inside = sorted(path for path in folder.iterdir() if not hidden(path.name) and not (top and path.name in WRITTEN))
    for path in inside:
        where, own, archive = shown + path.name, named(path.stem if path.is_file() else path.name, name), path.suffix.lower() == ".zip" and path.is_file()
        if not archive and path.is_file():
            if top or path.suffix.lower() in kinds:
                yield where, own, path, ""
            continue
        target = path
        if archive:
            target = Path(scratch) / hashlib.sha256(str(path).encode()).hexdigest()[:16]
            target.mkdir()
            try:
                unpack(path, target, kinds)
            except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as error:
                yield where, own, None, f"is an archive that can't be opened ({error})"
                continue
        whole_class = top and len(inside) == 1  # the folder or archive in which a class's files came: it has nobody's name
        found = list(entries(target, scratch, "" if whole_class else own, where + "/", whole_class, kinds, what))
        yield from found or [(where, own, None, f"holds no {what}")]


def usable(row):
    """Whether the times of ``row`` can be those of a call: other hands write rows too."""
    return all(row.get(key) is None or 1e-6 < row[key] < 1e6 for key in CALLS) and row["cpu_total_s"] < 1e6


def read_rows(path):
    """(rows of notebooks 01 to 04, problems, sentences without a subject) of the file ``path``."""
    with redirect_stderr(io.StringIO()) as said:
        try:
            rows = ledger.read(path, engine=None)
        except OSError as error:
            return [], [f"can't be read ({error.strerror})"]
    problems = [line.removeprefix(f"{path.name}, ").removesuffix(": skipped.") for line in said.getvalue().splitlines()]
    if not rows:
        return [], ["is no ledger: " + (problems[0] if problems else "the file is empty")]
    if len(problems) > 2:
        problems = [f"{len(problems)} lines are no rows: {problems[0]}"]
    rows = list({json.dumps(row, sort_keys=True): row for row in rows}.values())  # a row that stands there twice is one
    sound = [row for row in rows if usable(row)]
    if len(sound) < len(rows):
        problems.append(f"{len(rows) - len(sound)} of its rows have figures of a kind that this course does not write: left out")
    wanted = [row for row in sound if row["step"] and "run" not in row and "engine" not in row]
    if not wanted and sound:
        problems.append(f"has no row of notebooks 01 to 04 ({len(sound)} of benchmarks or other engines), so it is not on the wall")
    return wanted, problems


def class_predictions(folder):
    """[the predictions of each file in ``folder`` that holds some], each content once."""
    with TemporaryDirectory() as scratch:
        found = [predictions.read(path) for _, _, path, problem in entries(Path(folder), scratch) if not problem]
    return [list(each) for each in {json.dumps(said, sort_keys=True): said for said in found if said}.values()]


def read_class(folder, hide=False):
    """Return (ledgers, notes): the ledgers of ``folder``, each once, in the order of their numbers, and sentences about what was found.

    Numbers follow from the rows, not from names or files: without names nobody can be counted off. With ``hide`` no name and no file is told.
    """
    ledgers, notes = [], []  # notes: (ledger, sentence about it, other ledgers that stand for {} there)
    with TemporaryDirectory() as scratch:
        for where, name, path, problem in entries(Path(folder), scratch):
            if not problem and predictions.read(path):  # see class_predictions
                continue
            rows, problems = ([], [problem]) if problem else read_rows(path)
            chosen = [own for row in rows if isinstance(row.get("participant"), str) and (own := named(row["participant"]))]
            if len(set(chosen)) > 1:
                problems.append(f"has rows of {len(set(chosen))} participants: the newest one's name counts")
            each = Ledger(where, chosen[-1] if chosen else name, rows, frozenset(json.dumps(row, sort_keys=True) for row in rows))
            notes += [(each, problem, ()) for problem in problems]
            ledgers += [each] if rows else []
    ledgers = joined(once(ledgers, notes), notes)
    ledgers.sort(key=lambda each: hashlib.sha256("".join(sorted(each.lines)).encode()).digest())
    counts = Counter(line for each in ledgers for line in each.lines)
    for each in ledgers:
        each.number = ledgers.index(each) + 1
        same = alike(ledgers, each)
        each.who = f"no. {each.number}" if hide or not each.name else each.name + (f" ({same.index(each) + 1})" if len(same) > 1 else "")
        if len(same) > 1 and each is same[0]:
            notes.append((each, f"{len(same)} ledgers have this name, {{}} too: each counts, with a number behind it", same[1:]))
        if shared := sum(counts[line] > 1 for line in each.lines):
            notes.append((each, f"{shared} of its rows stand in another ledger too, and others do not: both count", ()))

    def shown(each):
        return each.file if not hide else each.who or "a file"

    return ledgers, [f"{shown(each)}: " + (text.format(", ".join(map(shown, others))) if others else text) for each, text, others in notes]


def alike(ledgers, one):
    """Those of ``ledgers`` that have the name of ``one``, however it is written; only itself if it has none."""
    return [each for each in ledgers if each is one or one.name and each.name.casefold() == one.name.casefold()]


def once(ledgers, notes):
    """Leave out each of ``ledgers`` whose rows all stand in another one: it was handed in twice, or earlier."""
    kept = []
    for each in sorted(ledgers, key=lambda each: (-len(each.lines), sorted(each.lines), not each.name, each.file)):
        if other := next((other for other in kept if each.lines <= other.lines), None):
            other.name = other.name or each.name
            notes.append((each, "all of its rows stand in {} too: they count once", [other]))
        else:
            kept.append(each)
    return kept


def joined(ledgers, notes):
    """Put ledgers of one name together if no two of them have a step of one tier and device: Colab gives each notebook a machine of its own."""
    kept = []
    for each in ledgers:
        same = alike(ledgers, each)
        steps = [{(row["step"], row["tier"], row["device"]) for row in other.rows} for other in same]
        if len(same) == 1 or sum(map(len, steps)) > len(set().union(*steps)):
            kept.append(each)
        elif each is same[0]:
            rows = sorted((row for other in same for row in other.rows), key=lambda row: row["date"])
            kept.append(Ledger(each.file, each.name, rows, frozenset().union(*(other.lines for other in same))))
            notes.append((kept[-1], "taken together with {}: one name, and different steps", same[1:]))
    return kept
