"""Environments beside this one are built, called and refused in one sentence; the article's stack computes what today's does.

The first part builds a real, tiny environment with uv, offline, from a wheel made here. The last part needs the article's stack itself:
it runs where that is built, or where RUN_ARTICLE_STACK=1 lets it be built.
"""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from dataclasses import replace

import psutil
import pytest
import torch

from helpers import ROOT, ledger, loading, machine, setup, timing
from helpers.engines import old_stack, timed
from helpers.engines.old_stack import Environment
from helpers.errors import CheckpointError, NotEnoughMemoryError, PackagesError, PromptError
from helpers.models import catalogue, choose
from helpers.process import ProcessError

PROGRAM = """
import os, signal, sys
from helpers import process
from helpers.errors import PromptError

def work(job):
    print("this is no answer")
    if job == "refuse":
        raise PromptError("The prompt is empty: give one.")
    if job == "fail":
        raise KeyError("no such key")
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "abort":
        os.abort()
    if job == "garbage":
        os.write(1, (process.MARK + '{"cut off').encode())
        os._exit(0)
    if job == "leave":
        print("no more", file=sys.stderr, flush=True)
        os._exit(3)
    if job == "sleep":
        signal.pause()
    return {"job": job, "python": sys.executable, "path": sys.path, "hub": os.environ["HF_HUB_OFFLINE"]}
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with the wheel of "tiny", versions 1.0 and 2.0, whose module is PROGRAM."""
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        information = f"tiny-{version}.dist-info"
        with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr("tiny.py", PROGRAM)
            archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
            archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{information}/RECORD", "")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, wheels, tmp_path_factory, request):
    """uv may use the wheels made here and nothing else; the tests of the real stack see the machine as it is."""
    if "stack" not in request.fixturenames:
        settings = {"UV_OFFLINE": "1", "UV_FIND_LINKS": wheels, "UV_CACHE_DIR": tmp_path_factory.getbasetemp() / "uv", "UV_PYTHON_DOWNLOADS": "never"}
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))


@pytest.fixture
def tiny(tmp_path):
    """An environment that is not built yet."""
    (tmp_path / "tiny.txt").write_text("# a comment\ntiny==1.0\n")
    return Environment(tmp_path / "environment", tmp_path / "tiny.txt", sys.executable)


@pytest.fixture
def built(tiny):
    tiny.build()
    return tiny


def fails(kind, words, action, *arguments, **options):
    with pytest.raises(kind, match=words) as error:
        action(*arguments, **options)
    assert "\n" not in str(error.value)


def test_built_once_and_called(tiny, capsys, monkeypatch):
    assert not tiny.ready and "Not on this machine" in tiny.about()
    fails(PackagesError, "no finished environment", tiny.call, "tiny.work", 1)
    tiny.build()
    assert tiny.packages == ["tiny==1.0"] and "1 packages in" in capsys.readouterr().out
    before = tiny.executable.lstat()
    tiny.build()
    assert tiny.executable.lstat() == before and not capsys.readouterr().out
    monkeypatch.setenv("PATH", "")  # uv is not needed any more
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    answer = tiny.call("tiny.work", {"text": "é ⟦ ⟧", "none": None})
    assert answer["job"] == {"text": "é ⟦ ⟧", "none": None} and answer["hub"] == "1"
    assert answer["python"] == str(tiny.executable) and "/somewhere/else" not in answer["path"]
    assert not any(sys.prefix in part for part in answer["path"] if "site-packages" in part), "it sees our packages"


def test_an_interrupted_build_is_not_taken_for_a_finished_one(built):
    mark = built.folder / "ready.json"
    for damaged in (mark.read_bytes()[:20], b"[]", None):
        mark.unlink() if damaged is None else mark.write_bytes(damaged)
        assert not built.ready
    built.build()
    assert built.ready and built.call("tiny.work", 1)["job"] == 1


def test_a_python_that_was_removed_is_noticed(built):
    built.executable.unlink()
    assert not built.ready
    built.build()
    assert built.ready


