"""What does one process of the benchmark do? Load one step, measure it, report its rows. First used in notebook 06."""

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product

from helpers import ledger, limits, loading, machine, timing
from helpers.benchmark.profile import decode_step
from helpers.errors import PromptError
from helpers.models import choose, synthetic
from helpers.timing import NEW_TOKENS, PROMPT

# What loading imports for every step before it reads a weight. Not gptqmodel, which starts threads, nor bitsandbytes: they are for some steps only.
LIBRARIES = (
    "helpers.benchmark.job", "torch", "transformers.modeling_utils", "transformers.generation.utils", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One process: one step, loaded once and measured with every prompt length and batch size.

    key: see choose.get_step. size: a key of synthetic.SHAPES, or "" for the tier's own checkpoint; layers: as many of its blocks, or None.
    checkpoint: in place of the tier's, see choose.get_step; dtype: in place of the step's ("" for neither). prompt_tokens: lengths of prompts of
    held-out text; None stands for the article's prompt.
    """

    key: int | str
    tier: str
    size: str = ""
    layers: int | None = None
    prompt_tokens: tuple = (None,)
    batches: tuple = (1,)
    new_tokens: int = NEW_TOKENS
    warmups: int = timing.WARMUPS
    repeats: int = timing.REPEATS
    device: str | None = None
    round: int = 1
    checkpoint: str = ""
    dtype: str = ""

    @property
    def name(self):
        """Which job of a run it is."""
        return f"{self.key} {self.size} {self.layers or ''} round {self.round}"

    def step(self):
        """The Step to load; a synthetic size takes the place of the article's."""
        step = choose.get_step(self.key, "embedded" if self.size else self.tier, self.checkpoint or None)  # of a size, only format and type are the step's
        step = replace(step, dtype=self.dtype or step.dtype)
        if self.size:
            folder = synthetic.folder(self.size, step.format, self.layers)
            model = self.size if not self.layers else f"{self.size} cut to {self.layers} layers"
            step = replace(step, number=0, name=str(self.key), model=model, tier="synthetic", checkpoint=str(folder))
        return step


def measure(job):
    """Do ``job`` (a Job as a dict) in this process and return its rows (list of dict), one for each prompt length and batch size."""
    job = Job(**job | {name: tuple(job[name]) for name in ("prompt_tokens", "batches")})
    step = job.step()
    if step.is_folder:  # said before anything is loaded
        longest = max(tokens or 0 for tokens in job.prompt_tokens) + job.new_tokens
        context = step.shape.context
        if context is not None and longest > context:
            raise PromptError(f"{step.title}: {longest} tokens are more than its context of {context}: shorten --prompt-tokens.")
    with machine.quiet():  # a copy of a process that has them must not load faster
        for name in LIBRARIES:
            import_module(name)
    size, device = step.shape.read_bytes(step.format), machine.get_device(job.device)
    speed = limits.bandwidth(device, size)
    started = time.perf_counter()
    model, tokenizer = loading.load(step, job.device)
    load_s, load_peak, rows = time.perf_counter() - started, machine.peak_rss(), []
    for tokens, batch in product(job.prompt_tokens, job.batches):
        prompt = PROMPT if tokens is None else timing.prompt_ids(model, tokenizer, tokens, batch)
        if tokens is None and batch > 1:
            prompt = timing.tokenise(model, tokenizer).repeat(batch, 1)
        before = _loaded()
        cold = timing.generate_once(model, tokenizer, prompt, job.new_tokens)
        new = _loaded() - before
        result = timing.measure(model, tokenizer, prompt, job.new_tokens, cold, job.warmups, job.repeats)
        context = result.prompt_tokens + job.new_tokens / 2  # at half of the answer
        rows.append(ledger.make_row(step, result, model, speed=speed) | {
            "load_s": load_s,
            "peak_rss_loading_bytes": load_peak,
            "modules_loaded_by_first_call": sum(kind == "module" for kind, _ in new),
            "libraries_loaded_by_first_call": sum(kind == "library" for kind, _ in new),
            "floor_bytes": int(limits.step_bytes(step.shape, step.format, context, batch)),
        })  # fmt: skip
        rows[-1]["peak_generating_bytes"] = machine.peak(device, partial(timing.generate_once, model, tokenizer, prompt, job.new_tokens))
    ids = timing.tokenise(model, tokenizer)
    operations = decode_step(model, ids)
    del model
    return [row | {"operations_s": operations} for row in limits.with_floor(rows, device, [(size, speed)])]


def _loaded():
    """{("module", name)} and {("library", path)} of what this process has loaded by now."""
    found = {("module", name) for name in list(sys.modules)}
    with contextlib.suppress(OSError):  # Linux only
        with open("/proc/self/maps", encoding="utf-8") as maps:
            found |= {("library", line.split()[-1]) for line in maps if ".so" in line}
    return found
