"""How long did ``generate`` take, and how is it said?

Greedy decoding, exactly ``new_tokens`` new tokens, batch 1 unless said otherwise; prompt and number are the article's. TTFT, TPOT and decode
rate as vLLM's and transformers' own benchmarks define them (https://docs.vllm.ai, https://huggingface.co/docs/transformers). First used in notebook 01.
"""

import json
import time
from dataclasses import dataclass, field, replace
from numbers import Integral
from statistics import median, quantiles

from helpers import ROOT, loading, machine
from helpers.errors import LibraryError, PromptError, TokenCountError
from helpers.exercises.predictions import calibration, closeness, guess, in_seconds  # noqa: F401  (notebooks say here how near a prediction came)
from helpers.loading import library
from helpers.models import sizes

PROMPT, NEW_TOKENS = map(json.loads((ROOT / "data" / "article.json").read_text(encoding="utf-8")).get, ("prompt", "new_tokens"))
WARMUPS, REPEATS = 2, 5
UNSTEADY, AGAIN, LONG = 0.1, 2, 60  # repeats that differ by more (IQR / median) are repeated, at most twice; not where a round takes over a minute


@dataclass(frozen=True)
class Call:
    """One call of ``generate``; seconds. user and sys are this process's over all its threads, as ``%%time`` reports them.

    passes: through the model whose text it is, the prompt's included; 0: not counted, which means one a token.
    """

    user: float
    sys: float
    wall: float
    ttft: float
    new_tokens: int
    others: float = 0.0  # cores that other programs used meanwhile, see machine.Load
    passes: int = 0

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

    @property
    def pass_time(self):
        """Seconds of one pass of the decode phase: decode time / (passes - 1). The TPOT, where each pass makes one token."""
        passes = self.passes or self.new_tokens
        return self.decode / (passes - 1) if passes > 1 else None

    @property
    def tokens_per_pass(self):
        """Tokens that a pass of the decode phase gives, as TPOT counts them: (n - 1) / (passes - 1), so pass_time / TPOT."""
        passes = self.passes or self.new_tokens
        return (self.new_tokens - 1) / (passes - 1) if passes > 1 else None

    def __str__(self):
        return (
            f"CPU times: user {seconds(self.user)}, sys: {seconds(self.sys)}, total: {seconds(self.cpu_total)}\n"
            f"Wall time: {seconds(self.wall)} for {self.new_tokens} new tokens, the first after {seconds(self.ttft)}"
        )


@dataclass(frozen=True)
class Timing:
    """What was measured on one loaded model: the cold call by itself, the warm repeats by themselves.

    prompt_tokens: tokens of the prompt, begin-of-sequence included. batch: sequences at a time. text: the first one's completion.
    answer: a chat model's, to the prompt in its chat template, not timed; None of a base model. peak_gpu_*: bytes, None without a GPU. peak_rss: bytes, of the
    process so far. load: see machine.Load.figures.
    """

    cold: Call
    warm: list[Call]
    prompt: str
    prompt_tokens: int
    new_tokens: int
    text: str
    answer: str | None = None
    peak_gpu_allocated: int | None = None
    peak_gpu_reserved: int | None = None
    peak_rss: int | None = None
    token_ids: list[int] = field(default_factory=list)
    batch: int = 1
    threads: int | None = None
    load: dict = field(default_factory=dict)

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

    Raises PromptError if it is empty or with the new tokens too long for the context, TokenCountError unless these are a whole number, 1 or more.
    """
    _whole(1, new_tokens=new_tokens)
    if isinstance(prompt, str):
        prompt = library.encode(tokenizer, prompt, return_tensors="pt") if prompt else None
    if getattr(prompt, "ndim", 0) != 2 or not prompt.numel():
        raise PromptError("The prompt is empty, or neither a text nor token ids: give a text to go on from, or token ids of shape (batch, tokens).")
    library.check_ids(model, prompt)
    ids = prompt.to(model.device)
    context = sizes.context(model.config)
    if context is not None and ids.shape[1] + new_tokens > context:
        raise PromptError(
            f"The prompt has {ids.shape[1]} tokens; with {new_tokens} new ones that is more than the model's context of {context}:"
            " shorten the prompt or ask for fewer tokens."
        )
    return ids


def _whole(least, **numbers):
    """Raise TokenCountError unless each of ``numbers`` is a whole number, ``least`` or more."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise TokenCountError(f"{name} is {number!r}: give a whole number, {least} or more.")


