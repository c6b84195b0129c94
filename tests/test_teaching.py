"""The teacher's pack: plans that name what is there and give enough minutes, one place for the licence, ticks that were looked at, marks that are right, slides."""

import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest

from helpers import ROOT
from helpers.models import choose
from helpers.models.catalogue import LLAMA_2, QWEN_2_5
from tests.support import classroom
from tests.support.hub import Hub
from tools import badges, before, grade, links, plans, platforms, slides

TIMES = json.loads(plans.TIMES.read_text(encoding="utf-8"))
TEACHING = sorted((ROOT / "notebooks" / "teaching").glob("*.ipynb"))
BLOCKS = [(name, block) for name, blocks in plans.plans().items() for block in blocks]
META = "meta-llama/Llama-2-7b-hf"


def titles(found):
    return f"{found.title} {found.start}" if isinstance(found, plans.Block) else found.split(":")[0]


# ---- plans


def test_the_minutes_add_up():
    found = plans.plans()
    assert [name.split(":")[0] for name in found] == ["90 minutes", "Half a day", "A day"]
    for name, blocks in found.items():
        assert sum(block.minutes for block in blocks) == int(re.search(r"(\d+) minutes", name)[1])
        at = 0
        for block in blocks:
            assert block.start == at, f"{name}: {block.title} begins at {block.start}, and the blocks before it take {at} minutes"
            at += block.minutes


@pytest.mark.parametrize("name, block", BLOCKS, ids=titles)
def test_what_a_block_runs_is_there_and_takes_less_than_its_minutes(name, block):
    seconds = 0
    for path, wanted in block.runs:
        assert path.is_file(), path
        headings = list(plans.sections(path))
        places = [headings.index(section) for section in wanted]  # a ValueError names the one that is not there
        assert places == sorted(places), f"{path.name}: {wanted} are not in the notebook's order"
        seconds += plans.needed(path, wanted, TIMES)
    alternatives = block.parts["Run"].count("Or [") + 1  # an elective is one of them
    assert 60 * block.minutes >= seconds / alternatives, f"{block.title}: its cells took {seconds:.0f} s"
    assert all(block.parts.values()) and (block.runs or "nothing" in block.parts["Run"] or "make wall" in block.parts["Run"])


def test_what_must_be_fast_enough_on_a_t4_is_computed():
    """Each sentence "N GB in M minutes need R MB/s": N are bytes of checkpoints of the notebooks that the block runs, M is no more than its minutes."""
    bytes_of = {"01": ("7B", "bf16"), "02": ("7B", "bf16"), "03": ("7B", "gptq"), "04": ("13B", "gptq")}
    count = 0
    for name, block in BLOCKS:
        for size, minutes, rate in re.findall(r"T4: ([\d.]+) GB in (\d+) minutes need (\d+) MB/s", block.parts["Waits"]):
            total = sum(LLAMA_2[model].weight_bytes(format) for path, _ in block.runs for key, (model, format) in bytes_of.items() if path.name.startswith(key))
            assert f"{total / 1e9:.1f}" == size and int(minutes) <= block.minutes, block.title
            assert int(rate) == ceil(total / 1e6 / (60 * int(minutes))), block.title
            count += 1
    assert count >= 9


def test_downloads_that_the_plans_name_are_those_of_the_catalogue():
    page = plans.PAGE.read_text(encoding="utf-8")
    both = sum(LLAMA_2[model].weight_bytes("gptq") for model in ("7B", "13B"))
    formats = re.search(r"else ([\d.]+ GB)", links.text(ROOT / "notebooks" / "15_which_format.ipynb"))[1]
    assert f"| {formats}, {both / 1e9:.1f} GB, unless" in page
    tier, small, large = choose.download("laptop"), QWEN_2_5["7B"], QWEN_2_5["13B"]
    assert f"| {tier / 1e9:.1f} GB a laptop (" in page and f"thirty laptops fetch {30 * tier / 1e9:.0f} GB" in page
    minutes = 30 * tier / 1e6 / 12.5 / 60  # 100 Mbit/s
    assert f"{minutes:.0f} minutes at 100 Mbit/s" in page
    sizes = [small.weight_bytes("bf16"), small.weight_bytes("gptq"), large.weight_bytes("gptq")]
    table = re.findall(r"^\| 0\d[^|]*\| ([\d.]+) GB[^|]*\|", page[page.index("## The laptop tier") :], flags=re.M)
    assert table[:3] == [f"{size / 1e9:.1f}" for size in sizes]


