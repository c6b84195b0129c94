"""What is measured or made is not lost: each write of the project is cut, at its begin, in its middle and before its end, by the system itself.

A limit for the size of files (RLIMIT_FSIZE) makes write(2) take a part and then fail, as a full disk does; a small disk of its own is really full.
"""

import ast
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from test_hub import mounted

from helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs limits for the size of files")

CUT = """
import contextlib, io, json, os, resource, shutil, signal, sys, time
from pathlib import Path
from helpers import ledger, plots, quality
from helpers.errors import CourseError, DiskError
from helpers.models import catalogue, choose, files, synthetic

results, SMALL = Path(os.environ["RESULTS_DIR"]), catalogue.CHECKPOINTS / "small"
recorded = (catalogue.ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl").read_text().splitlines()

def source():
    "A checkpoint that is newer than what was made of it."
    folder = results / "source" / "small"
    if not folder.exists():
        shutil.copytree(SMALL, folder)
    later = time.time() + next(clock)
    os.utime(folder / "config.json", (later, later))
    return folder

def gguf():
    from helpers.engines import llamacpp
    return llamacpp.write(source(), "Q4_0", results / "small.gguf")

def onnx():
    from helpers.engines import onnx_models
    return onnx_models.export(choose.get_step(2, checkpoint=str(source())), "int4")

def random_weights():
    path = results / "random"
    with files.whole(path, setting="SYNTHETIC_DIR") as partial:  # synthetic.write leaves a finished one alone
        synthetic.write(catalogue.Shape(256, 640, 2), "gptq", partial)
    return path

def saved():
    from helpers import loading, quantise
    if not models:
        models.extend(loading.load(choose.get_step(3)))
    quantise.save(*models, results / "mine")
    return results / "mine"

def chart():
    figure, axes = plots.figure(f"drawn {next(clock)}", "x", "y")
    plots.show(figure, "a chart", "chart.png")
    return results / "chart.png"

def unfinished():
    from helpers import benchmark
    return benchmark._begin([benchmark.Job(1, "embedded")], None)[2]

def card():
    from data.build import card
    card.write_quality({"figures": list(range(2000 + next(clock)))}, results / "built.json")
    return results / "built.json"

def built():
    "A folder as the build of the embedded models writes it."
    import torch
    from data.build import train
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM
    shape = {"hidden": 64, "inner": 64, "layers": 1, "heads": 2, "positions": 128}
    train.save_model(LlamaForCausalLM(train.llama_config(shape, 1536)), Tokenizer.from_file(str(SMALL / "tokenizer.json")), results / "built")
    return results / "built"

clock, models = iter(range(10, 10000, 10)), []
WRITERS = {
    "row": lambda: (ledger.append(json.loads(recorded[next(clock) // 10 % 4])), results / "ledger.jsonl")[1],
    "chart": chart,
    "text": lambda: plots.save("comparison.md", f"report {next(clock)} " * 99),
    "figures": lambda: plots.save("serving.json", {"servers": list(range(2000 + next(clock)))}),
    "quality": lambda: (quality.save({1: {"protocol": str(next(clock)) * 99}}), results / "quality.json")[1],
    "unfinished": unfinished, "gguf": gguf, "onnx": onnx, "random weights": random_weights, "checkpoint": saved, "card": card, "built": built,
}

def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.is_dir() else path.read_bytes()

write = WRITERS[sys.argv[1]]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = write()
before = content(path)
sizes = [len(data) for data in before.values()] if isinstance(before, dict) else [len(before)]
report = []
for place in ("begin", "middle", "end"):
    grows = sys.argv[1] == "row"
    lines = before.count(b"\\n") if grows else 0
    limit = {"begin": 0, "middle": max(sizes) // 2, "end": max(sizes) - max(sizes) // 50 - 1}[place]
    if grows:
        limit = len(before) + {"begin": 0, "middle": 900, "end": len(recorded[0].encode()) - 200}[place]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        if sys.argv[1] == "unfinished":
            path.unlink()
        said = write() and "nothing was said"
    except CourseError as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    kept = content(path) == before if sys.argv[1] != "unfinished" else not path.exists()
    left = [p.name for p in results.rglob("*") if ".partial" in p.name or p.name.endswith(".before")]
    path = write()
    after = content(path)
    more = grows and after.count(b"\\n") - lines
    changed = after != before or sys.argv[1] in ("checkpoint", "random weights", "gguf", "onnx", "unfinished")
    report.append({"place": place, "said": said, "kept": kept, "left": left, "changed": changed, "rows": more, "readable": len(ledger.read())})
    before = after
print(json.dumps(report))
"""


