"""How long did ``generate`` take, and where did the time go?

Greedy decoding, exactly ``new_tokens`` new tokens, batch 1 unless said otherwise. TTFT, TPOT and decode rate are defined as vLLM's and
transformers' own benchmarks define them (https://docs.vllm.ai, https://huggingface.co/docs/transformers).
"""

import os
import time
from dataclasses import dataclass, field
from statistics import median, quantiles

from helpers import checks, memory
from helpers.article import NEW_TOKENS, PROMPT, ROOT
from helpers.errors import PromptError, TokenCountError
from helpers.words import seconds

WARMUPS, REPEATS = 2, 5


@dataclass(frozen=True)
class Call:
    """One call of ``generate``; seconds. user and sys are this process's over all its threads, as ``%%time`` reports them."""

    user: float
    sys: float
    wall: float
    ttft: float
    new_tokens: int

    @property
    def cpu_total(self):
        """user + sys: above wall where several threads work at once, below it where the process waits."""
        return self.user + self.sys

    @property
    def decode(self):
        """Seconds from the first new token's logits to the end."""
        return self.wall - self.ttft

    @property
    def tpot(self):
        """Time per output token: decode time / (n - 1). None for a single token, which has no decode phase."""
        return self.decode / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def __str__(self):
        return (
            f"CPU times: user {seconds(self.user)}, sys: {seconds(self.sys)}, total: {seconds(self.cpu_total)}\n"
            f"Wall time: {seconds(self.wall)} for {self.new_tokens} new tokens, the first after {seconds(self.ttft)}"
        )


@dataclass(frozen=True)
class Timing:
    """What was measured on one loaded model: the cold call by itself, the warm repeats by themselves.

    prompt_tokens: tokens of the prompt, begin-of-sequence included. batch: sequences at a time. text: the first one's completion. peak_gpu_*: bytes, None without a GPU.
    peak_rss: highest resident set of the process so far, in bytes.
    """

    cold: Call
    warm: list[Call]
    prompt: str
    prompt_tokens: int
    new_tokens: int
    text: str
    peak_gpu_allocated: int | None = None
    peak_gpu_reserved: int | None = None
    peak_rss: int | None = None
    token_ids: list[int] = field(default_factory=list)
    batch: int = 1

    def median(self, quantity):
        """Median of ``quantity`` (a field or property of Call) over the warm repeats; None if it was not measured."""
        values = [v for v in (getattr(c, quantity) for c in self.warm) if v is not None]
        return median(values) if values else None

    def iqr(self, quantity):
        """Interquartile range of ``quantity`` over the warm repeats; None with fewer than two."""
        return iqr([v for v in (getattr(c, quantity) for c in self.warm) if v is not None])

    @property
    def decode_rate(self):
        """Tokens a second in the decode phase, (n - 1) / decode time, median of the warm repeats."""
        tpot = self.median("tpot")
        return 1 / tpot if tpot else None

    def __str__(self):
        lines = [f"cold   wall {seconds(self.cold.wall)}, first token after {seconds(self.cold.ttft)}"]
        if self.warm:
            lines.append(
                f"warm   wall {seconds(self.median('wall'))} (median of {len(self.warm)}, IQR {seconds(self.iqr('wall'))}), "
                f"first token after {seconds(self.median('ttft'))}"
            )
        if self.decode_rate:
            lines.append(f"decode {seconds(self.median('tpot'))} a token, {self.decode_rate:,.1f} tokens a second")
        return "\n".join(lines)


def iqr(values):
    """Interquartile range of ``values``; None with fewer than two."""
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def tokenise(model, tokenizer, prompt=PROMPT, new_tokens=NEW_TOKENS):
    """Return the prompt's token ids, shape (1, prompt tokens), on the model's device. Ids, shape (batch, tokens), stay as they are.

    Raises PromptError if the prompt is empty or does not fit into the context with the new tokens, TokenCountError if
    ``new_tokens`` is not a positive whole number.
    """
    if not isinstance(new_tokens, int) or isinstance(new_tokens, bool) or new_tokens < 1:
        raise TokenCountError(f"new_tokens is {new_tokens!r}: ask for a whole number of tokens, 1 or more.")
    if isinstance(prompt, str):
        prompt = tokenizer(prompt, return_tensors="pt").input_ids if prompt else None
    if getattr(prompt, "ndim", 0) != 2 or not prompt.numel():
        raise PromptError("The prompt is empty: give a text to go on from, or token ids of shape (batch, tokens).")
    ids = prompt.to(model.device)
    context = model.config.max_position_embeddings
    if ids.shape[1] + new_tokens > context:
        raise PromptError(
            f"The prompt has {ids.shape[1]} tokens; with {new_tokens} new ones that is more than the model's context of {context}:"
            " shorten the prompt or ask for fewer tokens."
        )
    return ids


