"""How does a checkpoint become an ONNX model, and how is it run? ONNX Runtime's own builder and loop for text generation.

https://onnxruntime.ai/docs/genai. The builder reads unquantised checkpoints, which it quantises by rounding, and GPTQ checkpoints, whose
integers it keeps. First used in notebook 12.
"""

import contextlib
import importlib.util
import io
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

from helpers import errors, kernels, loading, setup
from helpers.engines import timed
from helpers.errors import CheckpointError, PromptError
from helpers.loading import library
from helpers.models import choose, files
from helpers.models.catalogue import read_json
from helpers.timing import NEW_TOKENS

COMPARED = ("llama", "qwen2")  # model types whose graphs tests hold against transformers
KNOWN = "take a Llama or a Qwen2, or llama.cpp (notebook 11)"
THETA = 10000  # rotary positions' base, where a config names none
GROUPS, BITS = (16, 32, 64, 128, 256), (4, 8)  # of GPTQ's integers, tried against the same weights unpacked by hand
PACKAGES = ("onnxruntime", "onnxruntime-genai", "onnx")
READY = "genai_config.json"  # the file that the builder writes last


def export(step, precision, name=None, **options):
    """Write ``step``'s model as an ONNX model for the CPU and return its folder, ``onnx/NAME`` in the results folder.

    precision: "fp32", "int8" or "int4" (a GPTQ checkpoint is int4). options: the builder's extra options, e.g. accuracy_level=1. A folder that
    is newer than the checkpoint is used again. Raises CheckpointError, or NotEnoughMemoryError.
    """
    source = choose.bring(step)
    _check(step, source)
    folder = setup.results_dir() / "onnx" / (name or f"{source.name}-{precision}")
    with files.whole(folder, unless=lambda: files.newer(folder / READY, source)) as partial:
        if partial:
            choose.check_memory(2.6 * step.bytes, "cpu")  # and its overhead: 10.9 GB for a 7B, which grew by 10.7 GB
            print(f"Writing {folder.name} (some seconds for a small model, minutes for a large one) ...", flush=True)
            words = ["-i", str(source), "-o", str(partial), "-p", precision, "-e", "cpu", "-c", str(partial / "cache"), "--extra_options", "hf_token=false"]
            problem = _build([*words, *(f"{key}={value}" for key, value in options.items())])
            if problem.startswith("AttributeError"):  # of a configuration: transformers 5 has moved settings, and the builder looks for them in the old place
                raise CheckpointError(f"{source} could not be written as ONNX ({problem}): the builder does not know it as this transformers has it; {KNOWN}.")
            if problem or not (partial / READY).is_file():
                raise CheckpointError(f"{source} could not be written as ONNX ({problem}): check that memory and disk have room for three times its size.")
            shutil.rmtree(partial / "cache", ignore_errors=True)
    return folder


def architectures():
    """Return the architectures (set of str, as config.json names them) that the installed builder knows. It has no list: they stand in its source."""
    source = Path(importlib.util.find_spec("onnxruntime_genai.models.builder").origin).read_text(encoding="utf-8")
    return set(re.findall(r'config\.architectures\[0\] == "(\w+)"', source))


def _check(step, source):
    """Raise CheckpointError for what the builder would read as something else, or ONNX Runtime cannot compute."""
    raw = read_json(source, "config.json")
    name, kind = (raw.get("architectures") or ["model without a name"])[0], raw.get("model_type")
    if name not in architectures():
        version = setup.installed("onnxruntime-genai")
        raise CheckpointError(f"{source} is a {name}, which the builder of onnxruntime-genai {version} does not know: {KNOWN}.")
    if kind not in COMPARED:
        print(f"The builder knows {name}, but this course has not compared its graphs with transformers: compare some logits before you trust them.")
    problem = None
    if kind == "llama":
        config = library.plain_llama(source, "take another checkpoint", ("default", "llama3"))
        theta = (config.rope_parameters or {}).get("rope_theta", THETA)
        if theta != raw.get("rope_theta", THETA):  # the builder looks there
            problem = f"its rope_theta, {theta:g}, stands in rope_parameters alone, where the builder does not look: write it beside them in config.json, or"
    if not problem and step.format == "gptq":
        layout, shape = kernels.layout(step.quantization), step.shape
        if layout != "gptq":
            problem = f"its zero points are of layout {layout}, and the builder takes those of v1:"
        elif shape.group_size not in GROUPS or shape.bits not in BITS:
            knows = f"{' or '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUPS))}"
            problem = f"its integers have {shape.bits} bits in groups of {shape.group_size}, and ONNX Runtime computes {knows}:"
        elif shape.bits == 8 and step.quantization.get("desc_act"):
            problem = "ONNX Runtime computes 8 bits without act-order (desc_act) alone:"
    if problem:
        raise CheckpointError(f"{source} cannot be written as ONNX, because {problem} take another checkpoint.")


