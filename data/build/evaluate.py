"""Held-out perplexity and greedy completions for every format, and the targets that the build must meet."""

import time
from pathlib import Path

import torch

from helpers import quality

from .settings import THREADS

PROMPT = "A great hobby to have is "  # with the space at the end
NEW_TOKENS = 15
PROTOCOL = f"{quality.PROTOCOL}; CPU"
# format name -> (folder suffix, dtype, how it is loaded)
FORMATS = {
    "bf16": ("", "bfloat16", "plain"),
    "int8": ("", "float16", "bitsandbytes"),
    "gptq-float16": ("-gptq", "float16", "plain"),
    "gptq-bfloat16": ("-gptq", "bfloat16", "plain"),
    "gptq-float32": ("-gptq", "float32", "plain"),
    "round-to-nearest": ("", "float32", "rounded"),
}


def load(folder, dtype, how):
    """Load one checkpoint on the CPU in one of the formats."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if how == "bitsandbytes" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), device_map={"": "cpu"}, **options)
    return quality.round_to_nearest(model) if how == "rounded" else model.eval()


@torch.no_grad()
def completion(model, tokeniser):
    """(text, milliseconds per new token) of the greedy completion of the course's prompt."""
    inputs = tokeniser(PROMPT, return_tensors="pt", return_token_type_ids=False)
    began = time.time()
    ids = model.generate(**inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)
    spent = time.time() - began
    return tokeniser.decode(ids[0], skip_special_tokens=True), 1000 * spent / NEW_TOKENS


def folder_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def evaluate_model(checkpoints, name, lines, say=print):
    """All formats of one model ('small' or 'large'), as a plain dictionary for quality.json."""
    from transformers import AutoTokenizer

    torch.set_num_threads(THREADS)
    tokeniser = AutoTokenizer.from_pretrained(Path(checkpoints) / name)
    result = {"formats": {}}
    for label, (suffix, dtype, how) in FORMATS.items():
        model = load(Path(checkpoints) / f"{name}{suffix}", dtype, how)
        if label == "bf16":
            result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        began = time.time()
        figures, _ = quality.score(quality.batches(model, quality.encode(tokeniser, lines)))
        value, count = figures["perplexity"], figures["tokens"]
        spent = time.time() - began
        text, speed = completion(model, tokeniser)
        result["scored_tokens"] = count
        result["formats"][label] = {"perplexity": round(value, 4), "compute_dtype": dtype, "completion": text}
        say(f"  {name:5s} {label:16s} perplexity {value:8.4f}   {spent:5.1f} s   {speed:6.1f} ms a new token   {text!r}")
        del model
    result["bytes"] = {suffix or "base": folder_bytes(Path(checkpoints) / f"{name}{suffix}") for suffix in ("", "-gptq")}
    return result


def missed_targets(models):
    """The targets that the measured values miss, in words; an empty list means that all is well.

    `models` maps 'small' and 'large' to the dictionaries of `evaluate_model`.
    """
    missed, value = [], {}
    for name, model in models.items():
        value[name] = {label: entry["perplexity"] for label, entry in model["formats"].items()}
        base, gptq = value[name]["bf16"], value[name]["gptq-float16"]
        if abs(value[name]["int8"] / base - 1) > 0.01:
            missed.append(f"{name}: 8-bit perplexity {value[name]['int8']} is not within 1 % of bf16 ({base})")
        if not 1.005 <= gptq / base <= 1.10:
            missed.append(f"{name}: GPTQ perplexity {gptq} is not 0.5 % to 10 % above bf16 ({base})")
        if gptq >= value[name]["round-to-nearest"]:
            missed.append(f"{name}: GPTQ ({gptq}) is not better than rounding ({value[name]['round-to-nearest']})")
        for label, entry in model["formats"].items():  # plain rounding is only a comparison and ships with nothing
            if label != "round-to-nearest" and not readable(entry["completion"]):
                missed.append(f"{name} {label}: the completion is not readable: {entry['completion']!r}")
    if value["large"]["bf16"] > 0.99 * value["small"]["bf16"]:
        missed.append(f"large ({value['large']['bf16']}) is not at least 1 % below small ({value['small']['bf16']})")
    ratio = models["large"]["parameters"] / models["small"]["parameters"]
    if not 1.8 <= ratio <= 2.0:
        missed.append(f"large has {ratio:.2f} times the parameters of small, not 1.8 to 2.0")
    return missed


def readable(completion):
    """Does the completion start with the name of a hobby of the invented world, and repeat no word at once?"""
    from .world import build_world

    rest = completion.removeprefix(PROMPT)
    words = rest.split()
    starts = any(rest.startswith(hobby.name) for hobby in build_world(0).hobbies)
    return completion.startswith(PROMPT) and starts and all(a != b for a, b in zip(words, words[1:]))