def prompt_ids(model, tokenizer, tokens, batch=1):
    """Return token ids, shape (batch, ``tokens``): begin-of-sequence, then a stretch of held-out text, another one for each sequence."""
    import torch

    if min(tokens, batch) < 1:
        raise PromptError(f"A prompt of {tokens} tokens, {batch} at a time, makes no sense: ask for 1 or more.")
    text = (ROOT / "data" / "text" / "heldout.txt").read_text(encoding="utf-8")
    ids = tokenizer(" ".join(text.split()), add_special_tokens=False).input_ids
    ids = ids * (batch * tokens // len(ids) + 1)  # longer than the text: begin it again
    rows = [[tokenizer.bos_token_id, *ids[n * tokens : (n + 1) * tokens - 1]] for n in range(batch)]
    return torch.tensor(rows, device=model.device)


def generate_once(model, tokenizer, prompt=PROMPT, new_tokens=NEW_TOKENS, **options):
    """Call ``model.generate`` once and return (Call, new token ids as a list of int, of the first sequence).

    prompt: a text, or token ids of shape (batch, tokens). options: what else ``generate`` is to be told, e.g. cache_implementation.
    On a GPU the clock waits for its work at the start, after the first token's logits and at the end, and nowhere between.
    """
    import torch
    from transformers import LogitsProcessorList

    ids = tokenise(model, tokenizer, prompt, new_tokens)
    gpus = [n for n in range(torch.cuda.device_count()) if torch.cuda.memory_allocated(n)] if ids.is_cuda else []
    problem = None

    def synchronise():
        for n in gpus:
            torch.cuda.synchronize(n)

    first = _FirstToken(synchronise)
    synchronise()
    user, system = cpu_times()
    start = time.perf_counter()
    try:
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([first]),
            **options,
        )
        synchronise()
    except (RuntimeError, MemoryError) as error:
        problem = checks.out_of_memory(error, str(ids.device), "generating")
        if problem is None:
            raise
    if problem:  # raised here, where the failed call's variables are gone
        memory.hollow(model)
        raise problem
    end = time.perf_counter()
    user_end, system_end = cpu_times()
    new = output[0, ids.shape[1] :].tolist()
    if len(new) != new_tokens:
        raise TokenCountError(f"generate returned {len(new)} new tokens instead of {new_tokens}: the timing would be wrong.")
    return Call(user_end - user, system_end - system, end - start, first.time - start, len(new)), new


def measure(model, tokenizer, prompt=PROMPT, new_tokens=NEW_TOKENS, cold=None, warmups=WARMUPS, repeats=REPEATS, **options):
    """Measure ``generate`` and return a Timing: one cold call, ``warmups`` calls that are thrown away, ``repeats`` warm calls.

    prompt, options: as for ``generate_once``.
    cold: what ``generate_once`` returned for the first call after loading; without it, the first call made here counts as cold.
    Memory peaks are those since the cold call (GPU) and of the process so far (host); reading them costs no time in between.
    """
    import torch
    from tqdm.auto import trange

    if warmups < 0 or repeats < 0:
        raise TokenCountError(f"warmups is {warmups} and repeats is {repeats}: both must be 0 or more.")
    cold, ids = cold or generate_once(model, tokenizer, prompt, new_tokens, **options)
    inputs = tokenise(model, tokenizer, prompt, new_tokens)
    on_gpu = model.device.type == "cuda"
    gpus = range(torch.cuda.device_count()) if on_gpu else ()
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    calls = [generate_once(model, tokenizer, prompt, new_tokens, **options)[0] for _ in trange(warmups + repeats, desc="warm-ups and repeats")]
    return Timing(
        cold=cold,
        warm=calls[warmups:],
        prompt=prompt if isinstance(prompt, str) else tokenizer.decode(inputs[0], skip_special_tokens=True),
        prompt_tokens=inputs.shape[1],
        batch=inputs.shape[0],
        new_tokens=new_tokens,
        text=tokenizer.decode(ids, skip_special_tokens=True),
        token_ids=ids,
        peak_gpu_allocated=sum(map(torch.cuda.max_memory_allocated, gpus)) if on_gpu else None,
        peak_gpu_reserved=sum(map(torch.cuda.max_memory_reserved, gpus)) if on_gpu else None,
        peak_rss=peak_rss(),
    )


class _FirstToken:
    """A logits processor that notes when the first token's logits are there.

    A class, because transformers inspects the signature of each processor for each token: with a function that takes 0.4 ms, with a
    method nothing that can be measured.
    """

    def __init__(self, synchronise):
        self.synchronise, self.time = synchronise, None

    def __call__(self, input_ids, scores):
        if self.time is None:
            self.synchronise()
            self.time = time.perf_counter()
        return scores


def cpu_times():
    """(user, sys) seconds of this process over all its threads."""
    try:
        from resource import RUSAGE_SELF, getrusage  # finer than os.times, which counts in hundredths

        usage = getrusage(RUSAGE_SELF)
        return usage.ru_utime, usage.ru_stime
    except ImportError:  # Windows
        return os.times()[:2]


def peak_rss():
    """Highest resident set of this process so far, in bytes."""
    try:
        import sys
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