def test_a_changed_pin_builds_again_and_a_comment_does_not(built):
    built.requirements.write_text("# another comment\ntiny==1.0\n")
    assert built.ready
    built.requirements.write_text("tiny==2.0\n")
    assert not built.ready
    built.build()
    assert built.packages == ["tiny==2.0"]


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        ("refuse", PromptError, "^The prompt is empty: give one.$"),
        ("fail", ProcessError, "could not do its job. KeyError: 'no such key'"),
        ("kill", ProcessError, "was killed, most likely because the memory ran out"),
        ("abort", ProcessError, f"died of signal {int(signal.SIGABRT)} and gave no answer"),
        ("garbage", ProcessError, """is no JSON, it begins '{"cut off'"""),
        ("leave", ProcessError, "ended with status 3 and gave no answer: no more"),
    ],
)
def test_a_process_without_an_answer(shared, job, kind, words):
    fails(kind, words, shared.call, "tiny.work", job)


@pytest.fixture(scope="module")
def shared(wheels, tmp_path_factory):
    """The tiny environment, built once for the tests that only call it."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "tiny.txt").write_text("tiny==1.0\n")
    environment = Environment(folder / "environment", folder / "tiny.txt", sys.executable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_OFFLINE", "1")
        patch.setenv("UV_FIND_LINKS", str(wheels))
        environment.build()
    return environment


def test_a_process_that_never_answers_is_stopped(shared):
    fails(ProcessError, "gave no answer within 1 s and was stopped", shared.call, "tiny.work", "sleep", timeout=1)


def test_a_module_that_is_not_there(shared):
    fails(ProcessError, "could not do its job. ModuleNotFoundError: No module named .nowhere", shared.call, "nowhere.work", 1)


def test_missing_uv(tmp_path):
    """A Python without uv and without pip to add it, and no uv on PATH."""
    venv.create(tmp_path / "bare", with_pip=False)
    program = "from helpers.engines import old_stack\ntry:\n    old_stack.uv()\nexcept old_stack.PackagesError as error:\n    print(error)"
    command = [tmp_path / "bare" / "bin" / "python", "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("uv, which builds the environment, is missing. ")


def test_uv_on_path_comes_first(tmp_path, monkeypatch):
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert old_stack.uv() == str(tmp_path / "uv")
    monkeypatch.setenv("PATH", "")
    assert os.path.basename(old_stack.uv()).startswith("uv") and str(tmp_path) not in old_stack.uv()


def test_missing_python(tiny):
    fails(
        PackagesError,
        "no environment with Python 3.99 .No interpreter found.*install that Python, or let uv fetch it.*run this cell again",
        replace(tiny, python="3.99").build,
    )
    assert not tiny.folder.exists()


def test_no_room_on_the_disk(tiny):
    fails(NotEnoughMemoryError, "needs 1000000000.0 GB and the disk of .* has .* GB free: make room", replace(tiny, size=1e18).build)
    assert not tiny.folder.exists()


def test_no_room_on_the_disk_of_the_cache(tiny, monkeypatch):
    """A notebook's kernel asks for colours, and the folder's name must be read without them."""
    cache = os.environ["UV_CACHE_DIR"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(machine, "disk", lambda place: 1.0 if str(place) == cache else 1e12)
    fails(NotEnoughMemoryError, f"the disk of {re.escape(cache)} has 0.0 GB free", replace(tiny, size=2.0).build)


def test_a_platform_s_constraint_is_not_ours(tiny, tmp_path, monkeypatch):
    (tmp_path / "constraint.txt").write_text("tiny==2.0\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "constraint.txt"))
    tiny.build()
    assert tiny.packages == ["tiny==1.0"]


def test_a_folder_with_something_else_is_left_alone(tiny):
    tiny.folder.mkdir()
    (tiny.folder / "thesis.txt").write_text("mine")
    fails(PackagesError, "holds something else", tiny.build)
    assert (tiny.folder / "thesis.txt").read_text() == "mine"


def test_a_package_that_is_nowhere(tiny):
    tiny.requirements.write_text("tiny==3.0\n")
    fails(PackagesError, "not finished .No solution found.*tiny==3.0.*run this cell again", tiny.build)
    assert not tiny.ready


@pytest.fixture
def stalling(monkeypatch, wheels):
    """A package index on this machine that stops in the middle of a wheel; once ``hold`` is set, it breaks off there."""

    class Index(http.server.BaseHTTPRequestHandler):
        hold, asked = threading.Event(), threading.Event()

        def do_GET(self):
            page = b'<a href="/tiny-1.0-py3-none-any.whl" data-core-metadata="true">tiny-1.0-py3-none-any.whl</a>'
            wheel = self.path.endswith(".whl")
            if self.path.endswith(".metadata"):  # so that uv asks for the wheel only to install it
                page = b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if wheel else "text/html")
            self.send_header("Content-Length", str(5_000_000 if wheel else len(page)))
            self.end_headers()
            self.wfile.write((wheels / "tiny-1.0-py3-none-any.whl").read_bytes()[:300] if wheel else page)
            self.wfile.flush()
            if wheel:
                self.asked.set()
                self.hold.wait(60)
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("UV_OFFLINE", "UV_FIND_LINKS"):
        monkeypatch.delenv(name)
    address = f"http://127.0.0.1:{server.server_port}/simple"
    for name, value in {"UV_DEFAULT_INDEX": address, "UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    yield Index
    Index.hold.set()
    server.shutdown()
    server.server_close()


def test_a_network_that_breaks_in_the_middle(tiny, stalling):
    stalling.hold.set()
    fails(PackagesError, "is not finished .Failed to download .tiny==1.0.*check the network and the room on the disk, and run this cell again", tiny.build)
    assert stalling.asked.is_set() and not tiny.ready


def test_a_reader_who_interrupts(tiny, stalling):
    """A real process with a real interrupt while uv waits for the rest of a wheel; uv is gone afterwards."""
    program = (
        f"from helpers.engines import old_stack\nfrom pathlib import Path\ntry:\n    old_stack.Environment(Path({str(tiny.folder)!r}), Path({str(tiny.requirements)!r}),"
        f" {sys.executable!r}).build()\nexcept old_stack.PackagesError as error:\n    print(error)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert stalling.asked.wait(60)
    time.sleep(0.2)
    children = psutil.Process(process.pid).children()
    assert [child.name() for child in children] == ["uv"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "Interrupted: what is complete stays in uv's cache. Run the cell again to go on." and process.returncode == 0
    assert not children[0].is_running() and not tiny.ready


def test_where_the_stack_lives(monkeypatch, tmp_path):
    monkeypatch.delenv("ARTICLE_STACK_DIR", raising=False)
    assert old_stack.environment().folder == ROOT / ".article-stack"
    monkeypatch.setenv("ARTICLE_STACK_DIR", "mine")
    assert old_stack.environment().folder == ROOT / "mine"
    monkeypatch.setenv("ARTICLE_STACK_DIR", str(tmp_path))
    assert old_stack.environment().folder == tmp_path and not old_stack.environment().ready
    assert "downloads 3.0 GB and takes 5.5 GB" in old_stack.environment().about()


def test_a_gpu_that_came_after_the_stack(monkeypatch):
    assert old_stack.too_new("cpu") == ""
    monkeypatch.setattr(machine, "get_device", lambda device: device)
    for capability, words in {(7, 5): "^$", (9, 0): "^$", (10, 0): r"capability 10\.0.*none above 9\.0", (12, 0): r"12\.0"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert re.search(words, old_stack.too_new("cuda:0")), capability


def test_git_does_not_see_it():
    done = subprocess.run(["git", "check-ignore", ".article-stack/bin/python"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 or not (ROOT / ".git").exists()


def test_only_what_auto_gptq_reads_is_sent_there(tmp_path):
    fails(CheckpointError, "unquantised weights: this step needs GPTQ ones", old_stack.make_job, choose.get_step(2))
    shutil.copytree(catalogue.CHECKPOINTS / "small-gptq", tmp_path / "second")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (tmp_path / "second" / "config.json").write_text(json.dumps(config))
    fails(CheckpointError, "second file format.*every zero point wrong by one", old_stack.make_job, choose.get_step(3, checkpoint=str(tmp_path / "second")))
    (tmp_path / "second" / "model.safetensors").write_bytes(b"cut off")
    fails(CheckpointError, "cut off or damaged", old_stack.make_job, choose.get_step(3, checkpoint=str(tmp_path / "second")))


def test_biases_become_zero_and_nothing_else_may_be_missing():
    import torch

    layer = torch.nn.Module()
    layer.register_buffer("bias", torch.tensor([float("nan"), 1.0, float("inf")]))
    model = torch.nn.ModuleDict({"q": layer})
    assert old_stack.fill_biases(model, ["q.bias"]) == 2 and layer.bias.tolist() == [0, 0, 0]
    fails(CheckpointError, "lacks 1 tensors, q.qweight for one", old_stack.fill_biases, model, ["q.bias", "q.qweight"])


# The article's stack itself


@pytest.fixture(scope="session")
def stack():
    """The article's stack, built at most once."""
    environment = old_stack.environment()
    if not environment.ready:
        if os.environ.get("RUN_ARTICLE_STACK") != "1":
            pytest.skip(f"{environment.about()} RUN_ARTICLE_STACK=1 builds it.")
        environment.build()
    return environment


