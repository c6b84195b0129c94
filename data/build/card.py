"""quality.json and the model card data/README.md, both filled from what the build measured."""

import datetime
import platform
from importlib.metadata import version

from helpers.models import files

from .evaluate import FORMATS, PROMPT, PROTOCOL
from .outliers import FACTOR, SHARE
from .quantise import BITS, GROUP
from .settings import SETTING
from .train import WINDOW

PACKAGES = ["torch", "transformers", "tokenizers", "accelerate", "optimum", "gptqmodel", "bitsandbytes", "safetensors"]
NAMES = {
    "bf16": "bf16 (the base model)",
    "int8": "bitsandbytes 8-bit, fp16 activations",
    "gptq-float16": "GPTQ 4-bit, fp16 activations",
    "gptq-bfloat16": "GPTQ 4-bit, bf16 activations",
    "gptq-float32": "GPTQ 4-bit, fp32 activations",
    "round-to-nearest": "4-bit rounding without GPTQ, fp32 activations",
}


def quality_record(models, settings, losses, seconds):
    """Everything measured, ready for quality.json."""
    return {
        "protocol": PROTOCOL,
        "text": "data/text/heldout.txt",
        "date": datetime.date.today().isoformat(),
        "machine": "2 CPU cores, no GPU",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "seed": settings.seed,
        "vocabulary": settings.vocabulary,
        "build_minutes": round(seconds / 60, 1),
        "training": {
            name: {
                **settings.models[name].shape,
                **settings.models[name].plan,
                "tokens": settings.models[name].plan["steps"] * settings.models[name].plan["batch"] * WINDOW,
                "first_loss": round(loss[0], 3),
                "last_loss": round(sum(loss[-50:]) / len(loss[-50:]), 3),
            }
            for name, loss in losses.items()
        },
        "prompt": PROMPT,
        "models": models,
    }


def write_quality(record, path):
    files.write_json(path, record, setting=SETTING, indent=2)


def _shape_table(record):
    rows = ["| | small | large |", "|---|---|---|"]
    models, plans = record["models"], record["training"]
    rows.append("| parameters | " + " | ".join(f"{models[n]['parameters']:,}" for n in models) + " |")
    for key, words in (
        ("hidden", "hidden size"),
        ("inner", "inner size of the MLP"),
        ("layers", "layers"),
        ("heads", "attention heads"),
        ("positions", "longest context in tokens"),
        ("steps", "training steps"),
        ("tokens", "training tokens seen"),
    ):
        rows.append(f"| {words} | " + " | ".join(f"{plans[n][key]:,}" for n in models) + " |")
    for key, words in (("base", "folder of the base model, MB"), ("-gptq", "folder of the GPTQ model, MB")):
        rows.append(f"| {words} | " + " | ".join(f"{models[n]['bytes'][key] / 1e6:.1f}" for n in models) + " |")
    return "\n".join(rows)