def test_every_notebook_has_its_place_in_the_plans():
    """What came after the article has blocks of its own in the day, half a day names it, and none of the course's notebooks is forgotten."""
    found = dict(zip(("90", "half", "day"), plans.plans().values()))
    for number in ("15", "16", "17"):
        own = [block for block in found["day"] if block.runs and block.runs[0][0].name.startswith(number)]
        assert len(own) == 1 and own[0].runs[0][1], number
        assert any(f"notebooks/{number}_" in part for block in found["half"] for part in block.parts.values()), number
    named = {name for block in found["day"] for part in block.parts.values() for name in re.findall(r"notebooks/(\d\d)_", part)}
    assert named == {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}


def test_what_the_plans_run_was_timed():
    """Every numbered notebook of the plans, in the sections that it has today (a few may have been renamed since)."""
    for path in sorted({path for _, block in BLOCKS for path, _ in block.runs if path.parent == ROOT / "notebooks"}):
        measured, there = TIMES[path.stem]["sections"], set(plans.sections(path))
        assert len(set(measured) & there) >= 0.8 * len(measured), f"{path.name} has other sections now: make run, then python -m tools.plans --times results"
        assert sum(measured.values()) > 0 and {"machine", "date", "models", "beside"} < set(TIMES[path.stem])


def test_a_block_that_is_not_written_as_the_others_is_named():
    good = "## A plan: 5 minutes\n\n### 0:00 · 5 min · One\n\n" + "".join(f"- **{part}:** x\n" for part in plans.PARTS)
    assert plans.plans(good)["A plan: 5 minutes"][0].minutes == 5
    for wrong in (good.replace("0:00 ·", "now ·"), good.replace("- **Waits:** x\n", "")):
        with pytest.raises(ValueError, match="of 'A plan: 5 minutes'"):
            plans.plans(wrong)


