"""Servers that start, answer and leave nothing behind; a client whose figures are right; and a sentence for each fault."""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import torch
from support.book import functions

from helpers import ROOT, loading
from helpers.engines import clients, serving
from helpers.engines import llamacpp as engine
from helpers.errors import CheckpointError, CourseError, UnknownFormatError
from helpers.models import choose, files
from helpers.models.catalogue import CHECKPOINTS
from helpers.timing import PROMPT

NEW = 12
row_of = functions("14", asdict=asdict)["row_of"]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_SERVING_KEY", "open sesame")


@pytest.fixture(scope="module")
def step():
    return choose.get_step(2)


@pytest.fixture(scope="module")
def file(step):
    return engine.file(step, "BF16")


@pytest.fixture(scope="module")
def llamacpp(file):
    with serving.llamacpp(file, 1, readers=4, api_keys=["open sesame"]) as server:
        server.endpoint = replace(server.endpoint, key_variable="TEST_SERVING_KEY")
        yield server


@pytest.fixture(scope="module")
def transformers(step):
    with serving.transformers(step, readers=4) as server:
        yield server


@pytest.fixture
def server(request):
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("server", ["llamacpp", "transformers"], indirect=True)


def measure(endpoint, prompts=None, concurrency=2, new_tokens=NEW, **options):
    return asyncio.run(clients.measure(endpoint, prompts or clients.prompts(6), concurrency, new_tokens, **options))


def gone(process):
    """Whether neither the process nor any of its group is left."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return process.poll() is not None
    return False


def is_over(pid):
    """Whether the process ``pid`` has ended (a zombie has: only nobody has asked for its status)."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# What a healthy server says


@both
def test_both_servers_write_what_generate_writes(server, step):
    """The same prompt alone, to the server, and to ``generate`` in this process."""
    model, tokenizer = loading.load(step)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    new = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
    answer = measure(server.endpoint, [PROMPT], 1).answers[0]
    assert answer.text == tokenizer.decode(new[0, ids.shape[1] :])
    assert answer.prompt_tokens == ids.shape[1]


@both
def test_every_answer_has_the_tokens_that_were_asked_for(server):
    """More of them than any of these prompts would get before an end of text: one token a piece, counted by the server."""
    run = measure(server.endpoint, concurrency=3, new_tokens=90)
    assert len(run.answers) == 6 and not run.problems
    assert {(answer.tokens, answer.pieces, len(answer.itl), answer.counted) for answer in run.answers} == {(90, 90, 89, True)}
    assert {answer.prompt for answer in run.answers} == set(clients.prompts(6))
    for answer in run.answers:
        assert answer.latency == pytest.approx(answer.ttft + sum(answer.itl)) and 0 <= answer.start < run.duration
    assert 0 < run.in_flight <= 3 and run.throughput == pytest.approx(540 / run.duration)


@both
def test_always_as_many_at_once_as_asked_for(server):
    for concurrency in (1, 3):
        run = measure(server.endpoint, concurrency=concurrency)
        spans = [(answer.start, answer.start + answer.latency) for answer in run.answers]
        assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) == concurrency


@both
def test_answers_are_written_together(server):
    assert measure(server.endpoint, clients.prompts(8), concurrency=4, new_tokens=60, timeout=600, limit=600).decoding >= 3


def test_without_batching_one_answer_follows_the_other(step):
    with serving.transformers(step, continuous=False) as server:
        run = measure(server.endpoint, clients.prompts(8), concurrency=4, new_tokens=20, timeout=600, limit=600)
    assert len(run.answers) == 8 and run.decoding <= 2  # 2 if the last token of one comes late


def test_a_chat_and_a_model_that_is_not_named(llamacpp):
    run = measure(replace(llamacpp.endpoint, chat=True, model=""))
    assert {answer.tokens for answer in run.answers} == {NEW}
    assert min(answer.prompt_tokens for answer in run.answers) > measure(llamacpp.endpoint).answers[0].prompt_tokens  # the roles' marks


def test_a_run_as_json_has_no_key_and_no_text(llamacpp):
    run = measure(llamacpp.endpoint)
    text = json.dumps(row_of(run), allow_nan=False)
    assert "sesame" not in text and run.answers[0].text not in text
    assert json.loads(text)["requests"] == 6 and "sesame" not in f"{run} {llamacpp.endpoint} {llamacpp}".replace(str(llamacpp.command), "")


