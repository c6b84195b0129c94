"""Load a step's model, look into a layer, free the memory again."""

import contextlib
import gc
import io
import json
import logging
import os
import sys
import warnings
import weakref
from pathlib import Path

from helpers import checks, tiers
from helpers.errors import CheckpointError, DeviceError, NotEnoughMemoryError

_loaded = {}  # the model loaded last, as a weak reference, and the memory in use after it was loaded


def load_arguments(step, device=None):
    """Return the keyword arguments of ``AutoModelForCausalLM.from_pretrained`` for ``step``, the checkpoint's name included.

    The article's arguments, with these differences: 8-bit is asked for with a BitsAndBytesConfig (``load_in_8bit=`` has left
    transformers); GPTQ's activations are bfloat16 on a CPU, where float16 arithmetic is slow; only safetensors files are read;
    and the device is named in full.
    Raises DeviceError if ``device`` is not there.
    """
    import torch

    device = tiers.get_device(device)
    dtype = step.dtype if device != "cpu" or step.format != "gptq" else "bfloat16"
    arguments = {"pretrained_model_name_or_path": step.checkpoint}
    if step.format == "int8":
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    arguments |= {"dtype": getattr(torch, dtype), "device_map": {"": device}, "use_safetensors": True}
    if not step.is_folder:
        arguments["revision"] = step.revision
    return arguments


def show_call(step, device=None):
    """Print the transformers call that ``load`` makes for ``step``, as one would type it."""
    print("AutoModelForCausalLM.from_pretrained(")
    for name, value in load_arguments(step, device).items():
        if name == "pretrained_model_name_or_path":
            value = os.path.relpath(value) if step.is_folder else value
            print(f"    {value!r},")
        elif name == "quantization_config":
            print(f"    {name}=BitsAndBytesConfig(load_in_8bit=True),")
        else:
            print(f"    {name}={value!r},")
    print(")")


def load(step, device=None):
    """Load ``step``'s model and tokeniser with exactly the call that ``show_call`` prints, and print the memory before and after.

    Returns (model, tokenizer). Raises DeviceError, CheckpointError (a folder is checked before its weights are read) or
    NotEnoughMemoryError (before anything large is read). "Before" is after the libraries were imported, so that the difference is
    the model's.
    """
    arguments = load_arguments(step, device)
    device = arguments["device_map"][""]
    if step.is_folder:
        checks.check_folder(step.checkpoint, step.format)
    checks.check_memory(step.bytes, device)
    with quiet():
        import transformers.modeling_utils  # noqa: F401

        if step.format == "int8":
            import bitsandbytes  # noqa: F401
        elif step.format == "gptq":
            import gptqmodel  # noqa: F401  transformers imports it too, with a banner of a page
    if step.format == "gptq" and device != "cpu":
        print("gptqmodel now chooses a GPU kernel. The first time on a machine it compiles it, which takes minutes.", flush=True)
    # The imports above leave exceptions behind, which keep this function's variables for ever: the model must not be one of them.
    return _load(step, arguments, memory_in_use(device))


def _load(step, arguments, before):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = arguments["device_map"][""]
    try:
        tokenizer = AutoTokenizer.from_pretrained(step.checkpoint, revision=step.revision)
        with quiet(keep_stderr=True):
            model = AutoModelForCausalLM.from_pretrained(**arguments)
    except ImportError as error:
        raise DeviceError(f"A library or compiler for this step is missing on {device}: {_first_line(error)} Or set TIER=embedded.") from None
    except torch.OutOfMemoryError:
        raise NotEnoughMemoryError(f"The memory of {device} ran out while loading: restart the notebook, or set TIER=embedded.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{step.checkpoint} cannot be loaded: {_first_line(error)}") from None
    after = memory_in_use(device)
    _loaded.update(model=weakref.ref(model), after=after, device=device)
    print(f"Weights: {weight_bytes(model) / 1e6:,.1f} MB. {_place(device)}: {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after.")
    return model, tokenizer


def release():
    """Free the memory of models that no variable holds any more, print before and after, return the bytes still in use.

    Write ``del model`` (and any layer or tensor of it) first. If the model is still held, the sentence says so.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform.startswith("linux"):  # glibc keeps freed memory for itself unless it is asked
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    device = _loaded.get("device", tiers.get_device())
    now = memory_in_use(device)
    if "after" in _loaded:
        print(f"{_place(device)}: {_loaded['after'] / 1e6:,.0f} MB with the model, {now / 1e6:,.0f} MB now.")
    if "model" in _loaded and _loaded["model"]() is not None:
        print("The model is still in memory, because a variable (or Out[…]) holds it or a part of it: del it, then call release() again.")
    return now


def weight_bytes(model):
    """Bytes of all tensors that ``model`` would save: weights, and the scales and indices of its quantised layers."""
    return sum(t.numel() * t.element_size() for t in _stored(model).values())


def layer_table(layer):
    """Return a table (pandas.DataFrame) of the tensors that a linear layer stores: name, dtype, shape, bytes."""
    import pandas as pd

    rows = [(n, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.numel() * t.element_size()) for n, t in _stored(layer).items()]
    return pd.DataFrame(rows, columns=["tensor", "dtype", "shape", "bytes"]).set_index("tensor")


def _stored(module):
    """{name: tensor} of what ``module`` stores, without single numbers (bitsandbytes keeps a format mark of one byte a layer)."""
    return {name: t for name, t in module.state_dict().items() if t.ndim}


def read_tensor(step, name):
    """Return the tensor ``name`` as it stands in ``step``'s checkpoint file, on the CPU, before any library has touched it."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    def path(file, **options):
        return cached_file(step.checkpoint, file, revision=step.revision, **options)

    index = path("model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    file = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"][name] if index else "model.safetensors"
    with safe_open(path(file), framework="pt") as tensors:
        return tensors.get_tensor(name)


def memory_in_use(device):
    """Bytes that this process uses on ``device``: allocated by torch on a GPU, the resident set on the host."""
    import psutil
    import torch

    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else psutil.Process().memory_info().rss


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _place(device):
    return "GPU memory" if device.startswith("cuda") else "Host memory of this notebook"


@contextlib.contextmanager
def quiet(keep_stderr=False):
    """Hide what the libraries print on import and while loading; progress bars (stderr) stay with ``keep_stderr``."""
    for name in ("torchao", "torch.utils._pytree", "gptqmodel", "transformers", "optimum"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.nullcontext() if keep_stderr else contextlib.redirect_stderr(io.StringIO()):
            yield
