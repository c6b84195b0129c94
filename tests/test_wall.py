"""The class wall: a simulated class comes out right, with figures that this file computes by itself; bad ledgers are named; the page works in a browser."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import Counter
from statistics import median

import numpy
import pytest

from helpers import ROOT, ledger, timing
from tests.support import classroom
from tools.wall import __main__ as wall
from tools.wall import findings, handed, page

EMBEDDED, T4 = "Embedded stand-ins (not Llama-2), CPU", "Llama-2 from the Hub, Tesla T4"
ENDS = {"CPU total": "cpu_total_s", "wall": "wall_s", "warm wall": "warm_wall_s"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    classroom.write(tmp_path_factory.mktemp("class") / "class")
    return tmp_path_factory.getbasetemp() / "class0" / "class"


@pytest.fixture(scope="module")
def page_of_30(folder):
    ledgers, notes = handed.read_class(folder)
    return ledgers, notes, wall.wall(ledgers, notes)


def tables(page):
    return {caption: table for kind, caption, table in (block for block in page.blocks if block[0] == "table")}


def told(page, heading):
    """The sentences and points below each heading that begins with ``heading``."""
    found, inside = [], False
    for kind, *block in page.blocks:
        inside = block[0].startswith(heading) if kind == "heading" else inside
        if inside and kind in ("text", "points"):
            found += [block[0]] if kind == "text" else block[0]
    return found


def participants():
    """(the T4s' rows, the CPUs' rows) as the simulator makes them, without reading a file: the torn ledger's first three rows are a CPU's too."""
    cpus = [classroom.cpu(n, busy=n >= 15) for n in range(20)] + [classroom.cpu(10**6)[:3]]
    return [classroom.t4(n) for n in range(10)], cpus


def verdict(before, after, key):
    """(change in per cent, what it does, noise) by the rules of notebooks 05 and 09, written again: 5 %, the spread of the repeats, who was busy."""
    spreads = []
    for row in (before, after):
        low, middle, high = numpy.percentile([call["wall"] for call in row["warm"]], [25, 50, 75])
        spreads.append(100 * (high - low) / middle)
    change = 100 * (after[key] / before[key] - 1)
    busy = max(before["cold_others_cores"] or 0, after["cold_others_cores"] or 0) > 0.3
    noise = max(5, *spreads)
    if busy or noise > 10:  # repeats that differ by more than a tenth stand under no verdict
        return change, "can't tell", 10**9
    return change, "falls" if change < -noise else "does not fall" if change > noise or noise == 5 else "can't tell", noise


def test_every_ledger_counts_once(page_of_30):
    ledgers, notes, page = page_of_30
    assert len(ledgers) == 31  # 30, and what is left of the torn one
    t4s, cpus = participants()
    assert sorted(row["wall_s"] for each in ledgers for row in each.rows) == sorted(row["wall_s"] for rows in t4s + cpus for row in rows)
    machines = tables(page)["One line a machine"]
    assert list(machines["device"]).count("Tesla T4") == 10 and len(machines) == 31 and set(machines["no."]) == set(range(1, 32))
    names = set(machines.index.str.removesuffix(" (simulated)"))
    assert {"Zoë", "ayşe", "torn", "t4-1", "cpu-19"} <= names and sum(re.fullmatch(r"no\. \d+", name) is not None for name in names) == 1
    assert {name.casefold() for name in names if name.casefold().startswith("kim")} == {"kim (1)", "kim (2)"}
    assert "31 of the ledgers are simulated" in page.markdown()


def test_broken_and_double_ledgers_are_named(page_of_30):
    notes = "\n".join(page_of_30[1])
    assert "empty.jsonl: is no ledger: the file is empty" in notes and "photo.jsonl: is no ledger: line 1 is not valid JSON" in notes
    assert "torn.jsonl: line 4 is not valid JSON" in notes and "t4-0.jsonl: all of its rows stand in again.jsonl too" in notes
    assert re.search(r"[kK]im\S*: 2 ledgers have this name", notes) and len(page_of_30[1]) == 5
    assert page_of_30[1] == told(page_of_30[2], "What was handed in")


@pytest.mark.parametrize("title, which", [(EMBEDDED, 1), (T4, 0)])
def test_the_articles_changes_are_counted_right(page_of_30, title, which):
    table, rows = tables(page_of_30[2])[f"The article's changes ({title})"], participants()[which]
    assert len(table) == 9
    for name, line in table.iterrows():
        what, first, last = re.fullmatch(r"(.*), step (\d) to (\d)", name).groups()
        both = [[row for row in own if row["step"] == int(step)] for own in rows for step in (first, last)]
        pairs = [(a[0], b[0]) for a, b in zip(both[::2], both[1::2]) if a and b]
        found = [verdict(*pair, ENDS[what]) for pair in pairs]
        counts = Counter(verdict for _, verdict, _ in found)
        assert [line[key] for key in ("falls", "does not fall", "can't tell")] == [counts[key] for key in ("falls", "does not fall", "can't tell")], name
        assert line["median here"] == f"{median(change for change, *_ in found):+.0f} %"
        stated = {"12cpu_total_s": -75.8, "12": -71.3, "23cpu_total_s": -14.4, "23": -7.9, "14cpu_total_s": -81.4, "14": -80.4}
        limit = stated[first + last + ("cpu_total_s" if what == "CPU total" else "")] + 5
        assert line["falls by as much"] == sum((1 + change / 100) * (1 + noise / 100) <= 1 + limit / 100 for change, _, noise in found), name
    assert (table["can't tell"] >= (5 if which else 0)).all()


@pytest.mark.parametrize(
    "holds, nots, said",  # two-sided sign test by hand: 2/32, 2/64, 2(1+10)/1024, 2(1+10+45)/1024, 2 x 1/2^10
    [(5, 0, "can't tell"), (6, 0, "holds"), (9, 1, "holds"), (8, 2, "can't tell"), (0, 10, "does not hold"), (0, 0, "can't tell"), (15, 15, "can't tell")],
)
def test_what_a_class_decides(holds, nots, said):
    assert findings.decided(holds, nots) == said


def test_distributions_are_those_of_the_machines(page_of_30):
    table = tables(page_of_30[2])[f"Wall time of each step ({T4})"]
    for step, name in ((1, "1: 7B 8-bit"), (4, "4: 13B GPTQ")):
        warm = sorted(rows[step - 1]["warm_wall_s"] for rows in participants()[0])
        assert table.loc[f"{name}, warm call", ["machines", "busy or noisy", "shortest", "longest"]].to_list()[::3] == [10, timing.seconds(warm[-1])]
        assert table.loc[f"{name}, warm call", "median"] == timing.seconds((warm[4] + warm[5]) / 2)
    busy = tables(page_of_30[2])[f"Wall time of each step ({EMBEDDED})"]["busy or noisy"]
    assert set(busy) == {5}


def test_the_five_busy_machines_are_far_and_it_says_why(page_of_30):
    said = [line for line in told(page_of_30[2], "Far from the rest") if "Different there" in line]
    assert {line.split(" (")[0] for line in said} == {f"cpu-{n}" for n in range(15, 20)}
    assert all("other programs used 1.7 of 2 cores; threads 2 (most: 1)" in line and "device" not in line for line in said)
    times = {line.split(" (")[0]: float(re.search(r"warm call ([\d.]+) times", line)[1]) for line in said}
    cpus = participants()[1]
    for n in range(15, 20):
        ratios = [cpus[n][k]["warm_wall_s"] / median(rows[k]["warm_wall_s"] for rows in cpus if len(rows) > k) for k in range(4)]
        assert times[f"cpu-{n}"] == pytest.approx(median(ratios), rel=0.03)


def test_predictions_are_counted_right(page_of_30):
    table = tables(page_of_30[2])["Predictions of the first call's wall time; the first one of each step counts"]
    for step in (1, 2, 3, 4):
        rows = [rows[step - 1] for group in participants() for rows in group if len(rows) >= step and rows[step - 1]["prediction_wall_s"]]
        ratios = [row["prediction_wall_s"] / row["wall_s"] for row in rows]
        counted = [len(ratios), sum(0.8 <= r <= 1.25 for r in ratios), sum(r > 1.25 for r in ratios), sum(r < 0.8 for r in ratios)]
        assert table.loc[f"step {step}"].to_list()[:4] == counted and counted[0] >= 10


def test_only_the_first_prediction_counts(tmp_path):
    """Who runs a notebook again knows the answer."""
    rows = classroom.cpu(1)[:1]
    first, again = (rows[0] | {"wall_s": 2.0, "prediction_wall_s": guess, "date": date} for guess, date in ((20.0, "2026-11-25"), (2.0, "2026-11-26")))
    table = tables(wall.wall(*written(tmp_path / "class", a=[first, again])))["Predictions of the first call's wall time; the first one of each step counts"]
    assert table.loc["step 1"].to_list() == [1, 0, 1, 0, "10"]


def change(rows, step, **other):
    return [row | other if row["step"] == step else row for row in rows]


def written(folder, **ledgers):
    folder.mkdir(exist_ok=True, parents=True)
    for name, rows in ledgers.items():
        (folder / f"{name}.jsonl").write_text(classroom.text(rows), encoding="utf-8")
    return handed.read_class(folder)


def test_reasons(tmp_path):
    """One machine each: another kernel, a cold start, another device, and one that nothing explains."""
    calm = {f"p{n}": classroom.cpu(n) for n in range(9)}
    slow = {"warm_wall_s": 9.0, "wall_s": 9.5}
    odd = {
        "kernel": change(classroom.cpu(21), 3, kernel="TorchLinear: plain PyTorch", **slow),
        "cold": change(classroom.cpu(22), 2, wall_s=9.0),
        "riddle": change(classroom.cpu(23), 1, **slow),
        "torch": change(classroom.cpu(24), 1, versions={"torch": "2.10.0", "transformers": "5.23.0"}, **slow),
        "gpu": [row | {"device": "Tesla T4", "warm_wall_s": row["warm_wall_s"] / 9} for row in classroom.cpu(25)],
    }
    built = wall.wall(*written(tmp_path / "class", **calm, **odd))
    said = {line.split(" (")[0]: line for line in told(built, "Far from the rest") if "Different there" in line}
    assert set(said) == set(odd)
    assert "kernel TorchLinear: plain PyTorch (most: TorchAtenLinear: gptqmodel's own choice on a CPU)" in said["kernel"] and "step 3)" in said["kernel"]
    assert "only the first call: a cold start" in said["cold"] and "warm call" not in said["cold"]
    assert said["riddle"].endswith("nothing in its rows says why.") and "torch 2.10.0 (most: 2.13.0+cpu)" in said["torch"]
    assert (
        "device Tesla T4 (most: CPU (" in said["gpu"] and 0.08 < float(re.search(r"warm call ([\d.]+) times", said["gpu"])[1]) < 0.12
    )  # one GPU is compared with everybody on these models


def test_few_machines_are_not_compared(tmp_path):
    page = wall.wall(*written(tmp_path / "class", a=classroom.cpu(1), b=classroom.cpu(2, busy=True)))
    assert told(page, "Far from the rest") == ["With fewer than 5 machines nobody is said to be far from the rest."]
    assert set(tables(page)[f"The article's changes ({EMBEDDED})"]["class: it falls"]) == {"can't tell"}


def test_hidden_names(folder):
    ledgers, notes = handed.read_class(folder, hide=True)
    built = wall.wall(ledgers, notes)
    texts = built.markdown() + built.html() + "\n".join(notes)
    assert not re.search(r"kim\b|zoë|ayşe|t4-\d|cpu-\d|again\b|torn\.|photo|empty\.jsonl|\.jsonl", texts, flags=re.I)
    shown = {each.number: each.lines for each in handed.read_class(folder)[0]}
    assert {each.number: each.lines for each in ledgers} == shown and len(notes) == 5


def test_no_file_is_changed_and_the_page_is_the_same_again(folder, tmp_path, monkeypatch):
    def state():
        return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in folder.rglob("*") if path.is_file()}

    before, pages = state(), []
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    for _ in range(2):
        assert wall.main([str(folder)]) == 0
        pages.append([(tmp_path / name).read_text(encoding="utf-8") for name in handed.WRITTEN])
    assert state() == before and pages[0] == pages[1]


def test_predictions_of_ratios_and_orders(tmp_path):
    """predictions.jsonl beside a ledger, alone, in an archive, twice: each person's first answer to a question counts once; the figures are computed here."""
    said = {"anna": (0.5, ["b", "a"]), "ben": (2.0, ["a", "b"]), "cem": (1.1, ["a", "b"])}
    folder = tmp_path / "class"
    for n, (name, (ratio, order)) in enumerate(said.items()):
        lines = [{"what": "02: a ratio", "prediction": ratio, "measured": 1.0}, {"what": "04: an order", "prediction": order, "measured": ["a", "b"]},
                 {"what": "02: a ratio", "prediction": 99, "measured": 1.0}, {"what": "x", "prediction": "soon", "measured": None}]  # fmt: skip
        (folder / name).mkdir(parents=True)
        (folder / name / "ledger.jsonl").write_text(classroom.text(classroom.cpu(n)), encoding="utf-8")
        (folder / name / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{torn", encoding="utf-8")
    with zipfile.ZipFile(folder / "anna.zip", "w") as archive:
        archive.write(folder / "anna" / "predictions.jsonl", "results/predictions.jsonl")
    ledgers, notes = handed.read_class(folder)
    assert [each.who for each in ledgers] and len(ledgers) == 3 and not any("is no ledger" in note for note in notes), notes
    page = wall.wall(ledgers, notes, handed.class_predictions(folder))
    table = tables(page)["Predictions of ratios and orders; the first one of each question counts"]
    assert table.loc["02: a ratio"].tolist() == [3, 1, 1, 1, "1.1", "-"] and table.loc["04: an order"].tolist() == [3, "-", "-", "-", "-", "100 %"]
    assert list(table.index) == ["02: a ratio", "04: an order"] and "1 of 3 well predicted, 1 too high, 1 too low" in page.markdown()


def test_one_participant_several_ledgers(tmp_path):
    """Colab gives each notebook a machine: different steps of one name belong together, equal steps of one name do not."""
    rows, one, other = (classroom.cpu(n) for n in (1, 2, 3))
    for step in (1, 2, 3, 4):
        (tmp_path / "class" / "anna").mkdir(parents=True, exist_ok=True)
        (tmp_path / "class" / "anna" / f"ledger ({step}).jsonl").write_text(classroom.text(rows[step - 1 : step]), encoding="utf-8")
    ledgers, notes = written(tmp_path / "class", **{"ben (1)": one[:2], "ben (2)": other[1:]})
    assert sorted(each.who for each in ledgers) == ["anna", "ben (1)", "ben (2)"] and {len(each.rows) for each in ledgers} == {2, 3, 4}
    assert any("one name, and different steps" in note and note.count("anna/ledger") == 4 for note in notes)
    assert any("ben (1).jsonl" in note and "ben (2).jsonl" in note and "2 ledgers have this name" in note for note in notes)


def test_an_earlier_state_counts_once_and_shared_rows_are_told(tmp_path):
    rows = classroom.cpu(1)
    ledgers, notes = written(tmp_path / "class", early=rows[:2], late=rows, other=rows[2:] + classroom.cpu(2)[:1])
    assert sorted(each.who for each in ledgers) == ["late", "other"]
    assert "early.jsonl: all of its rows stand in late.jsonl too: they count once" in notes
    assert "other.jsonl: 2 of its rows stand in another ledger too, and others do not: both count" in notes


def test_archives(tmp_path):
    """A whole class in one archive, with what archives can do: two members of one name, ways out of the folder, an archive inside, damage."""
    texts, folder = [classroom.text(classroom.cpu(n)) for n in range(6)], tmp_path / "class"
    folder.mkdir()
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("ledger.jsonl", texts[3])
    with zipfile.ZipFile(folder / "Class 7b.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("ledger.jsonl", texts[0])
        archive.writestr("ledger.jsonl", texts[1])
        archive.writestr("../../escaped.jsonl", texts[2])
        archive.write(inner, "Dora/hand in.zip")
        archive.writestr("__MACOSX/._ledger.jsonl", "resource fork")
        archive.writestr("Emil_1234_assignment/ledger.jsonl", texts[4])
    ledgers, notes = handed.read_class(folder)
    assert len(ledgers) == 5 and not notes and not (tmp_path / "escaped.jsonl").exists()
    names = sorted(each.who for each in ledgers)
    assert names[:3] == ["Emil_1234_assignment", "escaped", "hand in"]
    assert all(name.startswith("no. ") for name in names[3:])  # the archive of the whole class is nobody's name
    (folder / "broken.zip").write_bytes((folder / "Class 7b.zip").read_bytes()[:200])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "me.png").write_bytes(b"x")
    ledgers, notes = handed.read_class(folder)
    assert len(ledgers) == 5 and {note.split(":")[0] for note in notes if "broken" in note or "pictures" in note} == {"broken.zip", "pictures"}


def test_rows_of_other_hands_are_left_out_and_told(tmp_path):
    wrong = {"a": {"warm": [{"wall": "x"}]}, "b": {"warm": 3}, "c": {"warm_wall_s": "fast"}, "d": {"warm_wall_s": 10**400}, "e": {"wall_s": 1e300}}
    wrong |= {"f": {"versions": [1]}, "g": {"others_cores": "many"}, "h": {"cpu_total_s": 1e300}}
    ledgers, notes = written(tmp_path / "class", **{name: change(classroom.cpu(n), 2, **other) for n, (name, other) in enumerate(wrong.items())})
    assert [len(each.rows) for each in ledgers] == [3] * len(wrong)
    left = {name: f"line 2 lacks a usable {next(iter(other))!r}" for name, other in wrong.items()}
    left |= dict.fromkeys("eh", "1 of its rows have figures of a kind that this course does not write: left out")
    assert sorted(notes) == [f"{name}.jsonl: {said}" for name, said in left.items()]


def test_odd_words_do_no_harm(tmp_path):
    odd = {"kernel": ["x"]}, {"threads": {}}, {"prediction_wall_s": "soon"}, {"prediction_wall_s": True}, {"title": "$x_ $\n" * 30}, {"participant": 7}
    page = wall.wall(*written(tmp_path / "class", **{f"p{n}": change(classroom.cpu(n), 2, **other) for n, other in enumerate(odd)}))
    assert set(tables(page)["One line a machine"].index) == {f"p{n} (simulated)" for n in range(len(odd))} and page.html()


def test_names_are_only_words(tmp_path):
    rows = [row | {"participant": "<script>alert(1)</script> | \u202eevil\n# head"} for row in classroom.cpu(1)]
    page = wall.wall(*written(tmp_path / "class", **{"a": rows, "<script>": []}))
    assert "&lt;script&gt;.jsonl: is no ledger" in page.html() and "&lt;script>.jsonl: is no ledger" in page.markdown()
    assert "<script" not in page.html() + page.markdown() and "\u202e" not in page.html() and "\n# head" not in page.markdown()
    assert "&lt;script&gt;alert &lt;/script&gt; | evil # head" in page.html()


@pytest.mark.parametrize(
    "file, name",
    [("anna", "anna"), ("ledger", ""), ("ledger (12)", ""), ("Copy of ledger", ""), ("ledger_anna", "anna"), ("Anna Ledger (1)", "Anna"), ("1042", "1042"),
     ("results", ""), ("  ", ""), ("李雷", "李雷")],
)  # fmt: skip
def test_names_of_files(file, name):
    assert handed.named(file) == name


def test_only_who_asks_for_it_is_named(monkeypatch):
    call = timing.Call(0.1, 0.0, 0.2, 0.1, 15)
    measured = timing.Timing(call, [call] * 5, "p", 1, 15, "x")
    monkeypatch.delenv("PARTICIPANT", raising=False)
    assert "participant" not in ledger.measured(measured)
    monkeypatch.setenv("PARTICIPANT", "Zoë")
    assert ledger.measured(measured)["participant"] == "Zoë"


def test_three_hundred_ledgers(tmp_path):
    classroom.write(tmp_path / "class", times=10)
    started = time.process_time()
    ledgers, notes = handed.read_class(tmp_path / "class")
    page = wall.wall(ledgers, notes)
    text = page.html()
    assert time.process_time() - started < 60  # about 6 s
    assert len(ledgers) == 301 and text.count("<tr>") > 301 and len(text) < 5e6
    assert len([line for line in told(page, "Far from the rest") if "Different there" in line]) == 50


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    assert wall.main([]) == 2 and "make wall CLASS=folder" in capsys.readouterr().err
    assert wall.main([str(tmp_path / "none")]) == 2 and "There is no folder" in capsys.readouterr().err
    (tmp_path / "class").mkdir()
    assert wall.main([str(tmp_path / "class")]) == 1 and "holds no ledger" in capsys.readouterr().err
    shutil.copytree(ROOT / "data" / "recorded" / "cpu-2-cores", tmp_path / "class" / "one")
    shutil.copytree(ROOT / "data" / "recorded" / "cpu-2-cores-embedded", tmp_path / "class" / "benchmark")
    done = subprocess.run([sys.executable, "-m", "tools.wall", str(tmp_path / "class")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "benchmark/ledger.jsonl: has no row of notebooks 01 to 04 (24 of benchmarks" in done.stdout and not done.stderr
    assert "1 ledger, 1 machine, measured" in (tmp_path / "results" / "wall.md").read_text(encoding="utf-8")


def test_pictures_have_their_text_and_no_second_colour_of_ink(page_of_30):
    """Every picture: an alternative text with the figures of the table below it, a shape for each meaning, ids of its own, nothing black."""
    text = page_of_30[2].html()
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(pictures) == 5 and all(re.match(r'<svg [^>]*role="img" aria-label="[^"]{100,}"', each) for each in pictures)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([\w.-]+)', text)) <= set(ids)
    assert text.count('class="scroll" role="region" tabindex="0" aria-labelledby=') == text.count("<table>") == 6  # Chromium reaches it without, others do not
    assert "#000000" not in text and not re.search(r'(?:src|href)="(?!#)', text.replace("xmlns:xlink", ""))
    shapes = [shape for sign, (shape, _) in page.SIGNS.items()]
    assert all(
        len({page.SIGNS[sign][0] for sign in group}) == len(group) for group in (("undisturbed", "busy or noisy"), ("falls", "does not fall", "can't tell"))
    )
    assert len(shapes) == 7


# ---- in a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if not BROWSER:
        pytest.skip("there is no Chromium on this machine")
    with sync.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield program
        program.close()


CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const l = light(c); return (Math.max(l, ground) + .05) / (Math.min(l, ground) + .05) };
  const texts = [...document.querySelectorAll('p, li, th, td, caption, h1, h2, h3, a')].map(e => getComputedStyle(e).color).concat([...document.querySelectorAll('svg text')].map(e => getComputedStyle(e).fill));
  const marks = [...document.querySelectorAll('svg use')].flatMap(e => [getComputedStyle(e).fill, getComputedStyle(e).stroke]).filter(c => c.startsWith('rgb(') && c != 'rgb(128, 128, 128)');
  return [Math.min(...texts.map(ratio)), Math.min(...marks.map(ratio)), texts.length, marks.length] }"""


@pytest.mark.parametrize("times", [1, 10])
def test_in_a_browser(browser, tmp_path, times):
    """No width that scrolls, text that can be read in both themes, all tables within reach of the keyboard, nothing asked of the network."""
    classroom.write(tmp_path / "class", times)
    built = wall.wall(*handed.read_class(tmp_path / "class"))
    (tmp_path / "wall.html").write_text(built.html(), encoding="utf-8")
    for width in (400, 1400):
        for scheme in ("light", "dark"):
            view, asked = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
            view.on("request", lambda request, asked=asked: asked.append(request.url))
            view.on("console", lambda message, asked=asked: asked.append(message.text))
            view.goto((tmp_path / "wall.html").as_uri())
            assert len(asked) == 1, asked
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            text, mark, texts, marks = view.evaluate(CONTRAST)
            assert text >= 4.5 and mark >= 3 and texts > 200 and marks > 200, (text, mark, texts, marks)
            assert view.evaluate("[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().width <= innerWidth && e.ariaLabel)")
            assert view.evaluate("[...document.querySelectorAll('svg text')].every(e => e.getBoundingClientRect().height >= 9)")
            dark = view.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
            view.close()
    view = browser.new_page(viewport={"width": 400, "height": 900})
    view.goto((tmp_path / "wall.html").as_uri())
    reached = []
    for _ in range(view.evaluate("document.querySelectorAll('a, .scroll').length")):
        view.keyboard.press("Tab")
        reached.append(
            view.evaluate("[document.activeElement.className || document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]")
        )
    assert [name for name, _ in reached].count("scroll") == len(tables(built)) and {style for _, style in reached} == {"solid"}
    for _ in range(50):  # a machine under load scrolls late
        view.keyboard.press("ArrowRight")
        view.wait_for_timeout(100)
        if moved := view.evaluate("document.activeElement.scrollLeft"):
            break
    assert moved > 0
    view.close()
