"""The pages: links and commands that exist, figures that are the recorded ones, one README on a screen and a half; and who asks the web for it all."""

import importlib.util
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml

from tools import ROOT, check, links, picture, platforms, replica

PAGES = links.files(links.PAGES)
DOCS = sorted((ROOT / "docs").glob("*.md"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_into_the_course_lead_somewhere(path):
    assert links.broken(path) == []


def test_a_broken_link_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# Two words\n")
    (tmp_path / "page.md").write_text("[a](other.md) [b](other.md#two-words) [c](other.md#three) [d](gone.md) [e](https://example.org) [f](#here)\n\n## Here\n")
    assert links.broken(tmp_path / "page.md") == [
        "page.md links to other.md#three, and no heading is called so",
        "page.md links to gone.md, which is not there",
    ]


@pytest.mark.parametrize("path", [*PAGES, *WORKFLOWS], ids=name)
def test_commands_exist(path):
    text = links.text(path)
    named = {f"make {target}" for target in re.findall(r"run: make ([\w-]+)", text)} if path in WORKFLOWS else links.commands(path)
    assert path not in WORKFLOWS or named
    for command in named:
        kind, what = command.rsplit(" ", 1)
        assert what in links.targets() if kind == "make" else importlib.util.find_spec(what), f"{name(path)} says {command}"


def test_make_says_what_it_can():
    """Each target that is called by a name stands in the Makefile's head."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"make ([a-z][a-z0-9-]*)", makefile.partition("\n\n")[0])) == links.targets()


def test_readme_is_short_and_leads_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 60
    assert readme.split("```")[1].split()[:2] == ["make", "run"] and "make test" in readme.split("```")[1]
    assert all(f"]({name(page)})" in readme for page in DOCS)


def test_the_picture_says_what_was_recorded(tmp_path):
    assert f"![{picture.text()}]({name(picture.FILE)})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert picture.sentence() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert picture.table() in (ROOT / "docs" / "recorded-runs.md").read_text(encoding="utf-8")
    picture.draw(tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000


def test_what_is_said_of_a_real_model_follows_from_its_rows(tmp_path, monkeypatch):
    """With the recorded rows of the embedded models in its place."""
    monkeypatch.setattr(picture, "REAL", tmp_path / "none")
    assert picture.sentence() == picture.table() == ""
    recorded = ROOT / "data" / "recorded"
    for file in ("ledger.jsonl", "quality.json"):
        (tmp_path / file).write_bytes((recorded / "cpu-2-cores-embedded" / file).read_bytes())
    engine = json.loads((recorded / "cpu-2-cores-engines" / "engines.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "engines.jsonl").write_text(json.dumps(engine | {"same_top": 0.5, "tpot_s": 0.004, "weight_bytes": 246_587_904}), encoding="utf-8")
    monkeypatch.setattr(picture, "REAL", tmp_path)
    quality = {key: row["perplexity"] for key, row in picture.real()[0].items()}
    assert (
        f"in 8 bits 5 MB, perplexity {quality[1]:.1f}, " in picture.sentence() and f"in 4 bits (GPTQ) 3 MB, perplexity {quality[3]:.1f}, " in picture.sentence()
    )
    lines = picture.table().splitlines()
    assert len(lines) == 7 and lines[3].startswith(f"| step 2: bf16, 16 bits | 8 MB | {quality[2]:.1f} | 100% | ")
    assert lines[6] == "| Q4_K_M (llama.cpp) | 247 MB | - | 50% | 250.0 |"


def test_the_map_is_that_of_the_house():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.name.removesuffix(".py") + "/" * path.is_dir() for path in (ROOT / "helpers").iterdir() if not path.name.startswith("_")}
    assert rooms == set(re.findall(r"^\| `([\w/]+)` \|", text, flags=re.M))


def test_what_the_map_points_at_is_there():
    """Files of helpers/ that the map names, and functions that stand in backquotes, in the room whose row names them."""
    rows = re.findall(r"^\| `([\w/]+)` \|.*\| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)
    for room, examples in rows:
        files = sorted((ROOT / "helpers").glob(f"{room.strip('/')}/**/*.py" if room.endswith("/") else f"{room}.py"))
        defined = {found for path in files for found in re.findall(r"^(?:def|class) (\w+)", path.read_text(encoding="utf-8"), flags=re.M)}
        for named in re.findall(r"`([\w/.]+)`", examples):
            assert (ROOT / "helpers" / named).is_file() if "/" in named else named in defined | {"from_pretrained"}, f"{room}: {named}"


@pytest.mark.parametrize("path", FORMS, ids=name)
def test_issue_forms(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        return
    assert form["name"] and form["description"] and len({field["id"] for field in form["body"]}) == len(form["body"])
    if path.name == "problem.yml":
        fields = {field["id"]: field for field in form["body"]}
        assert {"machine", "platform", "tier", "survey"} <= set(fields)
        assert {"embedded", "synthetic", "hub"} <= set(fields["tier"]["attributes"]["options"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_workflows_ask_for_little(path):
    """Least permissions at the top, a limit of time for each job, actions by major version."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"}) and "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_pre_commit_has_the_versions_of_the_checks(tmp_path, monkeypatch, capsys):
    assert check.versions(fix=False)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "check.txt").write_text("# a comment\nruff==9.9.9\n")
    (tmp_path / ".pre-commit-config.yaml").write_text("additional_dependencies: [ruff==0.1.0]\n")
    assert not check.versions(fix=False) and check.versions(fix=True) and check.versions(fix=False)
    assert (tmp_path / ".pre-commit-config.yaml").read_text() == "additional_dependencies: [ruff==9.9.9]\n"
    assert check.main(["no-such"]) == 2 and "choose from lint" in capsys.readouterr().err


