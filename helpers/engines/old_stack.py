"""How does the article's own stack do today? auto-gptq with the transformers and torch of early 2024, in an environment of its own.

uv builds the environment; nothing is shared with the calling Python. ``environment`` and ``ask`` are called from today's Python; ``work`` is
called by the other one (``process``), and measures with ``timing``, as everywhere in this course. First used in notebook 13.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import ROOT, loading, machine, process, setup, timing
from helpers.benchmark.profile import decode_step
from helpers.engines import timed
from helpers.errors import CheckpointError, CourseError, NotEnoughMemoryError, PackagesError
from helpers.models import choose, files
from helpers.models.catalogue import read_json
from helpers.timing import NEW_TOKENS, PROMPT

TIMEOUT = 3600  # seconds that a process may take to answer
PLAIN = ("--color", "never")  # for uv: a notebook's kernel asks every program for coloured words
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # variables that would lead another Python to this one's packages
THEIRS = ("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE", "UV_SYSTEM_PYTHON")  # a platform's wishes (Colab's) for its own packages


@dataclass(frozen=True)
class Environment:
    """A folder with a Python and packages of its own.

    requirements: a file with one ``name==version`` a line. python: a version or a path, for uv. download, size: bytes to fetch and on the disk.
    """

    folder: Path
    requirements: Path
    python: str = "3.11"
    download: float = 0
    size: float = 0

    @property
    def executable(self):
        """Path of its Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self):
        """What a finished build left in it, as ``name==version`` (list of str); None if it is not there, not finished, or of other pins."""
        try:
            left = json.loads((self.folder / "ready.json").read_text(encoding="utf-8"))
            return left["packages"] if left["pins"] == self._pins() and self.executable.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def ready(self):
        """Whether it can be called."""
        return self.packages is not None

    def about(self):
        """Say in a sentence what is there, or what building it would take."""
        if self.ready:
            return f"Ready in {self.folder}: {len(self.packages)} packages of its own."
        takes = f"Building it downloads {self.download / 1e9:.1f} GB and takes {self.size / 1e9:.1f} GB of the disk"
        return f"Not on this machine. {takes}, in {self.folder} ({machine.disk(self.folder) / 1e9:,.0f} GB free there)."

    def build(self):
        """Build it with uv from ready-made packages, unless it is ready; show the progress and print what was done.

        Raises PackagesError, or NotEnoughMemoryError before anything is fetched if a disk has too little room.
        """
        if self.ready:
            return
        program = uv()
        cache = subprocess.run([program, "cache", "dir", *PLAIN], capture_output=True, text=True).stdout.strip()
        for place in filter(None, (self.folder, cache)):
            if machine.disk(place) < self.size:
                raise NotEnoughMemoryError(
                    f"The environment needs {self.size / 1e9:.1f} GB and the disk of {place} has {machine.disk(place) / 1e9:.1f} GB free: make"
                    " room, or set ARTICLE_STACK_DIR (for uv's cache UV_CACHE_DIR) to a folder on another disk and restart the kernel."
                )
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").is_file():
            raise PackagesError(f"{self.folder} holds something else: set ARTICLE_STACK_DIR to a new folder and restart the kernel.")
        started = time.perf_counter()
        shutil.rmtree(self.folder, ignore_errors=True)
        command = (program, "venv", "--python", self.python, str(self.folder))
        if (reason := _run(*command)) and _run(*command, "--python-preference", "only-managed"):  # uv's own, where the machine's is broken
            raise PackagesError(
                f"uv made no environment with Python {self.python} ({reason}): install that Python, or let uv fetch it from the network, and"
                " run this cell again."
            )
        install = ("pip", "install", "--no-build", "--python", str(self.executable), "-r", str(self.requirements))
        if reason := _run(program, *install, download=self.download):
            if "no usable wheels" in reason:
                raise PackagesError(f"These packages are not made for this machine ({reason}): use another one, in Colab for example.")
            raise PackagesError(
                f"The environment is not finished ({reason}): check the network and the room on the disk, and run this cell again; what is"
                " complete stays in uv's cache."
            )
        listed = subprocess.run([program, "pip", "freeze", *PLAIN, "--python", str(self.executable)], capture_output=True, text=True, check=True)
        files.write_json(self.folder / "ready.json", {"pins": self._pins(), "packages": listed.stdout.split()})  # last, and all at once
        print(f"{len(self.packages)} packages in {time.perf_counter() - started:.0f} s. {self.about()}")

    def call(self, function, job, timeout=TIMEOUT):
        """Return process.call's answer of ``function`` to ``job`` in this environment, without the Hub. Raises PackagesError if it is not ready."""
        if not self.ready:
            raise PackagesError(f"There is no finished environment in {self.folder}: build it first.")
        return process.call(function, job, python=self.executable, variables=_without(OURS) | {"HF_HUB_OFFLINE": "1"}, timeout=timeout)

    def _pins(self):
        """What a finished build must have been made from; a comment in the file makes no difference."""
        return hashlib.sha256(json.dumps([self.python, sorted(setup.pins(self.requirements).items())]).encode()).hexdigest()


