"""The hub tier through the real Hub client, against a server on the loopback interface that serves the embedded checkpoints.

Each program runs in a process of its own, because huggingface_hub reads its settings when it is imported.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
from support.hub import COMMIT, Hub

from helpers import ROOT
from helpers.engines import llamacpp
from helpers.models import catalogue, choose
from helpers.models.catalogue import CHECKPOINTS

META, MIRROR = "meta-llama/Llama-2-7b-hf", "NousResearch/Llama-2-7b-hf"
CHAT, LARGE = "TheBloke/Llama-2-7b-Chat-GPTQ", "TheBloke/Llama-2-13B-GPTQ"
ARTICLE = {META: CHECKPOINTS / "small", CHAT: CHECKPOINTS / "small-gptq", LARGE: CHECKPOINTS / "large-gptq"}
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]

MEASURE = """
import json, sys
from helpers import ledger, loading, timing
from helpers.models import catalogue, choose
from helpers.errors import CourseError

found = {}
for number in map(int, sys.argv[1:]):
    try:
        step = choose.get_step(number, tier="hub")
        model, tokenizer = loading.load(step)
        row = ledger.make_row(step, timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1), model)
        stored = loading.read_tensor(step, "model.norm.weight")
        found[number] = {k: row[k] for k in ("checkpoint", "revision", "layer_class", "note", "tier", "title")} | {"norm": len(stored)}
    except CourseError as error:
        found[number] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""