def run(program, results, *arguments, **variables):
    environment = (
        os.environ | {"RESULTS_DIR": str(results), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(results.parent)} | variables
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    "writer", ["row", "chart", "text", "figures", "quality", "unfinished", "gguf", "onnx", "random weights", "checkpoint", "card", "built"]
)
def test_a_write_that_is_cut_leaves_the_old_file_and_says_which_variable_to_set(tmp_path, writer):
    report, said = run(CUT, tmp_path / "results", writer)
    for cut in report:
        variable = {"random weights": "SYNTHETIC_DIR", "card": "--out", "built": "--out"}.get(writer, "RESULTS_DIR")
        assert cut["said"].startswith("DiskError: ") and f"set {variable} to a folder on another disk" in cut["said"] and "\n" not in cut["said"], cut
        assert cut["kept"] and not cut["left"] and cut["changed"], cut
    if writer == "row":  # the row that was cut and the next one
        assert [cut["rows"] for cut in report] == [2, 2, 2] and report[-1]["readable"] == 7
        assert said.count("kept in this kernel") == 3 and "skipped" not in said


KILLED = """
import os, signal, sys
from pathlib import Path
from helpers.models import files
path, moment = Path(sys.argv[1]), sys.argv[2]
real = getattr(os, moment)
def die(*arguments):
    if moment != "replace" or str(arguments[0]).endswith(".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, moment, die)
with files.whole(path) as partial:
    if sys.argv[3] == "folder":
        partial.mkdir()
    ((partial / "content") if sys.argv[3] == "folder" else partial).write_text("new")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_program_that_is_killed_before_the_rename_loses_nothing(tmp_path, kind, moment):
    """For a folder "replace" is the moment between the two renames: the old one has another name then, and the next writer gives it back."""
    from helpers.models import files

    path = tmp_path / "made"
    inner = path / "content" if kind == "folder" else path
    if kind == "folder":
        path.mkdir()
    inner.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path, moment, kind], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.glob("made.*.partial"))) == 1
    assert kind == "folder" or inner.read_text() == "old"
    with files.whole(path, unless=path.exists) as partial:
        assert partial is None and inner.read_text() == "old"
    with files.whole(path) as partial:
        if kind == "folder":
            partial.mkdir()
        (partial / "content" if kind == "folder" else partial).write_text("newest")
    assert inner.read_text() == "newest" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_really_full(tmp_path):
    """And one that gets room again: the row that was kept is written with the next, and nothing of the first try stays."""
    program = """