@both
def test_a_server_computes_with_the_threads_that_were_chosen(server, step, monkeypatch):
    """Its process was told so; what the system counts of its work is what psutil's own counter says."""
    told = psutil.Process(server.process.pid).environ()
    assert told["OMP_NUM_THREADS"] == ("1" if server.name.startswith("llama.cpp") else str(choose.threads(step.shape)))
    before = sum(psutil.Process(server.process.pid).cpu_times()[:2])
    run = asyncio.run(server.measure(clients.prompts(6), 2, 60))
    after = sum(psutil.Process(server.process.pid).cpu_times()[:2])
    assert run.threads == server.threads == int(told["OMP_NUM_THREADS"])
    assert 0 < run.server_cpu <= after - before and 0 <= run.others <= psutil.cpu_count()
    assert "OMP_NUM_THREADS" not in set(serving.environment(None)) - set(os.environ)
    assert serving.environment(2)["OMP_NUM_THREADS"] == "2" and serving.environment(2)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("THREADS", "3")
    seen = []
    monkeypatch.setattr(serving, "_start", lambda *arguments: seen.append(arguments[7]))
    serving.transformers(step)
    assert seen == [3]


async def openai_s_client(endpoint, prompts, concurrency, new_tokens):
    """The same requests by OpenAI's client; returns (tokens, seconds that this process computed)."""
    import openai

    waiting, tokens, key = iter(prompts), 0, os.environ.get(endpoint.key_variable, "none")
    http = openai.DefaultAsyncHttpxClient(trust_env=False, headers={"Connection": "close"})

    async def reader(client):
        nonlocal tokens
        for prompt in waiting:
            what = {"model": endpoint.model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "extra_body": endpoint.extra}
            async for chunk in await client.completions.create(stream=True, stream_options={"include_usage": True}, **what):
                tokens += sum(bool(choice.text) for choice in chunk.choices)

    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=key, max_retries=0, http_client=http) as client:
        start = time.process_time()
        await asyncio.gather(*(reader(client) for _ in range(concurrency)))
        return tokens, time.process_time() - start


def test_the_client_computes_less_than_half_of_what_openai_s_does(llamacpp):
    """In turns, on one server: what this process computes for a token. (Times of the processor, so that other programs hardly count.)"""
    prompts, ours, theirs = clients.prompts(12), [], []
    for _ in range(3):
        run = measure(llamacpp.endpoint, prompts, 4, 90)
        ours.append(run.cpu / sum(answer.tokens for answer in run.answers))
        tokens, cpu = asyncio.run(openai_s_client(llamacpp.endpoint, prompts, 4, 90))
        assert tokens == 12 * 90
        theirs.append(cpu / tokens)
    assert 0 < min(ours) < 0.5 * min(theirs)
    assert run.client_share == pytest.approx(run.cpu / len(os.sched_getaffinity(0)) / run.duration) and 0 < run.client_share < 1


# Figures, against another calculation


def answers(*lists):
    """Answers whose pieces came at these times after the start, all sent at 0."""
    return [
        clients.Answer(0.0, times[0], times[-1], [b - a for a, b in zip(times, times[1:])], len(times), len(times), True, 3, f"prompt {n}", "text")
        for n, times in enumerate(lists)
    ]


def test_percentiles_throughput_and_littles_law():
    assert clients.Run(32, duration=2.0, cpu=0.5, server_cpu=1.0, others=0.2).free == pytest.approx(len(os.sched_getaffinity(0)) - 0.75 - 0.2)
    run = clients.Run(2, answers([0.1, 0.2, 0.4], [0.3, 0.31, 0.35], [0.5, 1.0, 2.0]), [], duration=2.0)
    gaps = sorted([0.1, 0.2, 0.01, 0.04, 0.5, 1.0])
    for quantity, values in {"ttft": [0.1, 0.3, 0.5], "itl": gaps, "latency": [0.4, 0.35, 2.0]}.items():
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        assert run.percentile(quantity, 50) == pytest.approx(statistics.median(values))
        assert run.percentile(quantity, 95) == pytest.approx(cuts[94])
    assert run.throughput == 4.5 and run.rate == 1.5
    assert run.in_flight == pytest.approx(run.rate * statistics.mean([0.4, 0.35, 2.0])) == pytest.approx(1.375)
    assert row_of(run)["itl_p95_s"] == run.percentile("itl", 95)