FETCH = """
import json, sys
from huggingface_hub import constants
from helpers.models import catalogue, choose, files, hub
from helpers.errors import CourseError

constants.DOWNLOAD_CHUNK_SIZE = 2**16  # what comes in pieces of 10 MB is written in smaller ones: the shards here are small
revision = sys.argv[1] if len(sys.argv) > 1 else "main"
try:
    step = choose.get_step(2, tier="hub", revision=revision)
    hub.fetch(step)
    found = {"checkpoint": step.checkpoint, "note": step.note, "complete": files.check_folder(step.folder, "bf16") is None}
except CourseError as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""


def settings(url, home, **more):
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUB_STRICT", "HF_HUB_CACHE"):
        environment.pop(name, None)
    return environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "2"} | more


def run(program, url, home, *arguments, **more):
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=settings(url, home, **more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "HF_TOKEN" not in more or more["HF_TOKEN"] not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fails(url, home, words, *arguments, **more):
    """The program ends in one sentence with ``words``; returns it."""
    found = run(FETCH, url, home, *arguments, **more)
    assert "error" in found, found
    assert words in found["error"] and "\n" not in found["error"] and "  " not in found["error"], found["error"]
    return found["error"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub-cache")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The small checkpoint in three shards, as Llama-2's repository has it in two."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded") / "small"
    AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "small", dtype="bfloat16").save_pretrained(folder, max_shard_size="4MB")
    for file in (CHECKPOINTS / "small").glob("*token*"):
        shutil.copy(file, folder)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == SHARDS
    return {META: folder}


def test_hub_tier_with_access(home):
    with Hub(ARTICLE) as hub:
        rows = run(MEASURE, hub.url, home, 2, 3)
        assert rows["2"] == {
            "checkpoint": META, "revision": COMMIT, "layer_class": "Linear", "note": "", "tier": "hub", "title": "7B bf16", "norm": 256,
        }  # fmt: skip
        assert rows["3"]["checkpoint"] == CHAT and rows["3"]["layer_class"] not in ("Linear", "Linear8bitLt")
        assert len(hub.fetched("model.safetensors")) == 2
        again = run(FETCH, hub.url, home)
        assert again["complete"] and len(hub.fetched("model.safetensors")) == 2  # nothing was fetched twice


def test_hub_tier_while_the_licence_is_pending(home):
    with Hub({MIRROR: CHECKPOINTS / "small"}, gated={META: "pending"}) as hub:
        rows = run(MEASURE, hub.url, home, 1, 3, HF_TOKEN="hf_valid")
    assert rows["1"]["checkpoint"] == MIRROR and rows["1"]["layer_class"] == "Linear8bitLt"
    assert f"{MIRROR} instead of {META}" in rows["1"]["note"] and "licence" in rows["1"]["note"] and "reviewed" in rows["1"]["note"]
    assert rows["3"]["error"].startswith(f"CheckpointError: {CHAT} cannot be read")


@pytest.mark.parametrize(
    "state, token, words",
    [
        ("licence", "", "you have no token"),
        ("licence", "hf_wrong", "is not valid: make a new one"),
        ("licence", "hf_valid", "licence is not accepted yet"),
        ("pending", "hf_valid", "still being reviewed"),
        ("rejected", "hf_valid", "was rejected"),
    ],
)
def test_gated_repository(tmp_path, state, token, words):
    """Each case has its sentence; the mirror takes over; strict mode and a pinned revision refuse it."""
    token = {"HF_TOKEN": token} if token else {}
    with Hub({MIRROR: CHECKPOINTS / "small"}, gated={META: state}) as hub:
        found = run(FETCH, hub.url, tmp_path, **token)
        assert found["checkpoint"] == MIRROR and found["complete"] and words in found["note"] and "Meta's licence applies" in found["note"]
        assert "no mirror takes its place" in fails(hub.url, tmp_path, words, HUB_STRICT="1", **token)
        fails(hub.url, tmp_path, words, COMMIT, **token)


def test_pinned_revision(tmp_path):
    with Hub(ARTICLE) as hub:
        assert run(FETCH, hub.url, tmp_path, COMMIT)["complete"]
        fails(hub.url, tmp_path, "no such revision", "f" * 40)


def test_no_network(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        fails(f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path, "cannot be reached")


def test_no_name_server(tmp_path):
    fails("http://hub.invalid", tmp_path, "cannot be resolved (DNS)")


def test_offline_setting(tmp_path):
    fails("http://127.0.0.1:9", tmp_path, "HF_HUB_OFFLINE is set", HF_HUB_OFFLINE="1")


def test_without_network_the_cache_will_do(tmp_path):
    with Hub(ARTICLE) as hub:
        run(FETCH, hub.url, tmp_path)
    found = run(MEASURE, hub.url, tmp_path, 2)["2"]  # the server is gone
    assert found["checkpoint"] == META and "from the cache on this disk" in found["note"]


@pytest.mark.parametrize(
    "status, words", [(403, "may not read it"), (404, "lacks a file"), (429, "asks you to wait 1 seconds"), (500, "HTTP 500"), (503, "HTTP 503")]
)
def test_lasting_refusal_in_the_middle(sharded, tmp_path, status, words):
    """The second shard is refused: the first stays, and a second run fetches the others only."""
    with Hub(sharded) as hub:
        hub.fail(SHARDS[1], status)
        assert "files are here and stay" in fails(hub.url, tmp_path, words)
        hub.faults.clear()
        assert run(FETCH, hub.url, tmp_path)["complete"] and len(hub.fetched(SHARDS[0])) == 1


@pytest.mark.parametrize("method, file", [("GET", "info"), ("GET", SHARDS[1]), ("HEAD", "config.json")])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_refusal(sharded, tmp_path, status, method, file):
    with Hub(sharded) as hub:
        hub.fail(file, status, times=1, method=method)
        assert run(FETCH, hub.url, tmp_path)["complete"]
        assert hub.faults[0][-1] == 0  # it did happen


def test_token_that_is_not_valid_does_not_close_open_repositories(tmp_path):
    with Hub(ARTICLE) as hub:
        found = run(FETCH, hub.url, tmp_path, HF_TOKEN="hf_expired")
    assert found["complete"] and found["checkpoint"] == META and "which needs none: your token" in found["note"]


def test_hub_that_never_answers(tmp_path):
    """Neither the survey nor a notebook waits for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "does not answer in time" in run(SURVEY, url, tmp_path)["online"]
        fails(url, tmp_path, "does not answer in time")


def test_connection_cut_once_goes_on_in_the_middle(sharded, tmp_path):
    with Hub(sharded) as hub:
        hub.fail(SHARDS[1], "cut", times=1)
        assert run(FETCH, hub.url, tmp_path)["complete"]
        first, second = hub.fetched(SHARDS[1])
        assert not first and second.startswith("bytes=")


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_connection_lost_for_good(sharded, tmp_path, how):
    """A second run asks for the rest of the shard only."""
    with Hub(sharded) as hub:
        hub.fail(SHARDS[1], how, times=1)
        hub.fail(SHARDS[1], "gone")
        fails(hub.url, tmp_path, "files are here and stay")
        hub.faults.clear()
        before = len(hub.fetched(SHARDS[1]))
        assert run(FETCH, hub.url, tmp_path)["complete"]
        again = hub.fetched(SHARDS[1])[before:]
        assert len(again) == 1 and again[0].startswith("bytes=") and again[0] != "bytes=0-"
        assert len(hub.fetched(SHARDS[0])) == 1