@pytest.fixture
def site():
    """Address of a web site on this machine; its paths are the statuses that it answers with."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_links_on_the_web(site, monkeypatch, capsys):
    monkeypatch.setattr(links.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(links, "files", lambda patterns: [])
    asked = {"/200": 0, "/404": 1, "/403": 0, "/503": 0}
    for path, status in asked.items():
        monkeypatch.setattr(links, "addresses", lambda path=path: {site + path: {"README.md"}, site + "/204": {"README.md"}})
        assert links.main() == status
        said = capsys.readouterr().out
        assert (f"{site}{path} (README.md)" in said) == (path != "/200") and ("not told" in said) == (path in ("/403", "/503"))
    monkeypatch.setattr(links, "addresses", lambda: {"http://127.0.0.1:1/": {"README.md"}})
    assert links.main() == 2 and "is there a network?" in capsys.readouterr().err


def test_addresses_of_pages_and_sources():
    found = links.addresses()
    assert "docs/models.md" in found["https://huggingface.co/meta-llama/Llama-2-7b-hf"]
    assert all(re.fullmatch(r"https?://[\w.-]+\.[a-z]+(/\S*)?", address) for address in found)
    assert not any(address.endswith((")", ".", ",")) for address in found) and not any("OWNER" in address for address in found)


def test_platforms_of_today(tmp_path, monkeypatch, capsys):
    """Colab's list with its Python; Kaggle's is Colab's of the day on which Kaggle's base image was built."""
    raw, asked = "https://raw.githubusercontent.com/googlecolab/backend-info", []
    answers = {
        f"{raw}/main/os-info-gpu.txt": "# made by a program\nUbuntu 22.04.5 LTS\nPython 3.13.15\n",
        f"{raw}/main/pip-freeze.gpu.txt": "torch==2.11.0\n",
        platforms.KAGGLE: "{{ if }}\nFROM us-docker.pkg.dev/colab-images/public/runtime:release-colab-external-images_20260514-060047_RC00\n",
        f"{raw}/abc/os-info-gpu.txt": "Python 3.12.13\n",
        f"{raw}/abc/pip-freeze.gpu.txt": "torch==2.10.0\nnumpy==2.0.2\n",
    }

    def fetch(url):
        asked.append(url)
        return json.dumps([{"sha": "abc"}]) if "api.github.com" in url else answers[url]

    monkeypatch.setattr(platforms, "fetch", fetch)
    assert platforms.main(folder=tmp_path) == 0 and "until=2026-05-14T" in "".join(asked)
    assert (tmp_path / "colab.txt").read_text() == "# Python 3.13\ntorch==2.11.0\n" and replica.named_python(tmp_path / "colab.txt") == "3.13"
    assert (tmp_path / "kaggle.txt").read_text().startswith("# Python 3.12\ntorch==2.10.0\n")
    answers[platforms.KAGGLE] = "FROM somewhere/else:latest\n"
    assert platforms.main(["kaggle"], tmp_path) == 1 and "names no Colab image any more" in capsys.readouterr().err


def test_a_replica_without_its_list_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        replica.main([str(tmp_path / "colab.txt")])
    assert "make platforms fetches the lists" in capsys.readouterr().err
