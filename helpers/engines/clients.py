"""How fast does a server answer when many ask at once? An asynchronous client for any address with OpenAI's interface.

Times are those of vLLM's ``benchmarks/serve.py`` (version 0.33.0, https://github.com/vllm-project/vllm): TTFT from sending a request to its
first piece of text; ITL between two pieces; latency from sending to the last piece; TPOT is (latency - TTFT) / (tokens - 1); throughput is all
new tokens by the time from the first request's start to the last one's end. Only pieces with text are counted. As there, the requests go through
aiohttp (https://docs.aiohttp.org): a client shares the machine with a server that runs on it, and OpenAI's own takes four to five times as much
of the processor for each piece. First used in notebook 14.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from math import inf
from statistics import median
from urllib.parse import urlsplit

from helpers import ROOT, ledger, machine
from helpers.errors import CourseError
from helpers.machine import network
from helpers.timing import iqr, seconds

TIMEOUT, LIMIT = 60, 20  # seconds: for one request; after which no further one is sent


class EndpointError(CourseError, RuntimeError):
    """An address where no request could be answered."""


@dataclass(frozen=True)
class Endpoint:
    """An address with OpenAI's interface. url: up to and with ``/v1``. model: its name there; "" asks for the first one that it lists.

    chat: talk to /chat/completions instead of /completions. key_variable: name of the environment variable with the key, which is never shown.
    extra: more fields of each request, e.g. {"ignore_eos": True} for vLLM.
    """

    url: str
    model: str = ""
    chat: bool = False
    key_variable: str = ""
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One finished request; seconds, start counts from the run's. tokens: new ones, as the server counts them, else the pieces (counted is False)."""

    start: float
    ttft: float
    latency: float
    itl: list
    pieces: int
    tokens: int
    counted: bool
    prompt_tokens: int | None
    prompt: str
    text: str

    @property
    def tpot(self):
        """Mean seconds between two of its tokens; None if it has only one."""
        return (self.latency - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass
class Run:
    """What ``measure`` found at one concurrency; duration in seconds. problems: a sentence for each request that failed.

    cpu: seconds that this process, the client, computed meanwhile, on all its threads together. server_cpu: the server's; others: cores that other
    programs used; threads: the server's. All three only of a server of ours (see serving.Server.measure), else None.
    """

    concurrency: int
    answers: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    duration: float = 0.0
    cpu: float = 0.0
    server_cpu: float | None = None
    others: float | None = None
    threads: int | None = None

    @property
    def throughput(self):
        """New tokens a second, of all requests together."""
        return sum(answer.tokens for answer in self.answers) / self.duration

    @property
    def client_share(self):
        """The client's share of all that this machine's cores could compute meanwhile, 0 to 1: at most so much a server on it could have had more."""
        return self.cpu / (machine.cores() * self.duration)

    @property
    def free(self):
        """Cores of this machine that neither the server, nor this client, nor other programs used."""
        return machine.cores() - (self.server_cpu + self.cpu) / self.duration - self.others

    @property
    def rate(self):
        """Finished requests a second."""
        return len(self.answers) / self.duration

    @property
    def in_flight(self):
        """Requests under way at a time, on average: all latencies together, by the duration."""
        return sum(answer.latency for answer in self.answers) / self.duration

    @property
    def decoding(self):
        """The most answers that were between their first and their last piece at the same time."""
        spans = [(answer.start + answer.ttft, answer.start + answer.latency) for answer in self.answers]
        return max((sum(first <= moment < last for first, last in spans) for moment, _ in spans), default=0)

    @property
    def bundled(self):
        """Share of the pieces that came less than 0.2 ms after the one before: the server or the network had held them back."""
        gaps = self.values("itl")
        return sum(gap < 2e-4 for gap in gaps) / len(gaps) if gaps else 0.0

    @property
    def disturbed(self):
        """Why no verdict may be built on it, in words: other programs took cores that it needed (see ledger.disturbed); "" if it stands."""
        return ledger.disturbed({"others_cores": self.others, "threads": self.threads, "cores": machine.cores()})

    @property
    def spread(self):
        """How far the TPOT of its answers lie apart: interquartile range / median; 0 with fewer than two, without end where most came in one bundle."""
        tpots = self.values("tpot")
        return 0.0 if len(tpots) < 2 else iqr(tpots) / median(tpots) if median(tpots) else inf

    def values(self, quantity):
        """All "ttft", "tpot", "itl" or "latency" in seconds: one for each answer that has it, of "itl" one for each gap."""
        if quantity == "itl":
            return [gap for answer in self.answers for gap in answer.itl]
        return [value for answer in self.answers if (value := getattr(answer, quantity)) is not None]

    def percentile(self, quantity, p):
        """The ``p``-th percentile of ``values(quantity)``; None where there are none."""
        import numpy as np

        values = self.values(quantity)
        return float(np.percentile(values, p)) if values else None

    def __str__(self):
        names = {"TTFT": "ttft", "TPOT": "tpot", "latency": "latency"}
        parts = [f"{name} {seconds(self.percentile(q, 50))} (p95 {seconds(self.percentile(q, 95))})" for name, q in names.items()]
        line = f"{self.concurrency:2d} at once: {len(self.answers):2d} answers in {seconds(self.duration)}, {self.throughput:6,.0f} tokens/s; "
        return line + ", ".join(parts) + (f"\n   {len(self.problems)} failed: {self.problems[0]}" if self.problems else "")


def compare(before, after, quantity="throughput"):
    """Return (how many times as much ``quantity`` is in the runs ``after`` as in ``before``, the same in words); the first is None where noise is larger.

    before, after: lists of Run; the medians over the runs are compared. quantity: "throughput", or "ttft", "tpot" or "latency" at their p50. Noise is
    how far the runs of one side lie apart, at least how far the answers of one run do, at least ledger.NOISE; a run that was disturbed can't be compared.
    """

    def value(run):
        return run.throughput if quantity == "throughput" else run.percentile(quantity, 50)

    sides = [[value(run) for run in runs] for runs in (before, after)]
    first, second = map(median, sides)
    if not first or not second:
        return None, "too noisy to tell (most answers came in one bundle)"
    ratio, runs = second / first, [*before, *after]
    noise = max(ledger.NOISE / 100, *((max(side) - min(side)) / median(side) for side in sides), *(run.spread for run in runs))
    words = f"{ratio:.{1 if ratio > 1.05 else 2}f} times"
    why = next((run.disturbed for run in runs if run.disturbed), "")
    if not why and max(ratio, 1 / ratio) - 1 > noise:
        return ratio, words
    if not why and noise <= ledger.NOISE / 100:
        return ratio, f"about the same ({words})"
    why = why or ("most answers of a run came in one bundle" if noise == inf else f"runs or their answers differ by {noise:.0%}")
    return None, f"too noisy to tell ({words}, but {why})"


def prompts(count, words=24):
    """Return ``count`` different stretches of ``words`` words of the held-out text, so that no server can answer from an earlier prompt's cache."""
    text = (ROOT / "data" / "text" / "heldout.txt").read_text(encoding="utf-8").split()
    if count * words > len(text):
        raise EndpointError(f"The held-out text has {len(text)} words: {count} prompts of {words} would begin to repeat, so ask for fewer or shorter ones.")
    return [" ".join(text[n * words : (n + 1) * words]) for n in range(count)]


async def measure(endpoint, prompts, concurrency, new_tokens, timeout=TIMEOUT, limit=LIMIT):
    """Send ``prompts`` to ``endpoint``, always ``concurrency`` at a time, and return a Run; ``new_tokens`` are asked for, greedily.

    timeout: seconds for one request. limit: seconds after which no further request is sent. After a failure other than a timeout none is sent
    either. What was finished is kept; EndpointError is raised only if nothing was.
    """
    import aiohttp

    if not network.is_address(endpoint.url):
        raise EndpointError(f"{endpoint.url!r} is no address: write it in full, for example http://127.0.0.1:8000/v1.")
    key = os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else ""
    local = urlsplit(endpoint.url).hostname in network.HERE
    # Between two programs of one machine: no proxy; and a connection for each request, because llama.cpp's server closes some that are kept.
    connections = aiohttp.TCPConnector(limit=0, force_close=local)
    options = {"headers": {"Authorization": f"Bearer {key or 'none'}"}, "trust_env": not local, "timeout": aiohttp.ClientTimeout(total=timeout)}
    run, waiting, start, final = Run(concurrency), iter(prompts), time.perf_counter(), []

    async def reader(session, model):
        for prompt in waiting:
            if final or time.perf_counter() - start > limit:
                return
            try:
                async with asyncio.timeout(timeout):
                    run.answers.append(await _ask(session, endpoint, model, prompt, new_tokens, start))
            except Exception as error:
                run.problems.append(_why(error, endpoint, timeout))
                if not isinstance(error, (TimeoutError, _Empty)):  # the next one would fail too
                    final.append(error)

    async with aiohttp.ClientSession(connector=connections, **options) as session:
        try:
            model = endpoint.model or await _first_model(session, endpoint)
        except Exception as error:
            raise EndpointError(_why(error, endpoint, timeout)) from None
        cpu, start = time.process_time(), time.perf_counter()
        await asyncio.gather(*(reader(session, model) for _ in range(concurrency)))
        run.duration, run.cpu = time.perf_counter() - start, time.process_time() - cpu
    if run.problems and not run.answers:
        raise EndpointError(run.problems[0])
    return run


async def _first_model(session, endpoint):
    async with session.get(f"{endpoint.url}/models") as answer:
        return json.loads(await _accepted(answer))["data"][0]["id"]


async def _accepted(answer):
    """The body of ``answer``. Raises _Refused if its status is not that of success."""
    body = (await answer.read()).decode(errors="replace")
    if answer.status != 200:
        raise _Refused(answer.status, body)
    return body


async def _ask(session, endpoint, model, prompt, new_tokens, start):
    what = {"messages": [{"role": "user", "content": prompt}]} if endpoint.chat else {"prompt": prompt}
    what |= {"model": model, "max_tokens": new_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    sent, stamps, texts, usage, ended = time.perf_counter(), [], [], None, False
    async with session.post(f"{endpoint.url}/{'chat/' * endpoint.chat}completions", json=what | endpoint.extra) as answer:
        if answer.status != 200:
            await _accepted(answer)
        async for now, chunk in _chunks(answer.content):
            if "error" in chunk:
                raise _Refused(None, json.dumps(chunk))
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                ended = ended or bool(choice.get("finish_reason"))
                text = choice["delta"].get("content") if endpoint.chat else choice.get("text")
                if text:
                    stamps.append(now)
                    texts.append(text)
    if not stamps:
        raise _Empty if ended else ValueError("no text")
    tokens, prompt_tokens = (usage["completion_tokens"], usage["prompt_tokens"]) if usage else (len(stamps), None)
    gaps = [b - a for a, b in zip(stamps, stamps[1:])]
    return Answer(sent - start, stamps[0] - sent, stamps[-1] - sent, gaps, len(stamps), tokens, bool(usage), prompt_tokens, prompt, "".join(texts))


async def _chunks(content):
    """(time of arrival, chunk) of each server-sent event in the aiohttp.StreamReader ``content`` (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    rest = b""
    async for part in content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                yield now, json.loads(data)


class _Refused(Exception):
    """An answer that says no: its HTTP status (None in the middle of an answer) and what it says."""

    def __init__(self, status, body):
        super().__init__(status, body)
        self.status, self.said = status, " ".join(body.split())[:200]
        try:
            error = json.loads(body)["error"]
            self.said = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, LookupError, TypeError):
            pass  # the beginning of what it said will do


class _Empty(Exception):
    """An answer that ended before its first token."""


def _why(error, endpoint, timeout):
    """Say in a sentence what stopped a request."""
    import aiohttp

    if told := network.trouble(error, endpoint.url):
        return f"{endpoint.url} cannot be asked: {told}."
    url, status, variable = endpoint.url, getattr(error, "status", None), endpoint.key_variable
    if isinstance(error, TimeoutError):
        return f"{url} did not finish an answer within {timeout:g} s: give it more time, ask for fewer tokens, or ask less at once."
    if isinstance(error, _Empty):
        return f"{url} ended an answer before its first word: the model had nothing to add; take other prompts, or forbid the end (extra)."
    if status in (401, 403):
        has = f"the key in {variable} was refused" if variable and os.environ.get(variable) else f"{variable} is empty" if variable else "none was given"
        return f"{url} asks for a key, and {has} (HTTP {status}): put a valid one into an environment variable and name it as key_variable."
    if status in (404, 405):
        what = f"{'/chat' * endpoint.chat}/completions or the model {endpoint.model!r} (HTTP {status})"
        return f"{url} does not know {what}: check the address (it usually ends in /v1) and the model, or try chat={not endpoint.chat}."
    if isinstance(error, _Refused):
        how = f"refused the request (HTTP {status})" if status else "reported an error in its answer"
        return f"{url} {how}: {error.said}. Change what is asked for, or look into the server's log."
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"Nobody answers at {url}: start the server, or check address and port."
    if isinstance(error, (aiohttp.ServerConnectionError, aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        return f"{url} broke off in the middle: the server has died or was stopped; start it again."
    return f"{url} answered, but not as OpenAI's interface would ({type(error).__name__}): check that a model server has this address, and name the model."