def prompt_ids(model, tokenizer, tokens, batch=1):
    """Return token ids, shape (batch, ``tokens``): begin-of-sequence, then a stretch of held-out text, another one for each sequence.

    Raises TokenCountError unless both are whole numbers, 1 or more.
    """
    import torch

    _whole(1, tokens=tokens, batch=batch)
    text = (ROOT / "data" / "text" / "heldout.txt").read_text(encoding="utf-8")
    first, ids = library.begin(tokenizer), library.encode(tokenizer, " ".join(text.split()), special=False)
    ids = ids * (batch * tokens // len(ids) + 1)  # longer than the text: begin it again
    rows = [[first, *ids[n * tokens : (n + 1) * tokens - 1]] for n in range(batch)]
    return torch.tensor(rows, device=model.device)


def generate_once(model, tokenizer, prompt=PROMPT, new_tokens=NEW_TOKENS, **options):
    """Call ``model.generate`` once and return (Call, new token ids as a list of int, of the first sequence).

    prompt: a text, or token ids of shape (batch, tokens). options: what else ``generate`` is to be told, e.g. cache_implementation, or
    assistant_model with num_assistant_tokens; of the checkpoints' own generation_config nothing is used. On a GPU the clock waits for its work
    at the start, after the first token's logits and at the end, and nowhere between. Raises NotFiniteError, after the clock has stopped, if
    the last logits are not finite.
    """
    import torch
    from transformers import LogitsProcessorList

    ids = tokenise(model, tokenizer, prompt, new_tokens)
    gpus = [n for n in range(torch.cuda.device_count()) if torch.cuda.memory_allocated(n)] if ids.is_cuda else []
    problem, proposed = None, library.proposes(options)
    settings, rest = library.greedy(model, tokenizer, new_tokens, **options)

    def synchronise():
        for n in gpus:
            torch.cuda.synchronize(n)

    first = _FirstToken(synchronise)
    processors = LogitsProcessorList([] if proposed else [first])
    with library.prepared(model, settings, options, first.after_pass):
        synchronise()
        load = machine.Load()
        user, system = machine.cpu_times()
        start = time.perf_counter()
        try:
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, logits_processor=processors, **rest)
            synchronise()
        except Exception as error:
            problem = machine.out_of_memory(error, str(ids.device), "generating") or library.explained(error, LibraryError, *library.failed(options))
    if problem:  # raised here, where the failed call's variables are gone
        if isinstance(problem, MemoryError):
            loading.memory.hollow(model)
        raise problem
    end = time.perf_counter()
    user_end, system_end = machine.cpu_times()
    new = getattr(output, "sequences", output)[0, ids.shape[1] :].tolist()
    new = new[:new_tokens] if proposed else new  # transformers 5.0 keeps all tokens of the last pass
    if len(new) != new_tokens:
        raise TokenCountError(f"generate returned {len(new)} new tokens instead of {new_tokens}: the timing would be wrong, so load the model anew.")
    if not first.scores.nan_to_num(torch.inf).lt(torch.inf).all():  # -inf keeps the end of text away
        library.check_finite(model, output, surely=True)
    return Call(user_end - user, system_end - system, end - start, first.time - start, len(new), load.stop().others, first.passes), new


