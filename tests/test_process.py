"""A function is called in a process of its own, a new one or a copy: the same answers, the same errors, nothing shared."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from helpers import ROOT, machine, process
from helpers.errors import PromptError
from helpers.process import ProcessError

HERE = os.path.dirname(__file__)
KEPT = []  # what an earlier copy left here


def work(job):
    print("this is no answer")
    os.system("echo nor this")
    if job == "refuse":
        raise PromptError("The prompt is empty: give one.")
    if job == "fail":
        return {}["no such key"]
    if job in ("kill", "abort"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "abort": signal.SIGABRT}[job])
    if job == "garbage":
        os.write(1, f'{process.MARK}{{"cut off'.encode())
        os._exit(0)
    if job == "leave":
        sys.exit("no more")
    if job == "sleep":
        time.sleep(600)
    KEPT.append(job)
    return {"job": job, "pid": os.getpid(), "kept": KEPT, "folder": os.getcwd(), "input": sys.stdin.read()}


def about(modules):
    """What this process is: its peak of memory, threads, children's time, and which of ``modules`` it has imported."""
    found = {"peak": machine.peak_rss(), "threads": psutil.Process().num_threads(), "cpu": sum(os.times()[:4])}
    return found | {"modules": [name for name in modules if name in sys.modules], "cuda": "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()}


@pytest.fixture(params=["new", "copy"], scope="module")
def way(request):
    """process.call, and the same of a Copies that has imported this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)
        if request.param == "new":
            yield process
        else:
            with process.Copies(("test_process",)) as copies:
                if not copies.ready():
                    pytest.skip("no copies on this machine")
                yield copies


def test_an_answer(way):
    answers = [way.call("test_process.work", job) for job in ({"text": "é ⟦ ⟧", "none": None}, None)]
    assert [answer["job"] for answer in answers] == [{"text": "é ⟦ ⟧", "none": None}, None]
    assert len({os.getpid(), *(answer["pid"] for answer in answers)}) == 3
    for answer in answers:
        assert answer["kept"] == [answer["job"]] and answer["folder"] == str(ROOT) and answer["input"] == ""


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        ("refuse", PromptError, "^The prompt is empty: give one.$"),
        ("fail", ProcessError, "^The worker could not do its job. KeyError: 'no such key'$"),
        ("kill", ProcessError, "^The worker was killed, most likely because the memory ran out"),
        ("abort", ProcessError, f"^The worker died of signal {int(signal.SIGABRT)} and gave no answer"),
        ("garbage", ProcessError, """is no JSON, it begins '{"cut off'"""),
        ("leave", ProcessError, "^The worker ended with status 1 and gave no answer: no more. Run the cell again"),
    ],
)
def test_no_answer(way, job, kind, words):
    with pytest.raises(kind, match=words):
        way.call("test_process.work", job, "The worker")
    assert way.call("test_process.work", 1)["job"] == 1  # the next one is not disturbed


def test_no_answer_in_time(way):
    with pytest.raises(ProcessError, match="gave no answer within 1 s and was stopped"):
        way.call("test_process.work", "sleep", timeout=1)
    with pytest.raises(ProcessError, match="No module named .nowhere"):
        way.call("nowhere.work", 1)


def test_an_interrupted_call_leaves_no_process(way, monkeypatch):
    place, name = (process.Copy, "wait") if way is not process else (subprocess.Popen, "communicate")
    real, before = getattr(place, name), set(psutil.Process().children(recursive=True))

    def interrupted(*_, **__):
        monkeypatch.setattr(place, name, real)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        way.call("test_process.work", "sleep")
    assert way.call("test_process.work", 1)["job"] == 1
    assert not [child for child in psutil.Process().children(recursive=True) if child not in before and child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def copies(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE)
    with process.Copies(("test_process",)) as copies:
        if not copies.ready():
            pytest.skip("no copies on this machine")
        yield copies


def test_a_copy_is_no_older_than_its_original(monkeypatch):
    """It has the libraries and none of their threads, no time behind it, and a peak of memory that is not its caller's."""
    from helpers.benchmark.job import LIBRARIES

    monkeypatch.setenv("PYTHONPATH", HERE)
    names, block = ["torch", "transformers.modeling_utils", "gptqmodel", "bitsandbytes"], bytearray(b"x") * 2**31
    with process.Copies((*LIBRARIES, "test_process")) as copies:
        if not copies.ready():
            pytest.skip("no copies on this machine")
        found = copies.call("test_process.about", names)
    del block
    assert found["modules"] == names[:2] and not found["cuda"] and found["cpu"] < 1
    assert found["peak"] < 1e9, "the caller's peak of memory"
    assert found["threads"] <= 2  # its own, and one of NumPy's BLAS


def test_where_no_copy_can_be_made(monkeypatch, copies):
    monkeypatch.setattr(machine, "gpus", lambda: ["a GPU"])
    assert not process.Copies(()).ready()
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", HERE)
    os.kill(copies.server.pid, signal.SIGKILL)
    copies.server.wait()
    assert not copies.ready() and copies.call("test_process.work", 1)["job"] == 1  # a new process then
    with process.Copies(("nowhere",)) as broken:
        assert broken.call("test_process.work", 2)["job"] == 2


def test_a_copy_ends_with_its_original_and_its_caller(copies):
    copy = copies.start("test_process.work", "sleep")
    assert copy.poll() is None and psutil.pid_exists(copy.pid)
    copies.server.stdin.close()
    assert copy.wait(20) == -signal.SIGKILL == copy.poll() and copies.server.wait(20) == 0 and not psutil.pid_exists(copy.pid)