def test_time_per_token_and_answers_that_are_written_together():
    run = clients.Run(2, answers([0.1, 0.2, 0.4], [0.3, 0.31, 0.35], [0.5, 1.0, 2.0], [3.0]), [], duration=3.0)
    assert [answer.tpot for answer in run.answers] == [pytest.approx(0.15), pytest.approx(0.025), pytest.approx(0.75), None]
    assert run.percentile("tpot", 50) == pytest.approx(0.15)
    assert run.decoding == 2  # 0.1 to 0.4 and 0.3 to 0.35; who waits for a first token is not counted
    assert clients.Run(1, answers([0.1, 0.2], [0.2, 0.3]), [], duration=1.0).decoding == 1
    assert clients.Run(1).decoding == 0


def even(tpot, answers_=4, **other):
    """A Run of ``answers_`` answers with 11 tokens each, one after the other, ``tpot`` seconds apart, first token after 1 s."""
    times = [1 + tpot * n for n in range(11)]
    return clients.Run(1, answers(*[times] * answers_), [], duration=answers_ * (1 + 10 * tpot), threads=1, **other)


def test_comparisons_ask_first_whether_the_difference_is_larger_than_the_noise():
    slow, fast = even(0.4), even(0.1)
    assert clients.compare([slow], [fast], "tpot") == (pytest.approx(0.25), "0.25 times")
    assert clients.compare([slow], [fast]) == (pytest.approx((1 + 4) / (1 + 1)), "2.5 times")
    assert clients.compare([slow], [even(0.4)]) == (1.0, "about the same (1.00 times)")
    ratio, said = clients.compare([slow, even(0.4), even(0.9)], [even(0.3)])  # 44, 44 and 44 tokens in 20, 20 and 40 s: half of the median apart
    assert ratio is None and said == "too noisy to tell (1.2 times, but runs or their answers differ by 50%)"
    assert clients.compare([slow, even(0.9)], [even(0.02)])[0] == pytest.approx((44 / 4.8) / ((44 / 20 + 44 / 40) / 2))  # more than the noise
    mixed = clients.Run(1, answers(*([1 + tpot * n for n in range(11)] for tpot in (0.1, 0.2, 0.3, 0.4, 0.5))), [], duration=20.0, threads=1)
    assert mixed.spread == pytest.approx(0.2 / 0.3)
    assert clients.compare([slow], [mixed], "tpot")[1] == "too noisy to tell (0.75 times, but runs or their answers differ by 67%)"
    bundle = even(0)
    assert clients.compare([slow], [bundle])[1] == "too noisy to tell (5.0 times, but most answers of a run came in one bundle)"
    assert clients.compare([slow], [bundle], "tpot") == (None, "too noisy to tell (most answers came in one bundle)")
    busy = even(0.1, others=float(os.cpu_count()))
    assert clients.compare([slow], [busy])[0] is None and "other programs used" in clients.compare([busy], [slow])[1]
    assert clients.compare([slow], [even(0.1, others=0.2)])[0] == 2.5


def test_bundled_pieces_are_counted():
    run = clients.Run(1, answers([0.1, 0.10001, 0.10002, 0.2, 0.3]), [], duration=1.0)
    assert run.bundled == 0.5
    one = clients.Run(1, answers([0.1]), [], duration=1.0)
    assert one.bundled == 0 and one.percentile("itl", 50) is None and "TPOT -" in str(one)


def test_prompts_differ_and_do_not_repeat():
    prompts = clients.prompts(136)
    assert len(set(prompts)) == 136 and {len(prompt.split()) for prompt in prompts} == {24}
    with pytest.raises(clients.EndpointError, match="begin to repeat"):
        clients.prompts(10_000)


# Addresses of all kinds


def stream(*chunks):
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def piece(text, end=None, **other):
    return {"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": end}]} | other


@pytest.fixture
def address():
    """A function that starts an HTTP server which gives everybody the same answer, and returns its Endpoint."""
    running = []

    def serve(body, status=200, kind="text/event-stream"):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.server.asked += 1
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST

            def log_message(self, *_):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        running[-1].asked = 0
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return clients.Endpoint(f"http://127.0.0.1:{running[-1].server_port}/v1", "model"), running[-1]

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