def _build(words):
    """Run the command ``python -m onnxruntime_genai.models.builder`` in this process, where torch is imported already; return its problem, or ""."""
    before, said = sys.argv, io.StringIO()
    sys.argv = ["builder", *words]
    try:
        with loading.quiet(), loading.offline(), contextlib.redirect_stderr(said):
            runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
        return ""
    except (Exception, SystemExit) as error:  # whatever the builder stumbles over; argparse exits
        if errors.disk_trouble(error, "RESULTS_DIR"):
            raise  # files.whole says it
        text = said.getvalue().strip() if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        return (text or "it said nothing").splitlines()[-1]
    finally:
        sys.argv = before
        loading.free_caches()  # the builder's graph and weights hold each other: 9 GB for a 7B


def load(folder, threads=None):
    """Load an ONNX model on the CPU and return an onnxruntime_genai.Model. threads: by default what choose.threads says of its sizes. Raises CheckpointError."""
    import onnxruntime_genai

    if not (Path(folder) / READY).is_file():
        raise CheckpointError(f"{folder} has no {READY}: it is no finished ONNX model, export it again.")
    try:
        config = onnxruntime_genai.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": _threads(folder) if threads is None else threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        return onnxruntime_genai.Model(config)
    except RuntimeError as error:
        raise CheckpointError(f"ONNX Runtime cannot load {folder} ({str(error).splitlines()[0]}): export it again.") from None


def _threads(folder):
    """As many threads as the course chooses for the sizes in the ONNX model in ``folder``."""
    sizes = []
    with contextlib.suppress(Exception):  # ONNX Runtime says what it cannot read, and another program may have named its tensors otherwise
        about = read_json(folder, READY)["model"]["decoder"]
        first = next(tensor for tensor in _graph(folder).initializer if ".mlp.gate_proj." in tensor.name)
        inner = first.dims[1] if len(first.dims) == 2 else first.dims[0]  # integers are packed in (outputs, groups, bytes)
        sizes = [about["hidden_size"], int(inner), about["num_hidden_layers"]]
    return choose.threads_of(*sizes)


def answer(model, ids, new_tokens, arrived=lambda: None):
    """Decode ``new_tokens`` tokens greedily after the prompt ``ids`` (list of int) and return their ids, without an end of text.

    arrived: called as each new token comes. Raises PromptError if the prompt is empty or the context too short.
    """
    generator = _generator(model, ids, new_tokens)
    new = []
    while not generator.is_done():
        generator.generate_next_token()
        new.append(int(generator.get_next_tokens()[0]))
        arrived()
    return new


def work(job):
    """Measure an ONNX model in this process, which timed.apart started; return what that reads. job: folder, threads, ids (of PROMPT)."""

    def begin():
        model = load(job["folder"], job["threads"])
        return lambda count, arrived: answer(model, job["ids"], count, arrived), job["ids"], lambda new: ""

    return timed.work("onnxruntime_genai", begin, job["threads"], job.get("new_tokens", NEW_TOKENS))


def logits(model, ids):
    """Return the logits (numpy, float32, shape (vocabulary,)) of the token after ``ids``."""
    return _generator(model, ids, 1).get_logits().reshape(-1).copy()


def _generator(model, ids, new_tokens):
    """A generator that has read the prompt, so that the next token's logits are there."""
    import onnxruntime_genai

    parameters = onnxruntime_genai.GeneratorParams(model)
    length = len(ids) + new_tokens
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    try:
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(ids)
    except (RuntimeError, ValueError) as error:
        raise PromptError(
            f"ONNX Runtime refused the prompt of {len(ids)} tokens with {new_tokens} new ones: {str(error).splitlines()[0]}. Take fewer."
        ) from None
    return generator


def operations(folder):
    """Return a table (pandas.Series) of how often each kind of operation stands in the graph."""
    import pandas as pd

    return pd.Series([node.op_type for node in _graph(folder).node], name="nodes").value_counts()


def weights(folder):
    """Return a table (pandas.DataFrame) of the graph's stored tensors: type, shape, bytes."""
    import pandas as pd
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors = _graph(folder).initializer
    found = pd.DataFrame({"tensor": [t.name for t in tensors], "type": [TensorProto.DataType.Name(t.data_type) for t in tensors]}).set_index("tensor")
    found["shape"] = [tuple(t.dims) for t in tensors]
    return found.assign(bytes=[math.prod(t.dims) * tensor_dtype_to_np_dtype(t.data_type).itemsize for t in tensors])


def sizes(folder):
    """Return (bytes of all tensors, bytes that one decoded token reads: all but the embedding table, of which it needs one row)."""
    stored = weights(folder)["bytes"]
    return int(stored.sum()), int(stored.sum() - stored.filter(like="embed_tokens").sum())


def tensor(folder, name):
    """Return a stored tensor of the graph (numpy), read from the file of weights beside it. Raises CheckpointError if it has none of that name."""
    from onnx.numpy_helper import to_array

    entry = next((t for t in _graph(folder).initializer if t.name == name), None)
    if entry is None:
        raise CheckpointError(f"{folder} has no tensor {name}: choose one that onnx_models.weights lists.")
    return to_array(entry, str(folder))


def _graph(folder):
    import onnx

    return onnx.load(Path(folder) / "model.onnx", load_external_data=False).graph