def uv():
    """Return the path of uv: the one on PATH, else the one among this Python's packages, where it is added if it is missing. Raises PackagesError."""
    if found := shutil.which("uv"):
        return found
    if setup.installed("uv") is None:
        try:
            setup.add("uv")
        except PackagesError as told:
            raise PackagesError(f"uv, which builds the environment, is missing. {told}") from None
    from uv import find_uv_bin

    return find_uv_bin()


def _run(*command, download=0):
    """Run uv; return why it failed, or "". download: bytes for the bar. Raises PackagesError if the reader interrupts it."""
    from tqdm.auto import tqdm

    said, sizes = [], {}
    bar = tqdm(total=download, unit="B", unit_scale=True, desc="fetching", leave=False, disable=not download)
    with bar, subprocess.Popen([*command, *PLAIN], env=_without(THEIRS), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            for line in map(str.strip, process.stderr):
                said.append(line)
                if begun := re.fullmatch(r"Downloading (\S+) \(([\d.]+)([KMG])iB\)", line):
                    sizes[begun[1]] = float(begun[2]) * 1024 ** " KMG".index(begun[3])
                elif done := re.fullmatch(r"Downloaded (\S+)", line):
                    bar.update(sizes.get(done[1], 0))
        except KeyboardInterrupt:
            process.kill()
            raise PackagesError("Interrupted: what is complete stays in uv's cache. Run the cell again to go on.") from None
    if process.returncode == 0:
        return ""
    reasons = re.split(r"^(?:error|cause|Caused by|×|╰─▶):? ", "\n".join(said).split("\nhint:")[0], flags=re.M)
    reasons = reasons[1:] or said[-1:] or ["no reason given"]
    return ": ".join(textwrap.shorten(reason, 200, placeholder=" …").rstrip(".") for reason in dict.fromkeys([reasons[0], reasons[-1]]))


def _without(names):
    """This process's environment variables without ``names``."""
    return {name: value for name, value in os.environ.items() if name not in names}


REQUIREMENTS = ROOT / "requirements" / "article-stack.txt"
ENGINE = "2024 stack"
NEWEST = (9, 0)  # compute capability of the newest GPU that auto-gptq 0.7.1 and torch 2.2.1 were built for


def environment():
    """The Environment of the article's stack: in the folder ARTICLE_STACK_DIR, by default ``.article-stack`` in the project."""
    folder = setup.folder("ARTICLE_STACK_DIR", ".article-stack")
    return Environment(folder, REQUIREMENTS, download=2.95e9, size=5.5e9)  # as measured on Linux in November 2026; most of it is CUDA


def too_new(device=None):
    """Say in a sentence that the GPU is newer than the stack; "" if it is not, or is a CPU. device: as in loading.load."""
    import torch

    device = machine.get_device(device)
    found = (0, 0) if device == "cpu" else torch.cuda.get_device_capability(device)
    if found <= NEWEST:
        return ""
    known, this = (".".join(map(str, version)) for version in (NEWEST, found))
    return f"This GPU (compute capability {this}) is newer than the libraries of 2024, which know none above {known}: the old stack is left out here."


def make_job(step, dtypes=None, device=None):
    """Return the job (a dict that JSON can hold) of loading ``step``'s GPTQ checkpoint in each of ``dtypes``, one after the other.

    dtypes: by default the article's float16 and, on a CPU, float32. device, errors: as in loading.load, before anything large is fetched.
    """
    device = machine.get_device(device)
    choose.check_memory(step.bytes, device)
    folder = str(choose.bring(step))
    check(folder)
    dtypes = list(dtypes or ("float16", "float32")[: 2 if device == "cpu" else 1])
    threads = choose.threads(step.shape) if device == "cpu" else None  # as many as today's stack takes
    return {"folder": folder, "device": device, "dtypes": dtypes, "prompt": PROMPT, "new_tokens": NEW_TOKENS, "threads": threads}


def ask(environment, job):
    """Have ``job`` (see ``make_job``) done by the stack in ``environment`` and return its answer.

    Keys: python (its version), device (in words), versions ({package: version}), runs ({dtype: run}). A run: timing (Timing), kernel
    (class name with its module), weight_bytes_loaded, empty_biases (how many tensors the file lacks), not_finite (how many numbers in their
    place were not finite), logits (of each position of prompt and answer but the last; float32), operations (benchmark.profile.decode_step; None on a GPU).
    """
    answer = environment.call("helpers.engines.old_stack.work", job)
    for run in answer["runs"].values():
        run["timing"] = timed.read(run["timing"])
    return answer


def make_row(step, answer, dtype="float16"):
    """Return the ledger row of the run in ``dtype`` of ``answer`` (from ``ask``), with that environment's Python and versions."""
    run = answer["runs"][dtype]
    return timed.make_row(
        ENGINE, "GPTQ", run["timing"], step, format="gptq", weight_bytes=step.bytes, read_bytes=step.shape.read_bytes("gptq"), packages=(),
        kernel=run["kernel"], dtype=dtype, checkpoint=step.place,
        device=answer["device"], python=answer["python"], versions=answer["versions"], weight_bytes_loaded=run["weight_bytes_loaded"],
    )  # fmt: skip


def check(folder):
    """Raise CheckpointError unless ``folder`` holds a GPTQ checkpoint that auto-gptq reads rightly."""
    files.check_folder(folder, "gptq")
    if read_json(folder, "config.json")["quantization_config"].get("checkpoint_format") == "gptq_v2":
        raise CheckpointError(f"{folder} is in GPTQ's second file format, and auto-gptq would read every zero point wrong by one: choose another.")


def load(folder, device, dtype):
    """Load a GPTQ checkpoint as the article did and return (model, tokenizer, names of tensors that the file lacks)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    arguments = {"torch_dtype": getattr(torch, dtype), "device_map": 0}
    if device == "cpu":  # ExLlama's kernels are for GPUs
        arguments = arguments | {"device_map": "cpu", "quantization_config": GPTQConfig(bits=4, use_exllama=False)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **arguments)
    return model, tokenizer, found["missing_keys"]


def work(job):
    """Do ``job`` (see ``make_job``) in this process and return the answer as ``ask`` describes it, with JSON's types only.

    The checkpoint's sizes have been checked by ``make_job``: that needs today's transformers.
    """
    from transformers import CONFIG_MAPPING, __version__

    files.check_method(job["folder"], "gptq")
    if (family := read_json(job["folder"], "config.json")["model_type"]) not in CONFIG_MAPPING:
        raise CheckpointError(
            f"The libraries of 2024 (transformers {__version__}) know no model of the kind {family}: leave the old stack out, or choose a Llama."
        )
    return {
        "runs": {dtype: _measure(job, dtype) for dtype in job["dtypes"]},
        "python": platform.python_version(),
        "device": machine.device_name(job["device"]),
        "versions": {name: setup.installed(name) for name in setup.pins(REQUIREMENTS)},
    }


def _measure(job, dtype):
    import torch

    with loading.quiet():
        model, tokenizer, missing = load(job["folder"], job["device"], dtype)
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    not_finite = fill_biases(model, missing)
    cold = timing.generate_once(model, tokenizer, job["prompt"], job["new_tokens"])
    result = timing.measure(model, tokenizer, job["prompt"], job["new_tokens"], cold)
    ids = torch.cat([timing.tokenise(model, tokenizer, job["prompt"])[0].cpu(), torch.tensor(result.token_ids)])
    with torch.no_grad():
        logits = model(ids[None, :-1].to(model.device)).logits[0].float().cpu()
    if not logits.isfinite().all():
        raise CourseError(f"The model's output in {dtype} is not finite, so nothing measured on it counts: take another checkpoint, or today's libraries.")
    kernel = next(type(part) for part in model.modules() if hasattr(part, "qweight"))
    # on a GPU torch 2.2's profiler calls its figures by other names than today's
    operations = decode_step(model, ids[None].to(model.device)) if job["device"] == "cpu" else None
    found = {"timing": asdict(result), "kernel": f"{kernel.__module__}.{kernel.__name__}", "weight_bytes_loaded": loading.weight_bytes(model)}
    found |= {"empty_biases": len(missing), "not_finite": not_finite, "logits": logits.tolist(), "operations": operations}
    del model
    loading.free_caches()
    return found


def fill_biases(model, missing):
    """Set the bias vectors named in ``missing`` to zero and return how many of their numbers were not finite before.

    The optimum of early 2024 gives every quantised layer a bias, and leaves it unset if the checkpoint has none (mended in optimum 1.20,
    https://github.com/huggingface/optimum/pull/1827). Raises CheckpointError if anything else is missing.
    """
    if others := [name for name in missing if not name.endswith(".bias")]:
        raise CheckpointError(f"The checkpoint lacks {len(others)} tensors, {others[0]} for one: fetch or build it again.")
    biases = [model.get_buffer(name) for name in missing]
    count = sum((~bias.isfinite()).sum().item() for bias in biases)
    for bias in biases:
        bias.zero_()
    return count