def test_times_are_those_of_the_executed_cells(tmp_path, monkeypatch):
    """Seconds by section, from the time stamps that an execution leaves; a section ends where the next heading stands, also in the same cell, or the same again.

    What did not run, or not to its end, keeps the times that it had.
    """

    def ran(start, end):
        at = "2026-11-26T10:00:{:06.3f}Z"
        return nbformat.v4.new_code_cell("x", metadata={"execution": {"iopub.status.busy": at.format(start), "iopub.status.idle": at.format(end)}})

    cells = [
        nbformat.v4.new_markdown_cell("# 01 · x"),
        ran(0, 2),
        nbformat.v4.new_markdown_cell("## A\n\ntext\n\n### B"),
        ran(2, 5.5),
        ran(6, 7),
        nbformat.v4.new_markdown_cell("## C\n\n### B"),
        ran(7, 10),
    ]
    unfinished = [ran(0, 5), nbformat.v4.new_markdown_cell("## A"), nbformat.v4.new_code_cell("x")]
    for name, inside in (("01_x", cells), ("02_y", unfinished), ("03_z", unfinished[1:])):
        nbformat.write(nbformat.v4.new_notebook(cells=inside), tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(plans, "TIMES", tmp_path / "times.json")
    before = {name: {"machine": "another", "sections": {"top": 1.5}} for name in ("00_w", "01_x", "02_y", "03_z")}
    plans.TIMES.write_text(json.dumps(before), encoding="utf-8")
    assert plans.record(tmp_path, "nothing") == 1
    times = json.loads(plans.TIMES.read_text(encoding="utf-8"))
    assert times["01_x"]["sections"] == {"top": 2.0, "A": 0, "B": 4.5, "C": 0, "B (2)": 3.0} and times["01_x"]["beside"] == "nothing"
    assert list(times) == list(before) and all(times[name] == before[name] for name in ("00_w", "02_y", "03_z"))
    path = tmp_path / "01_x.ipynb"
    assert [plans.needed(path, wanted, times) for wanted in (["A"], ["B"], [], ["A", "C"])] == [2, 6.5, 9.5, 6.5]


def test_the_command_prints_times_of_day(capsys):
    assert plans.main(["Half", "--start", "9:15"]) == 0
    said = capsys.readouterr().out
    assert "  9:15   10 min  The question" in said and " 12:20   25 min  The class's answer" in said and "A day" not in said
    assert plans.main(["None"]) == 2 and plans.main(["--start", "noon"]) == 2


# ---- a class


def slowness(rows, kind):
    """How many times as long as the recorded run its rows are (median of the steps)."""
    known = classroom.rows(kind)
    return statistics.median(row["warm_wall_s"] / known[row["step"]]["warm_wall_s"] for row in rows)


def test_thirty_people_get_through_the_minutes():
    """All fifteen calm processors with half of each block left to talk; the five busy ones, five to eight times slower, just so.

    What was timed beside other programs was timed on a busy machine.
    """
    calm = [slowness(classroom.cpu(n), "cpu-2-cores") for n in range(15)]
    busy = [slowness(classroom.cpu(n, busy=True), "cpu-2-cores") for n in range(15, 20)]
    assert max(calm) < 2 < 4 < min(busy)
    for name, block in BLOCKS:
        parts = [(plans.needed(path, wanted, TIMES), TIMES.get(path.stem, {}).get("beside")) for path, wanted in block.runs]
        if "Or [" in block.parts["Run"]:  # an elective: the longest
            parts = [max(parts)]
        slow = sum(seconds * (1 if beside else max(busy)) for seconds, beside in parts)
        assert slow <= 60 * block.minutes, f"{name}, {block.title}: a busy machine needs {slow / 60:.0f} minutes"
        assert sum(seconds * max(calm) for seconds, beside in parts if not beside) <= 0.5 * 60 * block.minutes, (
            f"{name}, {block.title}: no time is left to talk"
        )


def test_t4s_have_time_for_set_up_and_compiling():
    """Twice what was measured without a T4: set-up 18 s, ExLlamaV2 38 s; then the download's minutes still fit into the block."""
    for name, block in BLOCKS:
        for _, minutes, _ in re.findall(r"T4: ([\d.]+) GB in (\d+) minutes need (\d+) MB/s", block.parts["Waits"]):
            compiled = any(path.name.startswith(("03", "04")) for path, _ in block.runs)
            started = not any(path.name.startswith(("01", "02")) for path, _ in block.runs)  # 01 and 02 were opened in the block before
            assert int(minutes) + 2 * (18 * started + 38 * compiled) / 60 <= block.minutes, f"{name}, {block.title}"


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """(folder, people, notes, levels) of a simulated class whose exercises the course is told here, in its own way of writing them."""
    scratch = tmp_path_factory.mktemp("homework")
    for notebook in ("00", "03"):
        lines = [f"## {key[3:]} · {level} · A title\n\ntext\n" for key, level in classroom.EXERCISES.items() if key[:2] == notebook and level != "question"]
        (scratch / f"{notebook}.md").write_text("# Exercises\n\n" + "\n".join(lines) + "\n## Question\n", encoding="utf-8")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(grade, "SOURCE", scratch)
    classroom.homework(scratch / "class")
    yield scratch / "class", *grade.hand_ins(scratch / "class"), grade.levels()
    monkeypatch.undo()


WORTH = {"easy": 1, "medium": 2, "hard": 3, "question": 1}


def test_homework_of_a_class_is_marked_right(marked):
    """Thirty people, their points computed again here from what the simulator made of them."""
    _, people, notes, level = marked
    worth = grade.rubric()
    assert {key: each for key, (each, _) in worth.items()} == WORTH | {"measured": 1, "predicted": 1} and len(people) == 30
    assert level == {key: value for key, value in classroom.EXERCISES.items() if value != "question"}
    expected = {}
    for number in range(30):
        cpu, busy = number - 10, number >= 25
        right = list(classroom.EXERCISES.values())[: number % 7]
        guesses = max(4 if cpu < 0 else 2, 7 if number % 3 == 0 else 0)  # all four steps of a T4, two of a CPU, seven in predictions.jsonl
        # busy ones: two threads, and 1.7 of two cores were gone: none of their warm calls stands
        expected[f"t4-{number}" if cpu < 0 else f"cpu-{cpu}"] = sum(WORTH[kind] for kind in right) + (0 if busy else 4) + min(guesses, 6)
    expected["kim"], expected["Kim"] = expected.pop("cpu-0"), expected.pop("cpu-1")
    found = {re.sub(r" \(\d+\)$", "", name): sum(grade.points(*rest, worth, level).values()) for name, *rest in people}
    assert found == expected
    names = [name for name, *_ in people if name.casefold().startswith("kim")]
    assert (
        len(names) == 2
        and all(re.fullmatch(r"[kK]im \(\d+\)", name) for name in names)
        and "2 people are called kim: each counts, with a number behind it" in notes
    )


def test_bad_hand_ins_are_named(marked):
    assert set(marked[2]) > {"torn/exercises.json: is no exercises.json of this course", "foreign/exercises.json: is no exercises.json of this course"}
    assert any(note.startswith("cut.zip: is an archive that can't be opened") for note in marked[2]) and len(marked[2]) == 4


def test_the_command_writes_the_marks(marked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert grade.main([str(marked[0])]) == 0
    page, table = ((tmp_path / name).read_text(encoding="utf-8") for name in grade.WRITTEN)
    assert len(table.splitlines()) == 31 and table.startswith(
        "who,00.cost,00.question,00.row,03.question,03.unpack,03.zero,easy,medium,hard,question,measured,predicted,points"
    )
    wrong = {key: sum(classroom.answers(n)[key[:2]][key[3:]] == "wrong" for n in range(30)) for key in classroom.EXERCISES}
    most = re.findall(r"^- (\S+) \(\w+\): (\d+) of 30$", page.partition("most often")[2], flags=re.M)
    assert {key: int(count) for key, count in most} == {key: count for key, count in wrong.items() if count}
    assert grade.main([str(marked[0]), "--hide-names"]) == 0 and "kim" not in (tmp_path / "grades.md").read_text(encoding="utf-8").casefold()
    assert grade.main([str(tmp_path / "none")]) == 2 and "There is no folder" in capsys.readouterr().err


def test_real_answers_are_marked(tmp_path, monkeypatch):
    """What the exercises of notebook 00 leave of a solution, a typical mistake and a stub, handed in as it is."""
    exercises = pytest.importorskip("helpers.exercises", reason="this course has no exercises")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "anna"))
    sheet = exercises.read("00")
    exercises.begin("00")
    first, second, *others = sheet.exercises.values()
    for one, code in ((first, first.solution), (second, second.wrong[0][-1]), *((one, one.stub) for one in others)):
        names = {}
        for given in [*sheet.given, *one.given]:
            exec(given, names)
        exercises.tell(one.name, code, names)
    exercises.question(next(n for n, (_, right, _) in enumerate(sheet.answers, 1) if right))
    exercises.summary()
    shutil.copytree(tmp_path / "anna", tmp_path / "ben")  # a folder alone would be that of the class
    (person, other), notes = grade.hand_ins(tmp_path)
    assert [person[0], other[0]] == ["anna", "ben"] and person[1:] == other[1:] and notes == []
    assert person[1] == {f"00.{one.name}": "open" for one in others} | {f"00.{first.name}": "right", f"00.{second.name}": "wrong", "00.question": "right"}
    got = grade.points(*person[1:], grade.rubric(), grade.levels())
    assert got == dict.fromkeys(grade.rubric(), 0) | {first.level: WORTH[first.level], "question": WORTH["question"]}


