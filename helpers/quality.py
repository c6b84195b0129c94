"""What does a format cost in quality? Perplexity, and how far the quantised model's predictions are from the unquantised model's.

Perplexity is by our own PROTOCOL. KL divergence and "same top token" are those of llama.cpp's ``--kl-divergence`` (tools/perplexity of
https://github.com/ggml-org/llama.cpp): for each scored position the sum over the vocabulary of p (log p - log q), p of the unquantised model, q
of the other, in nats. A model computes as it was loaded up to its output head; the head's sums and products are in float32, because 16-bit logits
are often equal, and of equal ones none is the top token. (All of a 7B in float32 would need 27 GB.) First used in notebook 08.
"""

import contextlib
import json
import sys
from datetime import UTC, datetime
from functools import lru_cache
from math import exp, inf, sqrt
from pathlib import Path

from helpers import ROOT, ledger, machine
from helpers.errors import LibraryError, PromptError
from helpers.loading import library
from helpers.loading.memory import hollow
from helpers.models import files, sizes
from helpers.models.choose import TIERS
from helpers.setup import installed, results_dir

BATCH, BITS, GROUP, CHUNK, PIECE = 16, 4, 128, 256, 4096  # lines at a time; bits and group of the grid; positions, and rows of the head, at a time
PROTOCOL = (
    "each line of data/text/heldout.txt alone, with <s> in front and no </s>, right-padded batches of 16; every token after <s> is"
    " scored; perplexity = exp(sum of negative log-likelihoods / number of scored tokens); output head and softmax in float32"
)
ROOM = 1.5e9  # bytes that ``keep`` may take: all lines of a vocabulary of 32,000
SCHEMA = 1
REQUIRED = {"title": str, "tier": str, "device": str, "protocol": str, "date": str, "weight_bytes": int, "missing": str, "versions": dict}
NUMBERS = ("perplexity", "tokens", "change", "change_se", "kl_mean", "kl_median", "kl_99", "same_top", "tpot_s")  # or None
KNOWN = {*TIERS, "own"}


def lines():
    """Return the held-out text as a list of lines (str): none of its sentences was trained on by the embedded models."""
    return (ROOT / "data" / "text" / "heldout.txt").read_text(encoding="utf-8").splitlines()


