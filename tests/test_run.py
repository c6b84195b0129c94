"""``make run``'s program: progress, what it leaves, and what it says when a notebook fails."""

import json
import os
import sys

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import machine, setup
from tools import run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHONPATH", str(run.ROOT))
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def write(folder, name, *sources):
    cells = [new_markdown_cell("# Title"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), folder / "notebooks" / name)


def test_progress_and_executed_notebook(folder, capsys):
    write(folder, "01_a.ipynb", "x = 20", "x + 1")
    write(folder, "02_b.ipynb", "import os; os.path.basename(os.getcwd())")
    assert run.main([]) == 0
    out = capsys.readouterr().out
    assert "[1/2] 01_a.ipynb" in out and "cell  2/2  x + 1" in out and "[2/2] 02_b.ipynb" in out
    executed = nbformat.read(folder / "results" / "01_a.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "21"
    elsewhere = nbformat.read(folder / "results" / "02_b.ipynb", as_version=4)
    assert elsewhere.cells[-1].outputs[0].data["text/plain"] == "'notebooks'"


def test_relative_results_folder_is_one_folder(folder, monkeypatch):
    monkeypatch.setattr(setup, "ROOT", folder)
    monkeypatch.setenv("RESULTS_DIR", "mine")
    write(folder, "01_a.ipynb", "from helpers import setup; print(setup.results_dir())")
    assert run.main([]) == 0
    executed = nbformat.read(folder / "mine" / "01_a.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text.strip() == str(folder / "mine")


def test_names_choose_notebooks(folder, capsys):
    write(folder, "01_a.ipynb", "1")
    write(folder, "02_b.ipynb", "2")
    assert run.main(["02"]) == 0
    assert "01_a" not in capsys.readouterr().out
    assert run.main(["07"]) == 2
    assert "begins with 07" in capsys.readouterr().err


def test_a_failing_cell_is_one_sentence_and_what_ran_is_saved(folder, capsys):
    write(folder, "01_a.ipynb", "print('before')", "from helpers.errors import DeviceError; raise DeviceError('no GPU: use the CPU.')", "3")
    write(folder, "02_b.ipynb", "1")
    assert run.main([]) == 1
    captured = capsys.readouterr()
    assert "01_a.ipynb stopped: DeviceError: no GPU: use the CPU." in captured.err and "Traceback" not in captured.err
    assert "02_b" not in captured.out
    executed = nbformat.read(folder / "results" / "01_a.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "before\n" and not executed.cells[3].outputs


@pytest.mark.parametrize("alone", [True, False])
def test_a_kernel_that_dies(folder, capsys, alone):
    """An ordinary one, and a copy."""
    write(folder, "01_a.ipynb", "import os; os._exit(9)")
    if not alone:
        write(folder, "02_b.ipynb", "1")
    assert run.main([]) == 1
    captured = capsys.readouterr()
    assert "01_a.ipynb stopped: its kernel died" in captured.err and "02_b" not in captured.out


KERNEL = """
import json, os, sys
here = {"torch": "torch" in sys.modules, "pid": os.getpid(), "argv": sys.argv[0], "folder": os.getcwd(), "parent": os.getppid()}
print(json.dumps(here | {"left": "left_by_a_notebook" in globals()}))
left_by_a_notebook = True
"""


def told(path):
    return json.loads(nbformat.read(path, as_version=4).cells[1].outputs[0].text)


def test_kernels_of_several_notebooks_are_copies_and_share_nothing(folder, monkeypatch):
    for name in ("01_a.ipynb", "02_b.ipynb"):
        write(folder, name, KERNEL, "!echo from a shell")
    assert run.main([]) == 0
    first, second = (told(folder / "results" / name) for name in ("01_a.ipynb", "02_b.ipynb"))
    assert first["torch"] and second["torch"] and not second["left"]
    assert first["pid"] != second["pid"] and first["parent"] == second["parent"] != os.getpid()
    assert {first["folder"]} == {str(folder / "notebooks")} and "ipykernel" in first["argv"]
    executed = nbformat.read(folder / "results" / "02_b.ipynb", as_version=4)
    assert "from a shell" in executed.cells[2].outputs[0].text
    assert not psutil.pid_exists(first["parent"]) and not psutil.pid_exists(second["pid"])
    monkeypatch.setattr(machine, "gpus", lambda: ["a GPU"])  # beside one, each kernel is started anew
    assert run.main([]) == 0
    first, second = (told(folder / "results" / name) for name in ("01_a.ipynb", "02_b.ipynb"))
    assert not first["torch"] and first["parent"] == os.getpid()


@pytest.mark.parametrize("python", ["/opt/gone/bin/python", "/bin/false"])
def test_a_kernel_of_another_python_is_not_taken(folder, monkeypatch, python):
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    write(folder, "01_a.ipynb", "import sys; sys.executable")
    assert run.main([]) == 0
    executed = nbformat.read(folder / "results" / "01_a.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].data["text/plain"] == repr(sys.executable)


def test_a_kernel_that_does_not_start_is_a_sentence(folder, capsys, monkeypatch):
    write(folder, "01_a.ipynb", "1")
    (folder / "ipykernel_launcher.py").write_text("raise ImportError('no ipykernel')")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{run.ROOT}")
    assert run.main([]) == 1
    said = capsys.readouterr().err
    assert f"the kernel of {sys.executable} does not start" in said and "Traceback" not in said.split("01_a.ipynb stopped")[1]


def test_unknown_tier(folder, capsys, monkeypatch):
    write(folder, "01_a.ipynb", "1")
    monkeypatch.setenv("TIER", "huge")
    assert run.main([]) == 2
    assert "no tier 'huge'" in capsys.readouterr().err