def test_the_exercises_of_the_course_have_levels_that_count():
    assert set(grade.levels().values()) <= set(WORTH)


# ---- before the day


def test_dates_and_what_is_due(monkeypatch, capsys):
    """Counted back from the day; what could not be looked at is due as well, and nothing but a tick counts as done."""
    things = (
        (14, "far", lambda: (before.DONE, "yes")),
        (7, "near", lambda: (before.MISSING, "no")),
        (7, "dark", lambda: (before.UNKNOWN, "?")),
        (1, "last", lambda: (before.MISSING, "no")),
    )
    monkeypatch.setattr(before, "THINGS", things)
    assert before.main(["2026-12-05"], date(2026, 11, 28)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:5] == ["[x] by Sat 21 Nov  far: yes", "[ ] by Sat 28 Nov  DUE  near: no", "[?] by Sat 28 Nov  DUE  dark: ?", "[ ] by Fri 04 Dec  last: no"]
    assert "2 of 4 are due" in lines[5]
    assert before.main(["2026-12-05"], date(2026, 11, 27)) == 0 and before.main(["soon"]) == 2


def test_what_fails_is_no_tick():
    def broken():
        raise OSError("the disk reports an error")

    assert before.looked(broken) == (before.UNKNOWN, "not checked: the disk reports an error")