@pytest.mark.parametrize("how, words", [("damaged", "arrived damaged"), ("short", "wrong length")])
def test_wrong_bytes_are_thrown_away(sharded, tmp_path, how, words):
    with Hub(sharded) as hub:
        hub.fail(SHARDS[1], how)
        fails(hub.url, tmp_path, words)
        hub.faults.clear()
        assert run(FETCH, hub.url, tmp_path)["complete"] and len(hub.fetched(SHARDS[0])) == 1


def test_interrupted_in_the_middle(sharded, tmp_path):
    with Hub(sharded) as hub:
        hub.fail(SHARDS[1], "stall", times=1)
        variables = settings(hub.url, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="60")
        process = subprocess.Popen([sys.executable, "-c", FETCH], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not hub.fetched(SHARDS[1]):
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert "Interrupted: " in out and "files are here and stay" in out and "Traceback" not in err
        assert run(FETCH, hub.url, tmp_path)["complete"]
        assert hub.fetched(SHARDS[1])[-1].startswith("bytes=") and len(hub.fetched(SHARDS[0])) == 1


@contextmanager
def mounted(folder, *options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_too_small_is_said_before_the_first_byte(sharded, tmp_path):
    with mounted(tmp_path / "disk", "size=6m") as disk, Hub(sharded) as hub:
        fails(hub.url, disk, "still needs 0.0 GB")
        assert not hub.fetched(SHARDS[0])


def test_disk_that_fills_up_meanwhile(sharded, tmp_path):
    with mounted(tmp_path / "disk", "size=12m") as disk, Hub(sharded) as hub:
        fill = "from pathlib import Path; from helpers import machine; machine.disk = lambda path: 10**9\n"
        with open(disk / "others", "wb") as others:
            others.write(bytes(7_000_000))
        found = run(fill + FETCH, hub.url, disk)
        assert "the disk is full" in found["error"] and "files are here and stay" in found["error"]
        (disk / "others").unlink()
        assert run(FETCH, hub.url, disk)["complete"] and len(hub.fetched(SHARDS[0])) == 1


def test_read_only_cache(sharded, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk, Hub(sharded) as hub:
        subprocess.run(["mount", "-o", "remount,ro,size=90m", str(disk)], check=True)
        fails(hub.url, disk, "the cache cannot be used")


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"])
def test_a_place_below_a_file_names_the_variable_that_decides_it(tmp_path, name):
    (tmp_path / "file").write_text("")
    with Hub(ARTICLE) as hub:
        fails(hub.url, tmp_path, f"a file stands where a folder is needed: set {name} to a folder", **{name: str(tmp_path / "file" / "below")})


def images(path):
    """The outputs of an executed notebook that are pictures."""
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def test_the_notebooks_on_the_hub_tier_keep_the_token_secret(tmp_path):
    """Notebooks that load models, from the Hub, with a token: it reaches the server, and nothing that is printed, saved or started repeats it.

    08 loads what 01 and 02 load, and more. 06 starts processes of its own: one of them is started here in its place. 11 takes ready GGUF
    files, 12 exports the GPTQ checkpoint from the cache.
    """
    ready = tmp_path / "ready"
    for type in ("Q8_0", "Q4_0", "Q4_K_M"):
        llamacpp.write(CHECKPOINTS / "small", type, ready / f"llama-2-7b.{type}.gguf")
    canary, results, command_lines = "hf_canaryThatMustNotBeSeen", tmp_path / "results", set()
    twins = {choose.LIKE_FOR_LIKE[0]: CHECKPOINTS / "small-gptq", catalogue.VARIANTS["13b-bf16"].hub: CHECKPOINTS / "large", llamacpp.READY[META][0]: ready}
    with Hub(ARTICLE | twins, token=canary) as hub:
        environment = settings(hub.url, tmp_path / "home", HF_TOKEN=canary, TIER="hub", RESULTS_DIR=str(results), HF_HUB_DOWNLOAD_TIMEOUT="10")
        with open(tmp_path / "printed.txt", "w") as printed:
            programs = "tools.run 00 03 04 08 11 12", "tools.benchmark fp16 --rounds 1 --repeats 1 --warmups 0"
            line = " && ".join(f"{sys.executable} -m {program}" for program in programs)
            process = subprocess.Popen(line, shell=True, env=environment, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
            while process.poll() is None:
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        command_lines.add(path.read_bytes())
                time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "printed.txt").read_text()[-3000:]
        assert canary in hub.tokens
    *rows, measured = [json.loads(line) for line in (results / "ledger.jsonl").read_text().splitlines()]
    assert (measured["variant"], measured["tier"], measured["checkpoint"]) == ("fp16", "hub", META)
    quality = json.loads((results / "quality.json").read_text())["rows"]
    assert quality["3"]["checkpoint"] == choose.LIKE_FOR_LIKE[0] and not any(row["missing"] for row in quality.values())
    of_steps = [row for row in rows if "engine" not in row]
    assert [(row["step"], row["tier"], row["checkpoint"]) for row in of_steps] == [(3, "hub", CHAT), (4, "hub", LARGE), (1, "hub", META), (2, "hub", META)]
    assert {row["revision"] for row in of_steps} == {COMMIT}
    assert {(row["engine"], row["tier"]) for row in rows if "engine" in row} == {("llama.cpp", "hub"), ("onnxruntime", "hub")}
    seen = [path.read_bytes() for path in (*results.rglob("*"), tmp_path / "printed.txt") if path.is_file()]
    pictures = [data for path in results.glob("*.ipynb") for data in images(path)]
    assert len(pictures) > 5 and all(data.metadata["image/png"]["alt"] for data in pictures)
    assert len(seen) > 5 and command_lines and not any(canary.encode() in text for text in (*seen, *command_lines))


SURVEY = """
import json, sys
from helpers.models import choose
found = choose.survey()
found["gpus"] = []
print(json.dumps(found))
"""
LOGIN = """
import io, json, sys
import ipywidgets
from IPython.display import display
from helpers.models import hub

shown = []
import IPython.display
IPython.display.display = shown.append
hub.ask_for_token()
(field, button), answer = shown[0].children[0].children, shown[0].children[1]
token = sys.stdin.readline().strip()
found = []
for log_in in (button.click, lambda: field._handle_string_msg(field, {"event": "submit"}, [])):  # what a browser sends for the Enter key
    field.value, answer.value = token, ""
    log_in()
    found.append({"answer": answer.value, "left": field.value, "place": hub.token_place()})
print(json.dumps(found))
"""


def test_survey_of_the_hub(tmp_path):
    with Hub(ARTICLE, gated={META: "licence"}) as hub:
        found = run(SURVEY, hub.url, tmp_path)
        assert found["online"] == "" and "you have no token" in found["gated"] and found["speed"] > 1e5
        assert hub.fetched("model.safetensors") == ["bytes=0-7999999"]
        hub.gated.clear()
        found = run(SURVEY, hub.url, tmp_path, HF_TOKEN="hf_valid")
        assert found["gated"] == "" and found["token"] == "the environment variable HF_TOKEN"


@pytest.mark.parametrize(
    "token, words", [("hf_valid", "Logged in"), ("hf_wrong", "is not valid"), ("hf_wröng", "another sign that no token has: copy it again")]
)
def test_login_field(tmp_path, token, words):
    """By button and by key: the field hands the token to the Hub's library, forgets it, and says what came of it."""
    with Hub(ARTICLE) as hub:
        done = subprocess.run([sys.executable, "-c", LOGIN], env=settings(hub.url, tmp_path), input=token, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]):  # by the button, by the Enter key
        assert words in found["answer"] and found["left"] == ""
        assert found["place"] == ("the login saved on this disk" if token == "hf_valid" else None)


def test_kaggle_secret(tmp_path):
    """Kaggle's own module, which exists only there, is played by a file."""
    (tmp_path / "kaggle_secrets.py").write_text("class UserSecretsClient:\n    def get_secret(self, name):\n        return 'hf_valid'\n")
    program = "import sys; sys.path.insert(0, sys.argv[1])\n" + FETCH.replace("sys.argv[1] if len(sys.argv) > 1 else ", "")
    with Hub(ARTICLE, gated={}) as hub:
        found = run(program, hub.url, tmp_path / "home", tmp_path, KAGGLE_KERNEL_RUN_TYPE="Interactive")
        assert found["complete"] and hub.tokens == {"hf_valid"}