def held_out(model, tokenizer):
    """Return (token ids of the held-out text as ``encode`` gives them, the protocol in words) for ``model``.

    The text is the course's own, of an invented world: no model of the Hub has learnt it by heart, as it may have learnt Wikipedia. Where the
    vocabulary is so large that the predictions would take more than ROOM, one line in n is taken. The token in front is the tokeniser's, see
    ``library.begin``.
    """
    encoded, first = encode(tokenizer, lines()), tokenizer.convert_ids_to_tokens(library.begin(tokenizer))
    size = 4 * model.get_output_embeddings().weight.shape[0] * sum(len(row) - 1 for row in encoded)
    protocol, part = PROTOCOL, -(-size // int(ROOM))
    if first != "<s>":
        protocol = protocol.replace("with <s> in front and no </s>", f"with {first} in front and nothing behind").replace("<s>", first)
    return encoded[::part], protocol if part == 1 else protocol.replace("each line", f"one line in {part}")


def encode(tokenizer, texts):
    """Return the token ids of each of ``texts`` (list of lists of int, the token of library.begin first), short ones first."""
    return sorted(([library.begin(tokenizer), *library.encode(tokenizer, text, special=False)] for text in texts), key=len)


def batches(model, encoded):
    """Run ``model`` over ``encoded`` and yield (logits, targets) of each batch: (positions, vocabulary) in float32, see ``_head``, and (positions,).

    Position i holds the prediction of the token that follows; padding is left out. One batch at a time is in the device's memory.
    Raises PromptError if a text is longer than the model's context, NotEnoughMemoryError if the memory runs out (the model is freed),
    NotFiniteError where a logit is not finite.
    """
    import torch

    context = sizes.context(model.config)
    for start in range(0, len(encoded), BATCH):
        rows = encoded[start : start + BATCH]
        longest, problem = max(map(len, rows)), None
        if context is not None and longest > context:
            raise PromptError(f"A text has {longest} tokens and the model's context is {context}: cut the text into shorter lines.")
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
        scored = mask[:, 1:].bool()
        try:
            with torch.no_grad(), _free_cores(), _exact_head(model, scored):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        except Exception as error:
            problem = machine.out_of_memory(error, str(model.device), "scoring") or library.explained(error, LibraryError, "scoring failed", library.FAILED[1])
        if problem:  # raised here, where the failed call's variables are gone
            if isinstance(problem, MemoryError):
                hollow(model)
            raise problem
        if not logits.isfinite().all():
            library.check_finite(model, ids, surely=True)
        yield logits, ids[:, 1:][scored].to(logits.device)


@lru_cache(maxsize=1)
def _free():  # asked once: with another number of threads sums would be added in another order
    return machine.free_cores(machine.busy_cores())


@contextlib.contextmanager
def _free_cores():
    """Compute with all cores that are free meanwhile: many tokens at a time are long products, which gain from each, whatever a single token gains.

    Where another program has one of two cores, two threads wait for each other, and a product takes many times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_free())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _exact_head(model, scored):
    """Let ``model``'s output head compute in float32, and only for the positions ``scored`` (bool, (batch, tokens - 1)): (positions, vocabulary).

    What the model does with its logits afterwards stays as it is: Gemma 2 caps them (final_logit_softcapping), Granite scales them.
    """
    head = model.get_output_embeddings()
    before = vars(head).get("forward")  # of a model on several GPUs: accelerate's
    head.forward = lambda hidden: _head(head, hidden[:, :-1][scored.to(hidden.device)])
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def _head(head, hidden):
    """The logits, shape (positions, vocabulary), that the linear layer ``head`` makes of ``hidden``: both converted to float32, without loss, before the product.

    PIECE of its rows at a time, because a float32 copy of all of them would not fit beside a model that fills its GPU.
    """
    import torch

    hidden = hidden.to(head.weight.device).float()
    logits = torch.cat([torch.nn.functional.linear(hidden, rows.float()) for rows in head.weight.split(PIECE)], -1)
    return logits if head.bias is None else logits + head.bias.float()


def keep(model, encoded):
    """Return ``list(batches(…))`` in host memory: a reference for ``score``, 4 bytes a number."""
    return [(logits.cpu(), targets.cpu()) for logits, targets in batches(model, encoded)]


def score(predictions, reference=None):
    """Compare ``predictions`` (from ``batches`` or ``keep``) with a kept ``reference``; return (figures, losses).

    figures: perplexity, tokens; with a reference also kl_mean, kl_median, kl_99 (nats), same_top (share of positions, 0 to 1), change
    (perplexity / the reference's - 1) and change_se (its standard error, of paired differences). losses: negative log-likelihood of each scored
    token (float64, host). Raises PromptError if the reference is of another text.
    """
    import torch

    ours, theirs, kl, same = [], [], [], []
    for number, (logits, targets) in enumerate(predictions):
        ours.append(_losses(logits, targets))
        if reference is not None:
            if number >= len(reference) or not targets.cpu().equal(reference[number][1].cpu()):
                raise PromptError("The reference was kept for another text, or for other batches of it: score the text that was given to keep.")
            theirs.append(_losses(*reference[number]))
            for kept, new in zip((kl, same), compare(logits, reference[number][0])):
                kept.append(new)
    tokens = sum(map(len, ours))
    figures = {"perplexity": float(torch.tensor(sum(part.sum().item() for part in ours) / tokens).exp()), "tokens": tokens}
    ours = torch.cat(ours)
    if reference is not None:
        kl = torch.cat(kl)
        figures |= {"kl_mean": kl.mean().item(), "kl_median": kl.median().item(), "kl_99": kl.quantile(0.99).item()}
        figures["same_top"] = torch.cat(same).double().mean().item()
        figures["change"], figures["change_se"] = change(ours, torch.cat(theirs))
    return figures, ours


def compare(logits, reference):
    """Return (KL divergence in nats, whether the top token is the same) for each position; two tensors (positions,) on the host.

    logits, reference: (positions, vocabulary), any float type, each on any device. Where either has several tokens of exactly the highest
    logit, it has no top token, and the two do not agree.
    """
    import torch

    kl, same = [], []
    for ours, theirs in zip(logits.split(CHUNK), reference.split(CHUNK)):
        theirs = theirs.to(ours.device)
        q, p = ours.float().log_softmax(-1), theirs.float().log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).double().cpu())
        highest = [each == each.amax(-1, keepdim=True) for each in (ours, theirs)]
        same.append(((highest[0] == highest[1]).all(-1) & (highest[0].sum(-1) == 1)).cpu())
    return torch.cat(kl), torch.cat(same)


def change(ours, theirs):
    """Return (relative change of perplexity, its standard error) from the losses ``theirs`` to ``ours`` on the same tokens."""
    difference = ours - theirs
    ratio = exp(difference.mean().item())
    return ratio - 1, ratio * difference.std().item() / sqrt(len(difference))


def round_to_nearest(model):
    """Round the linear layers of all blocks to GPTQ's grid, in place, and return ``model``: 4 bits, groups of 128 inputs, symmetric.

    Each weight takes the nearest of 16 values, scale x (-8 … 7), scale = 2 max |weight| / 15 in its group, and stays in the model's type.
    """
    import torch

    with torch.no_grad():
        for weight in (part.weight for part in model.get_decoder().modules() if isinstance(part, torch.nn.Linear)):
            groups = weight.float().view(weight.shape[0], -1, GROUP)
            scale = (2 * groups.abs().amax(-1, keepdim=True) / (2**BITS - 1)).clamp(min=1e-8)
            codes = (torch.round(groups / scale) + 2 ** (BITS - 1)).clamp(0, 2**BITS - 1)
            weight.copy_(((codes - 2 ** (BITS - 1)) * scale).view_as(weight))
    return model


def make_row(step, figures, tpot_s=None, device=None, **other):
    """Return the row (a dict that JSON can hold) of ``step`` for ``save``: figures from ``score``, tpot_s in seconds, sizes in bytes.

    device: in words, by default this machine's. other: keys to set differently.
    """
    row = {
        "title": step.title, "tier": step.tier, "device": device or machine.device_name(), "model": step.model, "format": step.format,
        "weight_bytes": other.get("weight_bytes") or step.bytes, "checkpoint": step.place, "protocol": PROTOCOL,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": {name: installed(name) for name in ledger.PACKAGES},
        "missing": "",
    }  # fmt: skip
    return row | dict.fromkeys(NUMBERS) | figures | {"tpot_s": tpot_s} | other


def speed(timing):
    """What a row keeps of ``timing`` (a Timing, or None): time a token, and ledger.mark where that was disturbed. First used in notebook 08."""
    return {"tpot_s": timing.median("tpot"), "mark": ledger.mark(ledger.measured(timing))} if timing else {"tpot_s": None, "mark": ""}


def save(rows, path=None):
    """Write ``rows`` ({step key: row of ``make_row``}) to ``quality.json`` in the results folder, all at once: it is never half written."""
    files.write_json(path or results_dir() / "quality.json", {"schema": SCHEMA, "rows": {str(key): row for key, row in rows.items()}}, indent=1)


def read(path=None):
    """Return what ``save`` wrote, {step key: row}; {} without a file. What is damaged is reported in a sentence and left out."""
    path = Path(path or results_dir() / "quality.json")
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        rows = content["rows"].items() if content["schema"] == SCHEMA else None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        rows = None
    if rows is None:
        print(f"{path.name} is cut off or of another kind: run notebook 08 again.", file=sys.stderr)
        return {}
    good = {key: row for key, row in rows if _usable(row)}
    if len(good) < len(rows):
        print(f"{path.name}: {len(rows) - len(good)} of {len(rows)} rows cannot be used and are skipped; run notebook 08 again.", file=sys.stderr)
    return {int(key) if key.isdecimal() else key: row for key, row in good.items()}


def _usable(row):
    """Whether ``row`` has what tables and charts need: REQUIRED, finite numbers, and a perplexity unless it is missing."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in REQUIRED.items()) or row["tier"] not in KNOWN:
        return False
    numbers = [row[key] for key in NUMBERS if row.get(key) is not None]
    finite = all(isinstance(number, (int, float)) and not isinstance(number, bool) and -inf < number < inf for number in numbers)
    return finite and (bool(row["missing"]) or (row.get("perplexity") or 0) >= 1)


def _losses(logits, targets):
    """Negative log-likelihood of each target: computed in float32, returned in float64 on the host."""
    import torch

    pairs = zip(logits.split(CHUNK), targets.split(CHUNK))
    return torch.cat([torch.nn.functional.cross_entropy(each.float(), wanted, reduction="none") for each, wanted in pairs]).double().cpu()