def test_lists_and_runs_grow_old(tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "FOLDER", tmp_path)
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    assert before.lists()[0] == before.MISSING and "no colab.txt and no kaggle.txt" in before.lists()[1]
    assert before.ran() == (before.MISSING, "steps 1, 2, 3, 4 were not measured on this machine: make run")
    files = [tmp_path / "colab.txt", tmp_path / "kaggle.txt", tmp_path / "results" / "ledger.jsonl"]
    for path in files[:2]:
        path.write_text("# Python 3.13\n")
    shutil.copy(ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl", files[2])
    os.utime(files[2])
    assert before.lists()[0] == before.ran()[0] == before.DONE
    for path in files:
        os.utime(path, (time.time() - 20 * 86400,) * 2)
    assert before.lists()[0] == before.ran()[0] == before.MISSING and "20 days old" in before.lists()[1] + before.ran()[1]


def test_without_an_address_nothing_on_github_is_ticked(monkeypatch):
    monkeypatch.setattr(badges, "REPOSITORY", badges.UNSET)
    assert before.address()[0] == before.MISSING and before.colab()[0] == before.weekly()[0] == before.UNKNOWN


@pytest.mark.parametrize(
    "gated, sign, words",
    [
        ({}, "[x]", "can be read with this machine's token"),
        ({META: "licence"}, "[ ]", "it asks for a licence and you have no token"),
        (None, "[?]", "not checked"),
    ],
)
def test_the_licence_is_asked_of_the_hub(tmp_path, gated, sign, words):
    """With the real client: a Hub of this machine that gives it, one that refuses, and nobody at that address."""
    program = "from tools import before; print(*before.looked(before.licence))"
    small = ROOT / "data" / "checkpoints" / "small"
    variables = {name: value for name, value in os.environ.items() if "TOKEN" not in name and name != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path)}
    with Hub({META: small, "TheBloke/Llama-2-13B-GPTQ": small, "TheBloke/Llama-2-13B-chat-GPTQ": small}, gated=gated) as hub:
        variables["HF_ENDPOINT"] = hub.url if gated is not None else "http://127.0.0.1:9"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.startswith(sign) and words in done.stdout, done.stdout + done.stderr[-300:]


# ---- one place for the licence


@pytest.mark.parametrize("path", links.files(links.PAGES), ids=lambda path: path.name)
def test_what_speaks_of_metas_licence_leads_to_the_one_place(path):
    text = links.text(path)
    if re.search(r"Meta.s licen[cs]e|Llama 2 Community|community licen[cs]e", text, flags=re.I) and path.name != "LICENSE-TEXT.md":
        assert "LICENSE-TEXT.md#llama-2-in-a-class" in text
    assert "700 million" not in text or path.name == "LICENSE-TEXT.md", "said twice"


# ---- notebooks beside the course's own


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.stem)
def test_a_teachers_notebook_is_like_the_others(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0].source
    assert "After this notebook you can" in first and f"/blob/main/notebooks/teaching/{path.name})" in first
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == badges.setup_cell(badges.REPOSITORY).replace('("..", ', '("../..", ', 1) and "accelerator" not in notebook.metadata
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code]
    assert statistics.median(lengths) <= 5 and max(lengths) <= 30 and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("how", ["upload", "drive"])