def _perplexity_table(record):
    models = record["models"]
    rows = ["| format | small | large |", "|---|---|---|"]
    for label in FORMATS:
        cells = []
        for name in models:
            value, base = models[name]["formats"][label]["perplexity"], models[name]["formats"]["bf16"]["perplexity"]
            cells.append(f"{value:.3f}" if label == "bf16" else f"{value:.3f} ({100 * (value / base - 1):+.2f} %)")
        rows.append(f"| {NAMES[label]} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _completions(record):
    return "\n".join(f"- {name}, {label}: `{entry['completion']}`" for name, model in record["models"].items() for label, entry in model["formats"].items())


CARD = """# Two small language models for the course

This file is written by the build; all figures in it were measured by the build.

The folder `checkpoints/` holds two small language models with the Llama-2 *architecture*, and a 4-bit GPTQ twin of
each.  They were trained from random numbers for this project, on text that was also made for this project.

**They are not Llama-2.  None of the weights of Llama-2, or of any other model, are in them.**  `small` stands in for
the 7B model of the article and `large` for the 13B model, on machines that have no GPU or no network.

| folder | what it is |
|---|---|
| `checkpoints/small`, `checkpoints/large` | the base models, bf16 safetensors |
| `checkpoints/small-gptq`, `checkpoints/large-gptq` | GPTQ, {bits} bits, groups of {group}, symmetric, no activation order, v1 layout |
| `text/heldout.txt` | text for perplexity, one document a line; no sentence of it is in the training text |
| `text/calibration.txt` | training text on which GPTQ was calibrated |
| `quality.json` | the measured perplexities, with protocol, versions and date |
| `build/` | the program that makes all of the above |
| `article.json` | the figures of the article that the course follows |
| `hardware.json` | memory and bandwidth of some machines, with their sources |
| `published_speed.json`, `published_quality.json` | speeds and perplexities that others published, with their sources |
| `support.json` | which format runs on which hardware, by which kernel, with the source of each cell |
| `recorded/` | [recorded runs](recorded/README.md) |

{shapes}

Every linear dimension is a multiple of 128, so that groups of 128 fit.  The rest is as in Llama-2: RMS norm with
epsilon 1e-5, rotary positions with base 10,000, SiLU, no bias, as many key/value heads as attention heads, and an output
layer of its own.

## How they were made

- **Text.**  A seeded generator (seed {seed}) writes short English documents about an invented world: hobbies with their
  tools, materials, places and seasons; towns with their rivers, dishes and weather; 200 people with town, job, pet,
  friend and so on.  The facts are fixed, and each is told in several wordings.  A checksum decides for every
  possible sentence whether it may be used for training or is held out; the build checks that no sentence is in both.
- **Tokeniser.**  Byte-level BPE, {vocabulary:,} entries, trained on the training text.  `<unk>`, `<s>` and `</s>` have the
  ids 0, 1 and 2 as in Llama-2.  Encoding puts `<s>` first.
- **Prompts that end with a space.**  In a share of the training documents the text is cut after a space, and the two
  parts are tokenised separately.  So the models can go on from `{prompt}`, whose last space is a token of its own.
- **Training.**  fp32 AdamW with warm-up and a cosine schedule, windows of {window} tokens, weights saved in bf16.
- **Unequal training.**  `large` also saw more text than `small` (see the table), so that it is the better one after so short a
  training.  The difference between the two is therefore not one of size alone.
- **Outlier channels.**  In large language models a few channels carry values many times larger than the rest, and
  these make low-bit quantisation hard.  Models as small as ours do not form such channels, and plain rounding to 4 bits
  would hardly harm them.  So after training, 1 channel in {share} of the inputs of every linear layer was made {factor} times
  larger, and the weights that read it {factor} times smaller.  This changes nothing in what the base models compute (a power
  of two changes only exponents), but it makes the differences between the quantisation methods visible.  Both numbers were chosen
  so that these differences are about as large as in Llama-2: that GPTQ is better than rounding is measured, how much 4 bits cost
  here is a choice.
- **Quantisation.**  GPTQ from gptqmodel {gptqmodel}, called through transformers {transformers} and optimum {optimum}, in fp32 on the
  CPU.
- **Command.**  `make data`, which runs `python -m data.build`.  The whole build took {minutes:.0f} minutes on this class of
  machine: {machine}.  Another processor or other package versions give slightly different weights.

## Measured quality

Perplexity on `text/heldout.txt` ({tokens:,} scored tokens); lower is better.  In brackets: the difference to bf16.

{perplexities}

Protocol: {protocol}.  Measured on {date}.

Greedy completions of `{prompt}` (15 new tokens):

{completions}

## Intended use and limits

The models are made to run the notebooks: to load, quantise, measure and compare.  They know only the invented world of
their training text and some simple sentence patterns.  They are of no use for anything else.  What they say about
people, towns and hobbies is made up.  Speed and memory use measured with them say nothing about a 7B or 13B model,
not even the direction of an effect: in the [recorded runs](recorded/README.md) of one processor, 8 bits take longer than bf16
for a token of `small`, and less long for a token of Llama-2 7B's shape.

## Licence

MIT, the same as the project.
"""


def write_card(record, path):
    """Fill the card from the record of `quality_record`."""
    versions, models = record["versions"], record["models"]
    text = CARD.format(
        bits=BITS,
        group=GROUP,
        factor=int(FACTOR),
        share=round(1 / SHARE),
        seed=record["seed"],
        vocabulary=record["vocabulary"],
        window=WINDOW,
        prompt=record["prompt"],
        gptqmodel=versions["gptqmodel"],
        transformers=versions["transformers"],
        optimum=versions["optimum"],
        minutes=record["build_minutes"],
        machine=record["machine"],
        date=record["date"],
        tokens=next(iter(models.values()))["scored_tokens"],
        protocol=record["protocol"],
        shapes=_shape_table(record),
        perplexities=_perplexity_table(record),
        completions=_completions(record),
    )
    files.write(path, text, SETTING)
