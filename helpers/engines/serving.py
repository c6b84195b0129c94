"""How does a model answer many readers? Starts a server of this machine on 127.0.0.1, asks whether it is healthy, stops it and leaves nothing behind.

Two servers with OpenAI's interface: ``transformers serve`` (https://huggingface.co/docs/transformers/main/serving) and llama.cpp's
(https://github.com/ggml-org/llama.cpp/tree/master/tools/server). Each runs in a process of its own, ``python -m helpers.engines.serving …``,
which ends when its standard input closes: it cannot outlive the notebook that started it. First used in notebook 14.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from helpers import ROOT, kernels, loading, machine, process, setup
from helpers.engines import clients
from helpers.engines import llamacpp as engine
from helpers.errors import CheckpointError, CourseError, NotFiniteError, UnknownFormatError
from helpers.loading import library
from helpers.models import choose, files

HOST = "127.0.0.1"
PACKAGES = ("transformers", "torch", "xllamacpp", "aiohttp", "fastapi", "uvicorn")
PATIENCE = 180  # seconds for a server to become healthy
KERNEL = "COURSE_GPTQ_KERNEL"  # tells the server's process which kernel the trial took
PAGE = 256  # tokens in one block of transformers' paged KV cache


class ServerError(CourseError, RuntimeError):
    """A server that does not start, or that is no longer there."""


@dataclass
class Server:
    """A server process. log: file with all that it printed. device: in words. threads: that it computes with, None: as its libraries choose.

    seconds: from start to healthy. As a context manager it stops at the end.
    """

    name: str
    endpoint: clients.Endpoint
    process: subprocess.Popen
    log: Path
    command: list
    device: str
    threads: int | None = None
    seconds: float = field(default=0.0)

    @property
    def cpu(self):
        """Seconds that the server's process has computed so far, on all its threads together; 0.0 if it has ended."""
        import psutil

        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.process.pid).cpu_times()
            return times.user + times.system
        return 0.0

    async def measure(self, prompts, concurrency, new_tokens, **options):
        """As clients.measure; the Run says also what the server and other programs computed meanwhile."""
        load, before = machine.Load(), self.cpu
        run = await clients.measure(self.endpoint, prompts, concurrency, new_tokens, **options)
        run.threads, run.server_cpu = self.threads, self.cpu - before
        run.others = max(0.0, load.stop().others - run.server_cpu / run.duration)
        return run

    @property
    def url(self):
        """The address of its OpenAI interface; it ends in ``/v1``."""
        return self.endpoint.url

    def check(self):
        """Raise ServerError, with the last words of its log, if the process has ended."""
        if self.process.poll() is not None:
            status = self.process.returncode
            how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            change = "" if status < 0 else "change what it was started with, and "
            raise ServerError(f"{self.name} ended {how}. {self.last_words()} Then {change}start it again.")

    def last_words(self):
        """Say the last line of the log that names an error, else the last line, and where the log is."""
        lines = [line.strip(" │╭╰─╮╯") for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        lines = [line for line in lines if line]
        errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|ERROR)\b", line)]
        return f"Its last words: {(errors or lines or ['none'])[-1][:300].rstrip('.')}. All of it: {os.path.relpath(self.log)}."

    def stop(self, patience=5):
        """End the process and all that it started: politely, and after ``patience`` seconds by force. Returns its exit status."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        finally:
            self._kill()
        return self.process.wait()

    def _kill(self):
        """End the process and all that it started at once."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the group that it leads
            return
        import psutil  # Windows has no groups of processes

        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.process.pid)
            for process in (*server.children(recursive=True), server):
                process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def start(make, *arguments, **options):
    """Return the Server that ``make(*arguments, **options)`` starts, or None after a sentence that says why there is none."""
    try:
        return make(*arguments, **options)
    except CourseError as error:
        print(f"Left out: {error}")


def gguf_file(step, type=None):
    """Return the path of ``step``'s model as a GGUF file of ``type``, by default BF16 of an embedded model, else Q4_0 of the unquantised one."""
    if step.format == "gptq" and step.tier == "own":
        raise CheckpointError(
            f"llama.cpp reads no GPTQ, and nobody knows here what {step.place} was made from: choose that model, choose.get_step(2, checkpoint=NAME)."
        )
    unquantised = choose.get_step(2, tier=step.tier) if step.format == "gptq" else step
    return engine.file(unquantised, type or ("BF16" if step.tier == "embedded" else "Q4_0"))