@pytest.fixture(scope="session")
def answers(stack):
    """{step number: (Step, answer)}; the processes find no network, no uv and no package of ours."""
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "PATH": ""}
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        for number in (3, 4):
            step = choose.get_step(number)
            job = old_stack.make_job(step, ("float16", "float32"), "cpu")
            for name, value in nowhere.items():
                patch.setenv(name, value)
            found[number] = step, old_stack.ask(stack, job)
            patch.undo()
    return found


def test_it_is_the_pinned_stack(stack, answers):
    for _, answer in answers.values():
        assert answer["versions"] == setup.pins(old_stack.REQUIREMENTS) and answer["python"].startswith("3.11.")
        assert all(run["kernel"].startswith("auto_gptq.nn_modules.qlinear.") for run in answer["runs"].values())
    assert "auto-gptq==0.7.1" in stack.packages and setup.installed("auto-gptq") is None


@pytest.mark.parametrize("number", [3, 4])
def test_both_stacks_compute_the_same(answers, number):
    """All in float32, with the kernel that unpacks: the same tokens, and logits equal but for the last digits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    step, answer = answers[number]
    run = answer["runs"]["float32"]
    with loading.quiet():
        arguments = loading.load_arguments(replace(step, kernel="torch"), "cpu") | {"dtype": torch.float32}
        model, tokenizer = AutoModelForCausalLM.from_pretrained(**arguments), AutoTokenizer.from_pretrained(step.checkpoint)
    for layer in model.modules():
        if hasattr(layer, "scales"):
            layer.scales = layer.scales.float()
    _, new = timing.generate_once(model, tokenizer)
    assert new == run["timing"].token_ids
    ids = torch.cat([timing.tokenise(model, tokenizer), torch.tensor([new])], 1)[:, :-1]
    with torch.no_grad():
        ours = model(ids).logits[0]
    theirs = torch.tensor(run["logits"])
    assert ours.shape == theirs.shape and theirs.abs().max() > 10
    assert (ours - theirs).abs().max() < 1e-4
    half = torch.tensor(answer["runs"]["float16"]["logits"])[: run["timing"].prompt_tokens]
    assert 0 < (half - theirs[: len(half)]).abs().max() < 0.1


def test_timing_came_through(answers):
    for _, answer in answers.values():
        for run in answer["runs"].values():
            result = run["timing"]
            assert len(result.warm) == timing.REPEATS and result.prompt == timing.PROMPT and len(result.token_ids) == timing.NEW_TOKENS
            assert all(call.wall >= call.ttft > 0 and call.cpu_total > 0 for call in [result.cold, *result.warm])
            assert result.median("tpot") > 0 and run["empty_biases"] == 28 and sum(run["operations"].values()) > 0


def test_rows_land_in_the_ledger(answers, tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    path = tmp_path / "ledger.jsonl"
    for step, answer in answers.values():
        row = old_stack.make_row(step, answer)
        ledger.append(row, path)
        assert ledger.read(path, engine=None)[-1] == row
        assert row["title"] == f"{step.title} (2024 stack)" and row["versions"]["torch"] == "2.2.1" and row["dtype"] == "float16"
        assert row["weight_bytes"] == step.bytes and row["device"] == answer["device"]
        assert [each["title"] for each in timed.beside(step)] == [row["title"]]
    assert ledger.read(path) == [] and len(ledger.read(path, engine=old_stack.ENGINE)) == 2


def test_a_wrong_checkpoint_is_said_by_the_process_too(stack):
    job = {"folder": str(catalogue.CHECKPOINTS / "small"), "device": "cpu", "dtypes": ["float16"], "prompt": "x", "new_tokens": 1}
    fails(CheckpointError, "unquantised weights: this step needs GPTQ ones", old_stack.ask, stack, job)


def test_a_kind_of_model_that_came_later(stack, tmp_path):
    folder = shutil.copytree(catalogue.CHECKPOINTS / "small-gptq", tmp_path / "later")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    job = {"folder": str(folder), "device": "cpu", "dtypes": ["float16"], "prompt": "x", "new_tokens": 1}
    fails(CheckpointError, "4.38.2. know no model of the kind qwen3: .*choose a Llama", old_stack.ask, stack, job)