def test_two_tokens_in_a_piece_and_usage_in_a_chunk_of_its_own(address):
    """As vLLM sends it: the usage comes in a chunk without choices."""
    usage = {"id": "1", "object": "text_completion", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    endpoint, _ = address(stream(piece("a hob"), piece("by"), piece("", "length"), usage))
    answer = measure(endpoint, ["x"], 1).answers[0]
    assert (answer.pieces, answer.tokens, answer.counted, answer.text, answer.prompt_tokens) == (2, 4, True, "a hobby", 3)


def test_a_server_that_does_not_count(address):
    endpoint, _ = address(stream(piece("a"), piece("b"), piece("", "length")))
    answer = measure(endpoint, ["x"], 1).answers[0]
    assert (answer.pieces, answer.tokens, answer.counted) == (2, 2, False)


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ("<html>hello</html>", 200, "text/html", "not as OpenAI's interface"),
        ('{"hello": 1}', 200, "application/json", "not as OpenAI's interface"),
        ("data: {nonsense\n\n", 200, "text/event-stream", "not as OpenAI's interface"),
        (stream({"hello": 1}), 200, "text/event-stream", "not as OpenAI's interface"),
        (stream([1, 2]), 200, "text/event-stream", "not as OpenAI's interface"),
        (stream({"error": "out of luck"}), 200, "text/event-stream", "out of luck"),
        (stream(piece("", "stop")), 200, "text/event-stream", "before its first word"),
        ('{"error": {"message": "no such page"}}', 404, "application/json", "usually ends in /v1"),
        ('{"error": {"message": "who are you"}}', 401, "application/json", "asks for a key, and none was given"),
        ('{"error": {"message": "not you"}}', 403, "application/json", "asks for a key"),
        ('{"error": {"message": "too fast"}}', 429, "application/json", "refused the request .HTTP 429.: .*too fast"),
        ('{"error": {"message": "prompt too long"}}', 400, "application/json", "refused the request .HTTP 400.: .*prompt too long"),
        ('{"error": {"message": "out of memory"}}', 500, "application/json", "refused the request .HTTP 500."),
    ],
)
def test_an_address_of_another_kind(address, body, status, kind, words):
    endpoint, server = address(body, status, kind)
    with pytest.raises(clients.EndpointError, match=words) as caught:
        measure(endpoint, concurrency=1)
    assert endpoint.url in str(caught.value) and "\n" not in str(caught.value)
    assert server.asked == (6 if "first word" in words else 1)  # what would fail again is not sent again
    if status != 401:
        with pytest.raises(clients.EndpointError):
            measure(replace(endpoint, model=""), concurrency=1)


def test_nobody_at_the_address_and_no_address():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    with pytest.raises(clients.EndpointError, match="Nobody answers"):
        measure(clients.Endpoint(f"http://127.0.0.1:{port}/v1", "model"))
    with pytest.raises(clients.EndpointError, match="is no address"):
        measure(clients.Endpoint("my server", "model"))


@pytest.mark.parametrize(("key", "words"), [(None, "is empty"), ("wrong key", "was refused")])
def test_a_key_that_is_missing_or_wrong_is_never_shown(llamacpp, monkeypatch, key, words):
    monkeypatch.delenv("TEST_OTHER_KEY", raising=False)
    if key:
        monkeypatch.setenv("TEST_OTHER_KEY", key)
    with pytest.raises(clients.EndpointError, match=f"TEST_OTHER_KEY.*{words}|{words}.*TEST_OTHER_KEY") as caught:
        measure(replace(llamacpp.endpoint, key_variable="TEST_OTHER_KEY"))
    assert "wrong key" not in str(caught.value) and "sesame" not in str(caught.value)


@both
def test_a_request_that_takes_too_long(server):
    with pytest.raises(clients.EndpointError, match="within 0.001 s"):
        measure(server.endpoint, timeout=0.001)
    assert len(measure(server.endpoint).answers) == 6, "the server has not recovered"


def test_a_run_that_reaches_its_limit_sends_no_more(llamacpp):
    run = measure(llamacpp.endpoint, clients.prompts(200), 2, 100, limit=0.2)
    assert 2 <= len(run.answers) < 200 and not run.problems


# Servers that begin and end


def test_a_server_that_dies_in_the_middle_keeps_what_was_finished(file):
    server = serving.llamacpp(file, 1, readers=2)

    def prompts():
        """Kills the server when the seventh prompt is taken: five are finished then, one is under way."""
        for number, prompt in enumerate(clients.prompts(12)):
            if number == 6:
                server.process.kill()
            yield prompt

    run = measure(server.endpoint, prompts(), 2, 100)
    assert len(run.answers) >= 5
    assert run.problems and {answer.tokens for answer in run.answers} == {100}
    assert "has died or was stopped" in run.problems[0] or "Nobody answers" in run.problems[0]
    server.process.wait(60)  # its connections are closed before it has ended
    with pytest.raises(serving.ServerError, match="ended by signal SIGKILL"):
        server.check()
    server.stop()
    assert gone(server.process) and not serving.healthy(server.url)