def environment(threads):
    """The variables of a server's process that computes with ``threads`` threads (None: as many as its libraries choose).

    Several threads wait for each other at every step, and the client, or another program, always has one of their cores. By OpenMP's default the
    others then spin: beside other programs llama.cpp with two threads on two cores wrote 3 to 190 tokens a second, and 510 to 2,080 where they
    sleep (PASSIVE). A single thread waits for nobody.
    """
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    waits = {"OMP_WAIT_POLICY": "PASSIVE"} if threads != 1 else {}
    return waits | os.environ | quiet | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def transformers(step, continuous=True, readers=32, tokens=PAGE, port=None, device=None):
    """Start ``transformers serve`` with ``step``'s checkpoint and return the Server, once it is healthy.

    continuous: batch the requests at each step (``--continuous-batching``), else one request after the other. readers, tokens: the KV cache has
    room for so many requests, of so many tokens each (without a limit it takes 60 % and more of the free memory). device: as for loading.load;
    on a CPU it computes with choose.threads threads.
    Raises ServerError, CheckpointError, UnknownFormatError or DeviceError; NotFiniteError if float16 is too small for the model.
    """
    device = machine.get_device(device)
    package = importlib.util.find_spec("transformers").submodule_search_locations[0]
    if not (Path(package) / "cli" / "serving" / "completion.py").is_file():
        raise ServerError(
            f"transformers {setup.installed('transformers')} serves chats only, word by word and without counting tokens: its server cannot be"
            " measured, go on with llama.cpp's (or a newer transformers; 5.15 can)."
        )
    if step.format not in ("bf16", "fp16", "gptq"):
        raise UnknownFormatError(f"{step.title} is made while loading, and the server loads what is stored: take bf16, fp16 or a GPTQ checkpoint.")
    folder = choose.bring(step)
    config = library.configuration(folder)
    checkpoint = str(Path(step.checkpoint).resolve()) if step.is_folder else step.checkpoint
    dtype = "bfloat16" if device == "cpu" else "float16"  # a T4 has no bfloat16, and a CPU is slow with float16
    options = ["--device", device, "--dtype", dtype]
    if continuous:
        blocks = readers * -(-tokens // PAGE) * 5 // 4  # its scheduler keeps 15 % free
        options += ["--continuous-batching", "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "512"]
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    no_end = json.dumps(library.undone(folder) | {"suppress_tokens": ends, "pad_token_id": ends[0], "bos_token_id": config.bos_token_id})
    name, kernel = f"transformers, {'continuous batching' if continuous else 'one at a time'}", {}
    if device != "cpu":
        found = _tried(json.dumps(asdict(step)), device)
        if found["overflows"]:
            raise NotFiniteError(
                f"{found['overflows']} of {step.title} computes numbers that are not finite, and the server computes in float16 on a GPU: measure it on the"
                " CPU (device='cpu'), or go on with llama.cpp's server."
            )
        if found["kernel"]:
            print(f"GPTQ kernel of the server: {found['sentence']}.", flush=True)
            kernel = {KERNEL: found["kernel"]}
    threads, what = choose.threads(step.shape) if device == "cpu" else None, ["transformers", "serve", checkpoint]
    return _start(name, what, options, port, checkpoint, {"generation_config": no_end}, device, threads, kernel)


@lru_cache(maxsize=16)
def _tried(step, device):
    """What ``attempt`` found of ``step`` (JSON) on ``device``, in a process of its own, which gives the GPU back; asked once. What it compiles takes its time here."""
    with machine.waiting("Loading the model once, to look at its numbers; where a GPTQ kernel has to be compiled, half a minute to a minute more"):
        return process.call("helpers.engines.serving.attempt", {"step": json.loads(step), "device": device}, "The trial before the server")


def attempt(job):
    """Load a step in float16, as the server will, and let it read one prompt: {kernel: of GPTQ, or "", sentence: why that one, overflows: a layer's name, or ""}."""
    model, tokenizer = loading.load(choose.Chosen(**job["step"] | {"dtype": "float16"}), job["device"])
    found = library.not_finite(model, library.encode(tokenizer, loading.TRIAL, return_tensors="pt").to(model.device))
    plan = kernels.plan_of(model)
    return {"kernel": plan and plan.kernel, "sentence": plan and plan.sentence, "overflows": found[0] if found else ""}


def llamacpp(path, threads, readers=32, tokens=PAGE, port=None, **settings):
    """Start llama.cpp's server, on the CPU, with the GGUF file ``path`` and return the Server, once it is healthy.

    threads: see choose.threads. readers: slots, requests that it works on at once; tokens: context of each. settings: more fields of
    xllamacpp.CommonParams, e.g. api_keys. Raises ServerError.
    """
    settings |= {"context": readers * tokens, "n_parallel": readers, "threads": threads}
    what, name = ["llama.cpp", str(Path(path).resolve())], f"llama.cpp, {readers} slot{'s' * (readers != 1)}"
    return _start(name, what, [json.dumps(settings)], port, Path(path).stem, engine.GREEDY, "cpu", threads)


def healthy(url, timeout=2):
    """Whether the server at ``url`` (http://host:port/v1) says on its ``/health`` that it is healthy."""
    try:
        with urlopen(f"{url.removesuffix('/v1')}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (OSError, ValueError, HTTPException):
        return False


def _start(name, what, options, port, model, no_end, device, threads, variables=None):
    """Start the process ``what`` + ``options`` and wait until it is healthy. no_end: the request's fields for "no end of text"."""
    port = _free(port)
    log = setup.results_dir() / "logs" / f"server-{re.sub('[^a-z0-9]+', '-', name.lower())}-{port}.log"
    files.write(log, "")  # what goes into it comes from the process
    command = [sys.executable, "-m", "helpers.engines.serving", *what, "--host", HOST, "--port", str(port), *options]
    started = time.perf_counter()
    with open(log, "ab") as output:
        pipes = {"stdin": subprocess.PIPE, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=environment(threads) | (variables or {}), start_new_session=True, **pipes)
    server = Server(name, clients.Endpoint(f"http://{HOST}:{port}/v1", model, extra=no_end), process, log, command[3:], machine.device_name(device), threads)
    atexit.register(server.stop)
    try:
        while not healthy(server.url):
            server.check()
            if time.perf_counter() - started > PATIENCE:
                raise ServerError(
                    f"{name} is not healthy after {PATIENCE} s. {server.last_words()} Start it again when the machine is quiet, with a smaller model or fewer readers."
                )
            time.sleep(0.1)
        server.check()  # who answered was not another program on that port
    except BaseException:  # an interrupt too
        server.stop()
        raise
    server.seconds = time.perf_counter() - started
    return server


def _free(port):
    """``port``, or one that is free for None. Raises ServerError if it is none, or taken."""
    if port is not None and (isinstance(port, bool) or not str(port).isdecimal() or not 0 < int(port) < 2**16):
        raise ServerError(f"{port!r} is no port: give a whole number from 1 to 65535, or leave the port out, and a free one is found.")
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((HOST, int(port or 0)))
        except PermissionError:
            raise ServerError(f"Port {port} may not be used by you: give one from 1024 on, or leave the port out, and a free one is found.") from None
        except OSError as error:
            raise ServerError(f"Port {port} is taken ({error.strerror}): another program has it; leave the port out, and a free one is found.") from None
        return place.getsockname()[1]


def _end_with_notebook():
    """Ask this process to end once its standard input closes: the notebook said stop, or is gone."""

    def watch():
        os.read(0, 1)  # not sys.stdin, whose lock would abort a process that ends for another reason
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments):
    """The server's process: ``transformers serve CHECKPOINT …``, or ``llama.cpp FILE --host HOST --port PORT JSON``."""
    if arguments[0] == "transformers":
        _end_with_notebook()
        from transformers.cli.transformers import main as command

        if os.environ.get(KERNEL):
            kernels.pin(os.environ[KERNEL])
        sys.argv = arguments
        return command()
    _, path, _, host, _, port, settings = arguments
    try:
        server = engine.load(path, hostnames=[host], port=int(port), **json.loads(settings))
    except CourseError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"listening on {server.listening_address}", flush=True)
    os.read(0, 1)
    os._exit(0)  # requests that are still being answered are not waited for


if __name__ == "__main__":
    main(sys.argv[1:])