def measure(model, tokenizer, prompt=PROMPT, new_tokens=NEW_TOKENS, cold=None, warmups=WARMUPS, repeats=REPEATS, **options):
    """Measure ``generate`` and return a Timing: one cold call, ``warmups`` calls that are thrown away, ``repeats`` warm calls.

    prompt, options: as for ``generate_once``. cold: what that returned for the first call after loading; without it, the first call here
    counts as cold. Memory peaks are those since the cold call (GPU) and of the process so far (host).

    A text is timed as it stands, without a chat template, whatever the model: the article asked its chat model (step 3) so, and the tokens of a
    template would differ between models. A chat model is asked once more afterwards, through its template, for Timing.answer. Last, a pass
    looks at each layer's output: raises NotFiniteError where one is not finite.
    """
    import torch
    from tqdm.auto import trange

    _whole(0, warmups=warmups, repeats=repeats)
    cold, ids = cold or generate_once(model, tokenizer, prompt, new_tokens, **options)
    inputs = tokenise(model, tokenizer, prompt, new_tokens)
    gpus = range(torch.cuda.device_count()) if model.device.type == "cuda" else ()
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    load = machine.Load()
    calls = [generate_once(model, tokenizer, prompt, new_tokens, **options)[0] for _ in trange(warmups + repeats, desc="warm-ups and repeats")]
    warm = steadiest(calls[warmups:], lambda: [generate_once(model, tokenizer, prompt, new_tokens, **options)[0] for _ in range(repeats)])
    result = Timing(
        cold=cold,
        warm=warm,
        prompt=prompt if isinstance(prompt, str) else tokenizer.decode(inputs[0], skip_special_tokens=True),
        prompt_tokens=inputs.shape[1],
        batch=inputs.shape[0],
        new_tokens=new_tokens,
        text=tokenizer.decode(ids, skip_special_tokens=True),
        token_ids=ids,
        peak_gpu_allocated=sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
        peak_gpu_reserved=sum(map(torch.cuda.max_memory_reserved, gpus)) if gpus else None,
        peak_rss=machine.peak_rss(),
        threads=torch.get_num_threads(),
        load=load.figures(),
    )
    library.check_finite(model, inputs[:1])
    if isinstance(prompt, str) and (asked := library.asked(tokenizer, prompt)) is not None:
        result = replace(result, answer=tokenizer.decode(generate_once(model, tokenizer, asked, new_tokens, **options)[1], skip_special_tokens=True))
    return result


def steadiest(calls, again):
    """``calls``, or where their wall times differ by more than UNSTEADY, the steadiest of them and of up to AGAIN further rounds of ``again()``."""
    rounds = [calls]
    while len(calls) > 1 and spread(rounds[-1]) > UNSTEADY and len(rounds) <= AGAIN and sum(call.wall for call in calls) < LONG:
        rounds.append(again())
    return min(rounds, key=spread)


def spread(calls, quantity="wall"):
    """Interquartile range of ``quantity`` over ``calls``, as a share of its median; 0 with fewer than two."""
    values = [value for call in calls if (value := getattr(call, quantity)) is not None]
    return (iqr(values) or 0) / median(values) if len(values) > 1 else 0


class _FirstToken:
    """A logits processor that notes when the first token's logits are there; a class, because transformers inspects a function for 0.4 ms a token.

    Where tokens are proposed, a processor sees the proposals' logits too: there the passes through the model itself are watched.
    """

    def __init__(self, synchronise):
        self.synchronise, self.time, self.scores, self.passes = synchronise, None, None, 0

    def after_pass(self, module, inputs, output):
        self(None, output.logits[:, -1])

    def __call__(self, input_ids, scores):
        self.scores, self.passes = scores, self.passes + 1
        if self.time is None:
            self.synchronise()
            self.time = time.perf_counter()
        return scores


def seconds(value):
    """Write a time with three significant digits and a fitting unit, e.g. "16.4 s", "351 ms", "85.2 µs"."""
    if not value:
        return "-" if value is None else "0 s"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= factor or unit == "µs":
            scaled = value / factor
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            return f"{scaled:.{digits}f} {unit}"


def explain(call):
    """Say in words what user, sys, total and wall of ``call`` mean: who worked, and who waited."""
    ratio, waited = call.cpu_total / call.wall, seconds(call.wall - call.cpu_total)
    meaning = (
        "about 1, as much work as one core does in that time. (While it waits for a GPU, the driver may keep a core busy, so waiting can hide in this number.)"
    )
    if ratio > 1.1:
        meaning = "more than 1, so several threads worked at the same time."
    elif ratio < 0.9:
        meaning = f"below 1, so for at least {waited} nothing here worked: it waited for a GPU, a disk, or a processor that others used."
    return (
        f"The clock on the wall ran for {seconds(call.wall)}; the processor worked {seconds(call.cpu_total)} for this notebook:\n"
        f"{seconds(call.user)} in the program and its libraries (user), {seconds(call.sys)} in the operating system (sys).\n"
        f"CPU total / wall = {ratio:.2f}: {meaning}"
    )


def mark(tokenizer, ids, reference):
    """Return (text of ``ids`` with the first token that differs from ``reference`` in ⟦ ⟧, its place from 0); place None if all agree."""
    text = tokenizer.decode(ids)
    place = next((n for n, (ours, theirs) in enumerate(zip(ids, reference)) if ours != theirs), None)
    if place is None:
        return text, None
    start, end = (len(tokenizer.decode(ids[:n])) for n in (place, place + 1))
    return f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}", place