def test_stopping_where_processes_have_no_groups(file, monkeypatch):
    """As on Windows: the server, and what it started, are found one by one."""
    server = serving.llamacpp(file, 1, readers=1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive=False: [psutil.Process(child.pid)] if recursive else [])
    monkeypatch.delattr(os, "killpg")
    server._kill()
    assert server.process.wait(5) != 0 and child.wait(5) != 0


def test_stopping_leaves_nothing_and_can_be_done_twice(file):
    with serving.llamacpp(file, 1, readers=1) as server:
        assert serving.healthy(server.url) and server.seconds > 0
        assert server.check() is None
    assert gone(server.process) and not serving.healthy(server.url)
    assert server.stop() == server.process.returncode
    with pytest.raises(serving.ServerError, match="ended with status 0"):
        server.check()


def test_a_port_in_use(llamacpp, file, step):
    port = int(llamacpp.url.split(":")[2].removesuffix("/v1"))
    for start in (lambda: serving.llamacpp(file, 1, port=port), lambda: serving.transformers(step, port=port)):
        with pytest.raises(serving.ServerError, match=f"Port {port} is taken"):
            start()
    assert serving.healthy(llamacpp.url)


def test_a_model_of_the_reader_s_own_as_a_gguf_file(tmp_path, monkeypatch):
    """A folder or a repository, by its name and not by a cache's; of a GPTQ checkpoint nobody knows the original."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    own = choose.get_step(2, checkpoint=str(CHECKPOINTS / "small"))
    assert serving.gguf_file(own) == tmp_path / "gguf" / "small-Q4_0.gguf" and engine.sizes(tmp_path / "gguf" / "small-Q4_0.gguf")[0] > 0
    with pytest.raises(CheckpointError, match="reads no GPTQ.*small-gptq was made from: choose that model"):
        serving.gguf_file(choose.get_step(3, checkpoint=str(CHECKPOINTS / "small-gptq")))


def test_a_file_or_checkpoint_that_cannot_be_loaded(file, step, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(serving.ServerError, match="Its last words: CheckpointError: llama.cpp cannot load") as caught:
        serving.llamacpp(cut, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(serving.ServerError, match="There is no file"):
        serving.llamacpp(tmp_path / "none.gguf", 1)
    with pytest.raises(CheckpointError):
        serving.transformers(replace(step, checkpoint=str(tmp_path)))
    with pytest.raises(UnknownFormatError, match="while loading"):
        serving.transformers(choose.get_step("nf4"))


def test_a_transformers_that_dies_while_loading(step, tmp_path, monkeypatch):
    """A checkpoint that our own check lets pass: transformers' reason is quoted."""
    for part in Path(step.checkpoint).iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(files, "check_folder", lambda *_: None)
    with pytest.raises(serving.ServerError, match=r"ended with status \d+. Its last words: .*Error"):
        serving.transformers(replace(step, checkpoint=str(tmp_path)))


def test_a_busy_transformers_server_stops_too(transformers):
    """The last test that uses this server."""

    def prompts():
        for number, prompt in enumerate(clients.prompts(12)):
            if number == 6:
                stopping.start()
            yield prompt

    stopping = threading.Thread(target=transformers.stop, args=(1,))
    run = measure(transformers.endpoint, prompts(), 4, 200)
    stopping.join()
    assert run.answers and gone(transformers.process) and not serving.healthy(transformers.url)


def test_an_older_transformers_has_no_such_interface(step, tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(serving.ServerError, match="go on with llama.cpp"):
        serving.transformers(step)


SCRIPT = """
import sys, time
from helpers.engines import serving
from helpers.models import choose
server = serving.{start}
print(server.process.pid, flush=True)
time.sleep(60)
"""


def run_script(start):
    quick = os.environ | {"THREADS": "1"}  # nothing is measured before the server starts
    return subprocess.Popen([sys.executable, "-c", SCRIPT.format(start=start)], cwd=ROOT, env=quick, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_an_interrupt_while_the_server_starts_leaves_nothing():
    """What a kernel gets when its reader presses stop."""
    program = run_script("transformers(choose.get_step(2))")
    children = wait_for(lambda: psutil.Process(program.pid).children(recursive=True))
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=20)
    assert "KeyboardInterrupt" in said
    wait_for(lambda: all(is_over(child.pid) for child in children))


def test_a_notebook_that_is_killed_takes_its_server_with_it(file):
    program = run_script(f"llamacpp({str(file)!r}, 1)")
    pid = int(program.stdout.readline())
    program.kill()
    program.communicate(timeout=20)
    wait_for(lambda: is_over(pid))


def test_every_fault_is_the_course_s_own():
    assert issubclass(serving.ServerError, CourseError) and issubclass(clients.EndpointError, CourseError)