import json, os, sys
from pathlib import Path
from helpers import ledger, plots, setup
from helpers.errors import DiskError
rows = [json.loads(line) for line in (setup.ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl").read_text().splitlines()]
disk, said = setup.results_dir(), []
ledger.append(rows[0])
plots.save("claims.md", "old")
with open(disk / "others", "wb", buffering=0) as others:
    try:
        while others.write(bytes(4096)): pass
    except OSError:
        pass
for action in (lambda: ledger.append(rows[1] | {"note": "x" * 10_000}), lambda: plots.save("claims.md", "new" * 10_000)):
    try:
        action()
    except DiskError as error:
        said.append(str(error))
read = len(ledger.read()), (disk / "ledger.jsonl").read_bytes().count(b"\\n"), (disk / "claims.md").read_text(), len(list(disk.iterdir()))
(disk / "others").unlink()
ledger.append(rows[2])
print(json.dumps([said, read, [row["date"] for row in ledger.read()] == [row["date"] for row in rows[:3]], (disk / "ledger.jsonl").read_bytes().count(b"\\n")]))
"""
    with mounted(tmp_path / "disk", "size=256k") as disk:
        (said, read, whole, lines), printed = run(program, disk)
    assert len(said) == 2 and all("the disk is full: make room, or set RESULTS_DIR" in sentence for sentence in said)
    assert read == [2, 1, "old", 3] and whole and lines == 3 and '"note": "xxx' in printed and "skipped" not in printed


def test_a_row_goes_to_another_folder_once_the_variable_names_one(tmp_path):
    program = """
import json, os, sys
from helpers import ledger, setup
from helpers.errors import DiskError
row = json.loads((setup.ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl").read_text().splitlines()[0])
said = []
for place in sys.argv[1:]:
    os.environ["RESULTS_DIR"] = place
    try:
        ledger.append(row)
    except DiskError as error:
        said.append(str(error))
print(json.dumps([said, len(ledger.read())]))
"""
    (tmp_path / "file").write_text("")
    (said, rows), _ = run(program, tmp_path, tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing", tmp_path / "good")
    assert rows == 1 and len(said) == 3 and all("set RESULTS_DIR to a folder that you may write to" in sentence for sentence in said)
    assert ["file stands" in said[0], "file stands" in said[1], "cannot be made" in said[2]] == [True] * 3


def test_a_read_only_folder_is_a_sentence(tmp_path):
    program = """
import json, os
from helpers import ledger, plots, setup
from helpers.errors import CourseError
from helpers.models import choose, synthetic
said = []
shape = choose.get_step(2).shape
number = choose.threads(shape)  # measured, and not kept
for action in (setup.results_dir, lambda: plots.save("a.md", "x"), lambda: ledger.append({}), lambda: synthetic.folder("1.3B", "gptq", 1)):
    try:
        action()
    except CourseError as error:
        said.append(str(error))
print(json.dumps([number, said, ledger.read() == [{}] if os.environ["RESULTS_DIR"].endswith("disk") else None]))
"""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro,size=1m", str(disk)], check=True)
        for results, count in ((disk, 3), (disk / "below", 4)):
            (number, said, _), _ = run(program, results, SYNTHETIC_DIR=str(disk), MPLCONFIGDIR=str(tmp_path))
            assert number >= 1 and len(said) == count and all("the disk is read-only: set " in sentence for sentence in said), said
            assert "set SYNTHETIC_DIR to a folder that you may write to" in said[-1] and "set RESULTS_DIR to" in said[0]


def test_who_waits_says_so(tmp_path):
    holder = (
        "import sys; from helpers.models import files\nwith files.whole(sys.argv[1]) as p: p.write_text('first'); print('in', flush=True); sys.stdin.read()"
    )
    waiter = "import sys; from helpers.models import files\nfiles.write(sys.argv[1], 'second')"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    assert "TQDM_DISABLE" not in os.environ  # it would take the line away
    first = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "x"], **pipes)
    assert first.stdout.readline() == "in\n"
    second = subprocess.Popen([sys.executable, "-c", waiter, tmp_path / "x"], **pipes)
    limit = threading.Timer(120, second.kill)  # of a waiter that says nothing
    limit.start()
    said = any("another program is writing x, waiting for it" in line for line in second.stderr)  # up to that line
    limit.cancel()
    first.communicate()  # ends it
    second.communicate()
    assert said and first.returncode == second.returncode == 0
    assert (tmp_path / "x").read_text() == "second"


def test_without_locks_two_writers_leave_one_whole_file(tmp_path):
    """TMPDIR differs, so that neither sees the other's lock: as two users, or two machines with one network disk."""
    program = """
import os, sys
from helpers.models import files
for n in range(200):
    files.write(sys.argv[1], sys.argv[2] * 100_000)
"""
    writers = []
    for letter in "ab":
        (tmp_path / letter).mkdir()
        writers.append(
            subprocess.Popen([sys.executable, "-c", program, tmp_path / "both", letter], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path / letter)})
        )
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "both").exists():
            assert (tmp_path / "both").read_text() in ("a" * 100_000, "b" * 100_000)
    assert [writer.returncode for writer in writers] == [0, 0] and not list(tmp_path.glob("*partial"))


def test_a_lock_that_cannot_be_had_stops_nothing(tmp_path):
    program = (
        "import json, sys, tempfile; tempfile.tempdir = '/proc/nothing'; from helpers.models import files; files.write(sys.argv[1], 'x'); print(json.dumps(1))"
    )
    run(program, tmp_path, tmp_path / "x")
    assert (tmp_path / "x").read_text() == "x"


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    from helpers.models import files

    (tmp_path / "drive").mkdir()
    (tmp_path / "a.json").symlink_to(tmp_path / "drive" / "a.json")
    files.write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").is_symlink() and (tmp_path / "drive" / "a.json").read_text() == "[1]\n"


WRITING = {"write_text", "write_bytes", "savefig", "tofile", "to_csv", "to_json", "to_excel", "to_html", "to_markdown", "to_pickle"}  # methods, with a path
WRITING |= {"save_file", "save_pretrained", "copyfile", "copy", "copy2", "copytree", "move", "save", "mkdir", "rename", "replace", "touch", "symlink_to"}
HARMLESS = {
    "replace",
    "copy",
    "save",
    "to_markdown",
    "to_html",
    "to_json",
}  # of texts, tensors and tables too, and of our own modules: only with a module's name
MODULES = {"os", "shutil", "np", "numpy", "torch"}
ELSEWHERE = {  # function: why it writes by itself
    "helpers/models/files.py": "the one place",
    "helpers/setup.py:_add": "a file in a temporary folder, for pip: above models/files in the house",
    "helpers/setup.py:results_dir": "makes the folder, with its sentence",
    "helpers/models/hub.py:_fetch_file": "a download goes on where it was cut; its SHA-256 is compared",
    "helpers/models/synthetic.py:write": "within files.whole", "helpers/models/synthetic.py:save": "within files.whole",
    "helpers/models/synthetic.py:_write_files": "within files.whole",
    "helpers/engines/native.py:_unpack": "within files.whole",
    "helpers/process.py:serve": "pipes between two processes",
    "helpers/quantise/__init__.py:save": "within files.whole",
    "helpers/quantise/formats.py:write_awq": "within files.whole", "helpers/quantise/formats.py:write_compressed": "within files.whole",
    "notebooks/teaching/class_wall.ipynb:<module>": "what the browser sends to Colab's own machine; a second upload replaces it",
    "notebooks/teaching/error_clinic.ipynb:<module>": "breaks a copy of a checkpoint on purpose, in a temporary folder",
    "tools/book.py:stage": "in a temporary folder", "tools/slides.py:fetch": "within files.whole",
    "tools/real_model.py:_assemble": "within files.whole", "tools/real_model.py:convert": "within files.whole", "tools/real_model.py:speeds": "within files.whole",
    "tools/stick.py:copy_course": "a stick counts when it has been checked; the same command goes on", "tools/stick.py:main": "the same",
    "data/build/train.py:train_model": "within files.whole", "data/build/train.py:save_model": "within files.whole",
    "data/build/quantise.py:save_gptq": "within files.whole",
    "helpers/kernels.py:_copy": "within files.whole",
    "helpers/engines/serving.py:_start": "the log that the server's process writes",
    "helpers/models/choose.py:threads": "within files.whole: adds to what others wrote",
    "helpers/plots.py:show": "into memory",
    "tools/picture.py:draw": "into memory", "tools/wall/page.py:svg": "into memory",
    "tools/replica.py:publish": "a copy of the course in a temporary folder", "tools/replica.py:try_out": "the same",
    "tools/t4.py:toolkit": "unpacks packages of the CUDA toolkit",
    "tools/wall/handed.py:entries": "unpacks into a temporary folder",
    "tools/stopwatch.py:measure": "the log of a program that is timed", "tools/stopwatch.py:writer": "times the disk itself",
}  # fmt: skip


def writes(tree):
    """(function, what) of each call in ``tree`` that writes a file or a folder by itself."""

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            if isinstance(child, ast.Call):
                name = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
                owner = child.func.value.id if isinstance(child.func, ast.Attribute) and isinstance(child.func.value, ast.Name) else ""
                modes = [
                    a.value
                    for a in [*child.args, *(k.value for k in child.keywords if k.arg == "mode")]
                    if isinstance(a, ast.Constant) and isinstance(a.value, str)
                ]
                opens = name in ("open", "fdopen") and any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes)
                if opens or name in WRITING and (name not in HARMLESS or owner in MODULES) and (name != "rename" or child.args):
                    yield inside, name
            yield from walk(child, inside)

    return list(walk(tree, "<module>"))


def sources():
    for path in sorted([*(ROOT / "helpers").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "data").rglob("*.py")]):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells[1:] if cell["cell_type"] == "code"]
        yield path.relative_to(ROOT).as_posix(), "\n".join(cell for cell in code if not cell.startswith("%%"))  # an answer to an exercise is the reader's


def test_nothing_else_writes_files():
    found = set()
    for name, source in sources():
        for function, what in writes(compile(source, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
            place = name if name in ELSEWHERE else f"{name}:{function}"
            assert place in ELSEWHERE, f"{place} writes by itself ({what}): use helpers.models.files, in a notebook plots.save"
            found.add(place)
    assert found == set(ELSEWHERE), f"these write no longer: {sorted(set(ELSEWHERE) - found)}"


@pytest.mark.parametrize(
    "line", ["open(p, 'w')", "open(p, mode='ab')", "p.open('x')", "p.write_text('')", "figure.savefig(p)", "shutil.copy(a, b)", "torch.save(a, b)"]
)
def test_the_walk_sees_it(line):
    assert writes(ast.parse(line)) and not writes(ast.parse("open(p); open(p, 'rb'); p.open(); text.replace('a', 'b'); quality.save(rows); tensor.copy()"))
