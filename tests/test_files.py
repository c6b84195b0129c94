"""What is written is there whole or not at all, and two programs do not write the same at once."""

import multiprocessing
import os
import signal
import time

import pytest

from helpers import machine
from helpers.errors import DiskError, NotEnoughMemoryError
from helpers.models import files


def slowly(path, counter):
    """Write a folder in a third of a second, unless it is there; note that it was written."""
    with files.whole(path, unless=path.is_dir) as partial:
        if partial:
            partial.mkdir()
            time.sleep(0.3)
            (partial / "content").write_text("all of it")
            with open(counter, "a") as file:
                file.write("x")


def test_two_programs_write_one_after_the_other_and_the_second_finds_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=slowly, args=(tmp_path / "folder", tmp_path / "counter")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "x" and sorted(path.name for path in tmp_path.iterdir()) == ["counter", "folder"]


def test_who_holds_the_lock_and_dies_keeps_nobody_waiting(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=slowly, args=(tmp_path / "folder", tmp_path / "counter"))
    worker.start()
    while not list(tmp_path.glob("folder.*.partial")):
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    slowly(tmp_path / "folder", tmp_path / "counter")
    assert (tmp_path / "folder" / "content").read_text() == "all of it" and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "figures.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(error), files.whole(path) as partial:
        partial.write_text("{half")
        raise error
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n' and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(DiskError, match="x could not be written, the disk is full: make room, or set HERE to a folder on another disk; then run this again"):
        with files.whole(tmp_path / "x", setting="HERE"):
            raise OSError(28, "full")
    monkeypatch.setattr(machine, "disk", lambda _: 10)
    with pytest.raises(NotEnoughMemoryError, match="takes 1,000.0 MB and 0.0 MB of the disk are free"), files.whole(tmp_path / "x", need=1e9):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, words",
    [(OSError(122, "x"), "your quota on the disk is used up: make room"), (OSError("I/O error: Disk quota exceeded (os error 122)"), "your quota"),
     (RuntimeError("PytorchStreamWriter failed: No space left on device"), "the disk is full"), (OSError("80 requested and 12 written"), "took only a part"),
     (OSError(30, "x"), "read-only: set HERE to a folder that you may write to"), (OSError(13, "x"), "you may not write there")],
)  # fmt: skip
def test_what_a_disk_says_becomes_a_sentence(tmp_path, error, words):
    with pytest.raises(DiskError, match=words), files.whole(tmp_path / "x", setting="HERE"):
        raise error
    with pytest.raises(DiskError, match=words), files.whole(tmp_path / "x", setting="HERE"):
        try:
            raise error
        except Exception as cause:
            raise ValueError("the library's own words") from cause


@pytest.mark.parametrize("error", [OSError(2, "No such file", "/somewhere/source"), OSError(13, "no", "/somewhere/source"), ValueError("x"), KeyError("y")])
def test_other_errors_pass_and_are_not_blamed_on_the_disk(tmp_path, error):
    with pytest.raises(type(error)) as raised, files.whole(tmp_path / "x"):
        raise error
    assert raised.value is error and not list(tmp_path.iterdir())