def test_the_wall_in_colab(tmp_path, monkeypatch, how, capsys):
    """The notebook's cells with a google.colab that hands over two files or mounts a folder: the page has those people, and is downloaded."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    handed, done = {f"{name}.jsonl": classroom.text(classroom.cpu(n)).encode() for n, name in enumerate(("anna", "ben"))}, []
    (tmp_path / "drive").mkdir()
    for name, content in handed.items():
        (tmp_path / "drive" / name).write_bytes(content)
    colab = ModuleType("google.colab")
    colab.files = SimpleNamespace(
        upload=lambda: {f"../{name}": content for name, content in handed.items()}, download=lambda path: done.append(Path(path).name)
    )
    colab.drive = SimpleNamespace(mount=lambda place: done.append(place))
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    notebook, names = nbformat.read(ROOT / "notebooks" / "teaching" / "class_wall.ipynb", as_version=4), {}
    fields = {"upload": ("upload = False", "upload = True"), "drive": ('class_folder = ""', f"class_folder = {str(tmp_path / 'drive')!r}")}
    for cell in [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]:
        cell = cell.replace(*fields[how]).replace("drive_too = False", f"drive_too = {how == 'drive'}")
        exec(compile(cell, "class_wall", "exec"), names)
    assert done == (["/content/drive"] if how == "drive" else []) + ["wall.html"]
    assert re.findall(r"^\| (\w+) \(simulated\) ", (tmp_path / "results" / "wall.md").read_text(encoding="utf-8"), flags=re.M)[:2] in (
        ["anna", "ben"],
        ["ben", "anna"],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["drive", "results", *(["class"] if how == "upload" else [])]
    )  # nothing beside the folder


def test_the_clinic_has_ten():
    text = links.text(ROOT / "notebooks" / "teaching" / "error_clinic.ipynb")
    assert re.findall(r"^## (\d+) · ", text, flags=re.M) == [str(n) for n in range(1, 11)] and text.count("**Cure.**") == 10
    assert text.count("with failure(") + text.count(", failure(") == 9  # the tenth is no error


# ---- slides


def test_a_rule_makes_the_slides():
    output = [nbformat.v4.new_output("stream", text="42\n")]
    long = "\n".join(f"x{n} = {n}" for n in range(slides.SHORT + 1))
    prose = "A first sentence.\n\n" + "Long. " * 200
    cells = [
        nbformat.v4.new_markdown_cell("# 01 · T\n\n<!-- navigation: make badges writes it -->\nbadge\n<!-- /navigation -->\n\nIntro."), nbformat.v4.new_code_cell("set-up"),
        nbformat.v4.new_code_cell("from helpers import x"), nbformat.v4.new_markdown_cell(f"## A\n\n{prose}"), nbformat.v4.new_code_cell("y = 1"),
        nbformat.v4.new_code_cell("print(42)", outputs=output), nbformat.v4.new_markdown_cell("What it means."), nbformat.v4.new_code_cell(long, outputs=output),
        nbformat.v4.new_markdown_cell("### B"), nbformat.v4.new_markdown_cell("## Self-check"), nbformat.v4.new_code_cell("assert x", outputs=output),
    ]  # fmt: skip
    made = slides.deck(nbformat.v4.new_notebook(cells=cells), {"A": ["Say this."]})
    found = [(cell.metadata.slideshow.slide_type, cell.source.splitlines()[0] if cell.source else "") for cell in made.cells]
    assert found == [
        ("slide", "# 01 · T"), ("slide", "## A"), ("notes", "Say this."), ("notes", ("Long. " * 200).strip() + " "), ("subslide", "#### A"), ("-", "y = 1"), ("notes", "What it means."),
        ("subslide", "#### A"), ("-", ""), ("subslide", "### B"),
    ]  # fmt: skip
    assert "badge" not in made.cells[0].source and made.cells[5].source == "y = 1\n\nprint(42)" and made.cells[8].metadata.tags == ["remove-input"]


def test_speaker_notes_come_from_the_plans():
    said = plans.said(ROOT / "notebooks" / "01_8bit_7b.ipynb")
    assert [text[:24] for text in said["Predict first"]] == ["**90 minutes, 0:25, 20 m", "**Half a day, 0:40, 30 m", "**A day, 0:40, 35 min.**"]
    assert all("*Stuck:*" in text for text in said["Predict first"])


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_slides_in_a_browser(tmp_path, monkeypatch):
    """A deck opens from the disk with no network: every slide is reached, none is wider than the screen, nothing is asked of another site."""
    pytest.importorskip("nbconvert", reason="make slides adds it")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if not BROWSER:
        pytest.skip("there is no Chromium on this machine")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "01_8bit_7b.ipynb", as_version=4)  # as if it had been run
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for n, cell in enumerate(code):
        cell.outputs = [nbformat.v4.new_output("stream", text=f"line {n} " * 40)]
    dot = base64.b64encode((ROOT / "data" / "recorded" / "cpu-2-cores" / "comparison.png").read_bytes()).decode()
    code[-1].outputs = code[4].outputs = [nbformat.v4.new_output("display_data", {"image/png": dot}, metadata={"image/png": {"alt": 'It "rises" <b>.'}})]
    nbformat.write(notebook, tmp_path / "01_8bit_7b.ipynb")
    if slides.main(["01"]):
        pytest.skip("reveal.js cannot be fetched")
    with sync.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view, asked = program.new_page(viewport={"width": 1400, "height": 900}), []
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: asked.append(str(error)))
        view.goto((tmp_path / "slides" / "01_8bit_7b.html").as_uri())
        view.wait_for_function("window.Reveal && Reveal.isReady()")
        total = view.evaluate("Reveal.getTotalSlides()")
        assert total > 20 and view.evaluate("document.querySelectorAll('aside.notes').length") > 10
        for _ in range(total - 1):
            view.keyboard.press("Space")
            assert view.evaluate("Reveal.getCurrentSlide().scrollWidth") <= 1102
        assert view.evaluate("[...document.querySelectorAll('img')].map(each => each.alt)") == ['It "rises" <b>.']  # that of the self-check is left out
        assert view.evaluate("Reveal.isLastSlide()") and all(url.startswith("file:") for url in asked), asked
        program.close()
