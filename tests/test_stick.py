"""The stick for rooms without a network: made and tried with real packages, of a small course with three of the pinned ones."""

import re
import subprocess

import pytest

from helpers import ROOT
from helpers.errors import PackagesError
from tools import stick

PINS = "".join(
    re.findall(rf"^(?:{'|'.join(('pypcre', 'threadpoolctl', 'ninja'))})==\S+\n", (ROOT / "requirements.txt").read_text(encoding="utf-8"), flags=re.M)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(its folder, exit status) of a stick of a course that needs three packages, one of them without a wheel for every system."""
    folder = tmp_path_factory.mktemp("stick")
    course = folder / "course"
    (course / "tools").mkdir(parents=True)
    (course / "requirements.txt").write_text(PINS)
    (course / "tools" / "__init__.py").write_text("")
    (course / "tools" / "run.py").write_text("import ninja, pcre, sys, threadpoolctl, urllib.request\nassert sys.argv[1:] == ['00']\n")
    (course / ".gitignore").write_text("secret\n")
    (course / "secret").write_text("not for others")
    subprocess.run(["git", "init", "--quiet", str(course)], check=True)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(stick, "ROOT", course)
    status = stick.main([str(folder / "stick"), "--lean", "--for", "windows", "3.12"])
    monkeypatch.undo()
    return folder / "stick", status


def test_what_notebooks_add_comes_along():
    """Every group of packages that a notebook would fetch is on the stick, and its README names the file."""
    added = {
        name
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for names in re.findall(r"setup\.add\((.+?)\)", path.read_text(encoding="utf-8"))
        for name in re.findall(r"\w+", names)
    }
    readme = stick.README.read_text(encoding="utf-8")
    assert len(added) >= 4 and added <= set(stick.MORE) and all(f"{name}.txt" in readme for name in added)


def test_it_is_made_and_tried(made):
    folder, status = made
    assert status == 0 and "Python 3." in (folder / stick.CHECKED).read_text()
    assert {path.name for path in folder.iterdir()} == {"README.txt", "checked.txt", "course", "wheels"}  # what it was tried in is gone
    assert not (folder / "course" / "secret").exists() and (folder / "course" / "requirements.txt").read_text() == PINS
    wheels = {path.name for path in (folder / "wheels").iterdir()}
    assert any(re.match(r"pypcre-.*\.whl", name) for name in wheels) and any(re.match(r"pypcre-.*\.tar\.gz", name) for name in wheels)
    assert any(re.match(r"ninja-.*-win_amd64\.whl", name) for name in wheels)
    assert "or 3.12 on windows" in (folder / "README.txt").read_text()


def test_a_package_that_is_missing_is_not_fetched(made):
    """The network is cut while it is tried: without one of the wheels there is no stick, and the sentence names the package."""
    folder, _ = made
    wheel = next((folder / "wheels").glob("threadpoolctl*.whl"))
    away = wheel.rename(folder.parent / wheel.name)
    try:
        with pytest.raises(PackagesError, match="No matching distribution found for threadpoolctl"):
            stick.check(folder, lean=True)
    finally:
        away.rename(wheel)


def test_a_course_that_does_not_run_is_no_stick(made):
    folder, _ = made
    run = folder / "course" / "tools" / "run.py"
    before = run.read_text()
    run.write_text("raise SystemExit('notebook 00 stopped')")
    try:
        with pytest.raises(PackagesError, match="notebook 00 stopped"):
            stick.check(folder, lean=True)
    finally:
        run.write_text(before)


def test_repositories_of_the_hub_come_along(tmp_path):
    """With the real client, from a Hub on this machine; for Llama-2 with the notice that its licence asks for."""
    import os
    import sys

    from tests.support.hub import Hub

    program = "import sys; from pathlib import Path; from tools import stick; stick.bring_models(Path(sys.argv[1]), sys.argv[2:])"
    with Hub({"someone/Llama-2-7B-GPTQ": ROOT / "data" / "checkpoints" / "small-gptq"}) as hub:
        variables = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = [
            subprocess.run([sys.executable, "-c", program, str(tmp_path / "stick"), name], cwd=ROOT, env=variables, capture_output=True, text=True)
            for name in ("someone/Llama-2-7B-GPTQ", "someone/none")
        ]
    assert done[0].returncode == 0, done[0].stderr[-500:]
    weights = next((tmp_path / "stick" / "hub").rglob("model.safetensors"))
    assert weights.read_bytes() == (ROOT / "data" / "checkpoints" / "small-gptq" / "model.safetensors").read_bytes()
    assert "LLAMA 2 Community License" in (tmp_path / "stick" / "Notice").read_text()
    assert "someone/none cannot be fetched: it does not exist" in done[1].stderr


@pytest.mark.parametrize(
    "arguments, said", [([""], "name a folder of its own"), (["stick", "--for", "amiga", "3.12"], "'amiga' is no system: choose from windows, macos, linux")]
)
def test_what_cannot_be_meant_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        stick.main(arguments)
    assert said in capsys.readouterr().err and not (ROOT / "course").exists()
