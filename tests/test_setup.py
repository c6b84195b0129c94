"""The set-up cell, wherever a notebook is opened; what it adds, refuses and leaves alone; badges and links from one constant."""

import os
import shutil
import subprocess
import sys
import venv

import nbformat
import pytest

from helpers import ROOT, setup
from helpers.engines import old_stack
from helpers.errors import DiskError, PackagesError
from helpers.models import synthetic
from tools import badges


def run_cell(source, folder, **variables):
    """Run a set-up cell as Python in ``folder``; return the finished process."""
    return subprocess.run([sys.executable, "-c", source], cwd=folder, env=os.environ | variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """Settings with which git finds https://github.com/someone/course in a repository on this disk."""
    folder = tmp_path_factory.mktemp("remote")
    course = folder / "someone" / "course"
    shutil.copytree(ROOT / "helpers", course / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (course / "data").mkdir()
    for name in ("requirements.txt", "data/article.json"):
        shutil.copy(ROOT / name, course / name)
    git = ["git", "-C", str(course), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet", "--initial-branch", "main"], ["add", "--all"], ["commit", "--quiet", "--message", "course"]):
        subprocess.run([*git, *command], check=True)
    (folder / "gitconfig").write_text(f'[url "file://{folder}/"]\n\tinsteadOf = https://github.com/\n')
    return {"GIT_CONFIG_GLOBAL": str(folder / "gitconfig")}


def test_alone_without_an_address_it_asks_for_one(tmp_path):
    """In Colab the first line is a form field; elsewhere the sentence says where to write the address."""
    cell = badges.setup_cell(badges.UNSET)
    assert cell.splitlines()[0] == 'REPOSITORY = ""  # @param {type:"string"}' and "@param" not in badges.setup_cell("someone/course")
    done = run_cell(cell, tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "opened alone" in done.stderr and "field REPOSITORY" in done.stderr and "between the quotes" in done.stderr
    assert not list(tmp_path.iterdir())


PASTED = "someone/course", " https://github.com/someone/course/ ", "https://github.com/someone/course/tree/main/notebooks", "git@github.com:someone/course"


@pytest.mark.parametrize("pasted", ["", *PASTED])
def test_alone_it_fetches_the_course_once(tmp_path, remote, pasted):
    """pasted: what a reader writes into the field; without it, the address is set."""
    cell = badges.setup_cell(badges.UNSET if pasted else "someone/course").replace('REPOSITORY = ""', f"REPOSITORY = {pasted!r}")
    for _ in range(2):
        done = run_cell(cell + "\nprint(setup.__file__)", tmp_path, **remote)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["Set-up: everything is here.", str(tmp_path / "course" / "helpers" / "setup.py")]
        remote = {}  # the second time it is there
    assert len(list((tmp_path / "course" / ".git").glob("shallow"))) == 1


def test_alone_without_network_is_one_sentence(tmp_path):
    (tmp_path / "gitconfig").write_text('[url "file:///nowhere/"]\n\tinsteadOf = https://github.com/\n')
    done = run_cell(badges.setup_cell("someone/course"), tmp_path, GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"))
    assert done.returncode == 1 and "could not be fetched from https://github.com/someone/course" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", ["notebooks", "."])
def test_inside_a_clone_it_fetches_nothing(folder):
    done = run_cell(badges.setup_cell("someone/course") + "\nprint(setup.__file__)", ROOT / folder, GIT_CONFIG_GLOBAL="/nowhere")
    assert done.stdout.splitlines()[-1] == str(ROOT / "helpers" / "setup.py"), done.stderr
    assert not (ROOT / folder / "course").exists()


def test_missing_packages_are_added_and_nothing_else_is_touched(tmp_path):
    """A real pip in a real environment: a wheel made here, for a runtime that has "torch" and lacks the wheel's package."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    for name, requires in (("torch", ""), ("added", "Requires-Dist: never-there\n"), ("psutil", "")):
        wheel(tmp_path, name, requires)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "torch==2.13.0", "psutil==2.13.0"], check=True, env=os.environ | offline)
    (tmp_path / "requirements.txt").write_text("torch==2.14.0\nadded==2.13.0\n# comment\nnbmake==1.5.5\n")
    program = f"from helpers import setup; setup.prepare({str(tmp_path / 'requirements.txt')!r}); import added"
    first, second = (subprocess.run([python, "-c", program], env=os.environ | offline, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "adding added." in first.stdout and "1 packages added" in first.stdout and "none changed" in first.stdout
    assert second.stdout == "Set-up: everything is here.\n"
    there = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert "torch==2.13.0" in there and "added==2.13.0" in there and "nbmake" not in there


def test_tools_are_added_by_name(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(setup, "installed", lambda name: None if name == "gguf" else "99.0")
    monkeypatch.setattr(setup.sys, "modules", {})
    monkeypatch.setattr(setup, "pip", lambda *arguments: asked.append(arguments))
    setup.add("llamacpp", "uv")
    assert asked == [("--no-deps", f"gguf=={setup.pins(ROOT / 'requirements' / 'llamacpp.txt')['gguf']}")]
    assert "adding gguf" in capsys.readouterr().out


def wheel(folder, name, requires):
    """Write a wheel, version 2.13.0, with one empty module."""
    import zipfile

    information = f"{name}-2.13.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-2.13.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.13.0\n{requires}")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")


def test_packages_that_cannot_be_had_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(PackagesError, match="could not be added.*nothing was changed") as error:
        setup.pip("--no-deps", "no-such-package-at-all==1.0")
    assert "\n" not in str(error.value)


def test_too_old(monkeypatch):
    monkeypatch.setattr(setup, "installed", lambda name: {"transformers": "4.57.1"}.get(name, "99.0"))
    monkeypatch.setattr(setup.sys, "modules", {})
    with pytest.raises(PackagesError, match="transformers 4.57.1 is too old, the course needs 5.0.0 or newer"):
        setup.check(["torch", "transformers"])


def test_replaced_after_import(monkeypatch):
    import torch

    monkeypatch.setattr(setup, "installed", lambda name: "99.0")
    with pytest.raises(PackagesError, match="torch was replaced after this kernel had imported it .*restart the kernel") as error:
        setup.check(["torch"])
    assert torch.__version__ in str(error.value)


@pytest.mark.parametrize("file", ["requirements.txt", *(f"requirements/{tool}.txt" for tool in ("llamacpp", "onnx", "serving", "formats", "uv"))])
def test_every_pin_is_installed_here_in_its_version(file):
    different = {n: (v, setup.installed(n)) for n, v in setup.pins(ROOT / file).items() if (setup.installed(n) or "").split("+")[0] != v}
    assert not different


def test_kaggle_downloads_go_where_there_is_room(monkeypatch, tmp_path):
    for name in ("HF_HOME", "SYNTHETIC_DIR", "ARTICLE_STACK_DIR"):
        monkeypatch.delenv(name, raising=False)
    setup.use_roomy_cache()
    assert "HF_HOME" not in os.environ
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(setup.machine, "disk", lambda folder: 60e9 if str(folder) == "/tmp" else 20e9)
    setup.use_roomy_cache()
    assert os.environ.pop("HF_HOME") == "/tmp/huggingface" and os.environ.pop("SYNTHETIC_DIR") == "/tmp/synthetic"
    assert os.environ.pop("ARTICLE_STACK_DIR") == "/tmp/article-stack"


@pytest.fixture
def copy(tmp_path):
    """A copy of what make badges rewrites, and of the sources of the exercises."""
    for path in (*badges.written(badges.REPOSITORY), *sorted((ROOT / "notebooks" / "exercises" / "source").glob("*.md"))):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and ".git" not in p.relative_to(folder).parts}


def test_badges_as_committed(copy, capsys):
    before = files(copy)
    assert badges.main(badges.REPOSITORY, copy) == 0 and badges.stale() == []
    assert files(copy) == before


def test_badges_for_another_address_and_back(copy, capsys):
    before = files(copy)
    assert badges.main("someone/course", copy) == 0
    after = files(copy)
    assert badges.main("someone/course", copy) == 0 and files(copy) == after
    assert not any(f"{site}/{badges.UNSET}".encode() in text for text in after.values() for site in ("github.com", "github", "codespaces.new"))
    for path in sorted((copy / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        assert f"colab.research.google.com/github/someone/course/blob/main/notebooks/{path.name}" in notebook.cells[0].source
        assert f"kaggle.com/kernels/welcome?src=https://github.com/someone/course/blob/main/notebooks/{path.name}" in notebook.cells[0].source
        code = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert code == badges.setup_cell("someone/course") and code.startswith('REPOSITORY = "someone/course"\n')
    assert badges.main(badges.REPOSITORY, copy) == 0 and files(copy) == before


def test_badges_for_nonsense(copy, capsys):
    before = files(copy)
    assert badges.main("https://github.com/a/b", copy) == 2 and "make badges REPOSITORY=owner/name" in capsys.readouterr().err
    assert files(copy) == before


def test_badges_that_are_out_of_date_are_named(copy):
    notebook = copy / "notebooks" / "03_gptq_7b.ipynb"
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("set-up, the same in every", "mine, unlike every"), encoding="utf-8")
    assert badges.stale(copy) == [notebook]


def git_origin(folder, url):
    for command in (["init", "--quiet"], ["remote", "add", "origin", url]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)


@pytest.mark.parametrize(
    "url",
    ["https://github.com/someone/course", "https://github.com/someone/course.git", "https://me:secret@github.com/someone/course.git/",
     "git@github.com:someone/course.git", "ssh://git@github.com/someone/course.git", "ssh://git@ssh.github.com:443/someone/course"],
)  # fmt: skip
def test_badges_without_an_argument_take_the_address_of_origin(copy, capsys, monkeypatch, url):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git_origin(copy, url)
    assert badges.main("", copy) == 0 and "github.com/someone/course." in capsys.readouterr().out


@pytest.mark.parametrize("url", ["https://gitlab.com/someone/course.git", "https://me:secret@github.com.example.org/a/b", "/home/me/course", None])
def test_badges_without_an_address_on_github_are_one_sentence(copy, capsys, monkeypatch, url):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    before = files(copy)
    if url:
        git_origin(copy, url)
    assert badges.main("", copy) == 2 and files(copy) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "make badges REPOSITORY=owner/name" in said and "secret" not in said
    assert ("GitHub only" if url else "no git remote called origin") in said


FOLDERS = {"RESULTS_DIR": setup.results_dir, "SYNTHETIC_DIR": lambda: synthetic.folder("1.3B", "gptq", 1), "LLAMA_CPP_DIR": lambda: setup.folder("LLAMA_CPP_DIR", "x"),
           "ARTICLE_STACK_DIR": old_stack.environment}  # fmt: skip


@pytest.mark.parametrize("variable", FOLDERS)
def test_variables_that_name_folders_say_so_where_they_cannot(tmp_path, monkeypatch, variable):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for given in ("~nobody-of-that-name/x", "x" * 300, str(tmp_path / "loop")):
        monkeypatch.setenv(variable, given)
        if variable != "ARTICLE_STACK_DIR" or "loop" not in given:  # an environment is looked for there, and found missing
            with pytest.raises(DiskError, match=f"{variable}.*set (it|{variable}) to a folder that you may write to") as error:
                FOLDERS[variable]()
            assert "\n" not in str(error.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/mine")
    assert setup.folder(variable, "x") == tmp_path / "mine"  # a notebook's %env leaves the sign of one's home as it is
    monkeypatch.setenv(variable, "mine")
    assert setup.folder(variable, "x") == ROOT / "mine"
    monkeypatch.delenv(variable)
    assert setup.folder(variable, "x") == ROOT / "x"
