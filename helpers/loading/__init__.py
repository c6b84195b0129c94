"""Load a step's model, look into a layer, free the memory again. First used in notebook 01."""

import contextlib
import os
import traceback
import weakref
from pathlib import Path

from helpers import kernels, machine
from helpers.errors import CheckpointError, DeviceError, KernelError, NotEnoughMemoryError
from helpers.loading import library
from helpers.loading.memory import forget, free_caches, giving_back, holders
from helpers.machine import quiet
from helpers.models import choose, files
from helpers.models.catalogue import read_json

TRIAL = "The best way to spend a long afternoon is"  # for a look at a kernel's sums
_loaded = {}  # of the model loaded last: weak references to its parts, its device, its bytes, and the memory in use after it was loaded


def load_arguments(step, device=None):
    """Return the keyword arguments of ``AutoModelForCausalLM.from_pretrained`` for ``step``, the checkpoint's name included.

    The article's, with these differences: 8-bit is asked for with a BitsAndBytesConfig (``load_in_8bit=`` has left transformers); GPTQ's
    activations are bfloat16 on a CPU, where float16 is slow; its kernel on a GPU is named (``kernels``); only safetensors files are read. Where
    no ``device`` is asked for and the first GPU is too small, as many as it needs share the model. Raises DeviceError if ``device`` is not
    there, or a kernel that was asked for cannot work on it. First used in notebook 13.
    """
    return _arguments(step, device)[0]


def _arguments(step, device=None):
    """(arguments, plan): as ``load_arguments``, and the Plan of a GPTQ step's kernels; None for other formats."""
    import torch

    free = [] if device is not None else [torch.cuda.mem_get_info(n)[0] for n in range(machine.gpu_count())]
    beside = choose.beside_weights(step.shape, step.format) if free else choose.OVERHEAD
    shared = choose.spread(step.bytes, free, beside) if len(free) > 1 else []
    device = machine.get_device(device)
    dtype = step.dtype if device != "cpu" or step.format != "gptq" else "bfloat16"
    plan = kernels.plan_for(step, [f"cuda:{n}" for n in shared] or device) if step.format == "gptq" else None
    arguments = {"pretrained_model_name_or_path": step.checkpoint}
    if settings := _quantisation(step, plan):
        arguments["quantization_config"] = _configuration(*settings)
    arguments |= {"dtype": getattr(torch, dtype), "device_map": {"": device}, "use_safetensors": True}
    if len(shared) > 1:
        arguments |= {"device_map": "sequential", "max_memory": {n: int(free[n] - beside) for n in shared}}
    if library.attention(step.folder):
        arguments["attn_implementation"] = "sdpa"
    if not step.is_folder:
        arguments |= {"revision": step.revision, "local_files_only": True}  # ``load`` has fetched the files before
    return arguments, plan


def _quantisation(step, plan):
    """(class, arguments) of the quantization_config for ``step``, or None. A checkpoint's bits and groups stay: of a GPTQConfig only the kernel counts."""
    if step.format == "int8":
        return "BitsAndBytesConfig", {"load_in_8bit": True} | ({} if step.threshold == 6.0 else {"llm_int8_threshold": step.threshold})
    if step.format == "nf4":
        return "BitsAndBytesConfig", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": step.dtype}
    if plan is None or not plan.kernel and step.quantization.get("backend", "auto") in (None, "auto"):
        return None
    return "GPTQConfig", {"bits": step.quantization.get("bits", 4), "backend": f"gptq_{plan.kernel}" if plan.kernel else "auto"}


def _configuration(kind, settings):
    import transformers

    return getattr(transformers, kind)(**settings)


def show_call(step, device=None):
    """Print the transformers call that ``load`` makes for ``step``, as one would type it."""
    arguments, plan = _arguments(step, device)
    print("AutoModelForCausalLM.from_pretrained(")
    for name, value in arguments.items():
        if name == "pretrained_model_name_or_path":
            value = os.path.relpath(value) if step.is_folder else value
            print(f"    {value!r},")
        elif name == "quantization_config":
            kind, settings = _quantisation(step, plan)
            print(f"    {name}={kind}({', '.join(f'{key}={setting!r}' for key, setting in settings.items())}),")
        else:
            print(f"    {name}={value!r},")
    print(")")


def load(step, device=None):
    """Load ``step``'s model and tokeniser with exactly the call that ``show_call`` prints, print the memory before and after, return both.

    (Where transformers renames the tensors of an architecture's files, it is asked as well for a report of what it missed.)

    Where a GPTQ kernel fails on a GPU, or overflows, the next one takes its place, which is printed too. "Before" is after the libraries were imported.
    Raises DeviceError, CheckpointError (before weights are read) or NotEnoughMemoryError (before anything large is fetched or read).
    """
    arguments, plan = _arguments(step, device)
    device = _first_device(arguments)
    if "max_memory" not in arguments:
        choose.check_step(step, device)
    choose.bring(step)
    if device == "cpu":
        import torch

        torch.set_num_threads(choose.threads(step.shape))
    with quiet():
        import transformers.modeling_utils  # noqa: F401

        if step.format in ("int8", "nf4"):
            import bitsandbytes  # noqa: F401
    if step.format == "gptq":
        kernels.library()  # transformers imports it too, with a banner of a page
    # The imports above leave exceptions behind, which keep this function's variables for ever: the model must not be one of them.
    before = machine.in_use(device)
    while True:
        if plan is not None and plan.kernel:
            kernels.ready(plan)
            arguments["quantization_config"] = _configuration(*_quantisation(step, plan))
        try:
            model, tokenizer = _load(step, arguments, before, plan)
            if not (why := _overflow(model, tokenizer, plan)):
                return model, tokenizer
            print(f"{kernels.NAMES[plan.kernel]} does not do for this model, because {why}: it is loaded again, with a kernel whose sums have 32 bits.")
        except KernelError as error:  # of a kernel that was asked for by name
            why = "it failed while the model was loaded"
            print(error)
        model = tokenizer = None
        free_caches()
        plan.fail(why)


def _overflow(model, tokenizer, plan):
    """Why the kernel of ``plan`` cannot compute ``model``, in a clause; "" if it can. One pass, and only where it is in doubt: see ``kernels``."""
    if plan is None or plan.kernel not in kernels.SUMS_OF_16_BITS or model.config.model_type == "llama":
        return ""
    found = library.not_finite(model, library.encode(tokenizer, TRIAL, return_tensors="pt").to(model.device))
    return f"its sums have 16 bits, and those of {found[0]} overflow" if found else ""


def _load(step, arguments, before, plan=None):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device, tokenizer, problem, report = _first_device(arguments), None, None, library.Report()
    # transformers 5.0 reads 16-bit tensors onto the GPU in four threads, faster than they are quantised on arrival; later ones do not
    one_at_a_time = machine.variable("HF_DEACTIVATE_ASYNC_LOAD", "1", when=step.format in ("int8", "nf4"))
    try:
        with quiet(keep_stderr=True), giving_back(), offline(), one_at_a_time, report:
            tokenizer = AutoTokenizer.from_pretrained(step.checkpoint, revision=step.revision, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(**arguments, **({"output_loading_info": True} if step.shape.renamed else {}))
        if step.shape.renamed:  # the names of other files were looked at before
            model, report_of = model
            for what, names in (("without weights for", report_of["missing_keys"]), ("without reading", report_of["unexpected_keys"])):
                if names:
                    problem = CheckpointError(
                        f"{step.checkpoint} has been loaded {what} {sorted(names)[0]} ({len(names)} in all), so it would be another model: correct"
                        " config.json, or take another checkpoint."
                    )
        problem = problem or _one_table(model, step)
        for part in model.modules() if step.format == "nf4" else ():
            if getattr(part, "in_features", 64) % 64 and hasattr(part, "support_avx512bf16_for_cpu"):
                part.support_avx512bf16_for_cpu = False  # bitsandbytes 0.50's kernel for such CPUs fails where a block of 64 weights reaches into the next row
        if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())) and device != "cpu":
            problem = NotEnoughMemoryError("The GPUs together are too small for this model: set TIER=embedded for the small models.")
    except Exception as error:
        problem = machine.out_of_memory(error, device, "loading", report.text) or _why_not(error, step, device, plan, report, tokenizer is None)
    if problem:  # raised here, where the failed call's variables, and so the half-loaded model, are gone
        model = None
        free_caches()
        raise problem
    if unused := library.plain(model, step.folder):
        print(f"Measured greedily, with a cache and by the library's usual attention; the checkpoint's own settings are not used: {unused}.")
    after = machine.in_use(device)
    parts = (*model.modules(), *model.parameters(), *model.buffers())  # all that can be held by itself
    _loaded.update(parts=[weakref.ref(part) for part in parts], after=after, device=device, bytes=weight_bytes(model))
    if plan is not None:
        print(f"GPTQ kernel {kernels.remember(model, plan)}.")
    print(f"Weights: {weight_bytes(model) / 1e6:,.1f} MB. {_place(device)}: {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after.")
    return model, tokenizer


def _one_table(model, step):
    """Make the head of ``model`` one tensor with the embedding table, as config.json says; the error to raise where the files have two that differ.

    Some checkpoints store a tied head once more (Qwen3-0.6B), and transformers 5.0 then keeps both.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if not step.shape.tied or head is None or head.weight.data_ptr() == table.weight.data_ptr() or head.weight.device != table.weight.device:
        return None
    if not head.weight.equal(table.weight):
        return CheckpointError(
            f"{step.checkpoint} has a head and an embedding table that differ, and its config.json says that they are one: set tie_word_embeddings to false"
            " in it, or take another checkpoint."
        )
    model.tie_weights()
    return None


def _why_not(error, step, device, plan, report, tokenising):
    """The error to raise because loading ``step`` ended in ``error``. tokenising: while its tokeniser was loaded."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    by_kernel = any("gptqmodel" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__))
    if plan is not None and plan.kernel and by_kernel:
        return KernelError(f"{kernels.NAMES[plan.kernel]} failed while {step.title} was loaded ({said}): choose another kernel, or set TIER=embedded.")
    if isinstance(error, ImportError):
        missing = f"The package {error.name} is missing" if isinstance(error, ModuleNotFoundError) and error.name else "A library cannot be used"
        cure = "Take _attn_implementation out of its config.json" if library.attention(step.folder) else "Run the set-up cell again"
        return DeviceError(f"{missing} on {device}: {said.rstrip('.')}. {cure}, or set TIER=embedded.")
    for path in sorted(step.folder.glob("*.json")):
        if path.name.endswith("config.json") or "token" in path.name:
            read_json(step.folder, path.name)
    then, reason = "check config.json, generation_config.json and the tokeniser's files, take another checkpoint, or set TIER=embedded", report.reason
    if tokenising and not any((step.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        then, reason = "copy these files from the model that it was made from", "it has no tokeniser, neither tokenizer.json nor tokenizer.model"
    return library.explained(error, CheckpointError, f"{step.checkpoint} cannot be loaded", then, reason)


@contextlib.contextmanager
def offline():
    """Ask nothing of the Hub meanwhile (the library's HF_HUB_OFFLINE): all files are here, and transformers 5.0 asks even if it may not."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def release():
    """Free the memory of models that no variable holds any more, print before and after, return the bytes still in use.

    Write ``del model`` (and any layer or tensor of it) first. What is still held is named, with the variables that hold it.
    """
    forget()
    free_caches()
    device = _loaded.get("device") or machine.get_device()
    now = machine.in_use(device)
    alive = [part for reference in _loaded.get("parts", ()) if (part := reference()) is not None]
    if "after" in _loaded:
        print(f"{_place(device)}: {_loaded['after'] / 1e6:,.0f} MB when the model was loaded, {now / 1e6:,.0f} MB now.")
        if not alive and now >= _loaded["after"]:  # of a small model: what came since is more than what went
            print(
                f"Its {_loaded['bytes'] / 1e6:,.1f} MB are free again. The rest belongs to the libraries: buffers, threads and code that came with the first calls."
            )
    if alive:
        names = holders(alive)
        advice = f"del {', '.join(n for n in names if n.isidentifier())}" if any(n.isidentifier() for n in names) else "free it"
        if any(name.startswith("Out[") for name in names):
            advice = "%reset -f out" if advice == "free it" else f"{advice} and %reset -f out"
        print(f"The model, or a part of it, is still in memory, held by {', '.join(names) or 'a library'}: {advice}, then call release() again.")
    return now


def _first_device(arguments):
    """The device of the embedding table: the only one, or the first of several GPUs."""
    where = arguments["device_map"]
    return where[""] if isinstance(where, dict) else f"cuda:{min(arguments['max_memory'])}"


def weight_bytes(model):
    """Bytes of all tensors that ``model`` would save: weights, and the scales and indices of its quantised layers. First used in notebook 10."""
    return sum(t.numel() * t.element_size() for t in _stored(model).values())


def first_layer(model):
    """Return (name, layer) of a linear layer of ``model``'s first block, the same in all formats: self_attn.q_proj where there is one. First used in notebook 01.

    By its name, because GPTQ's layers stand in another order than those that they have replaced.
    """
    inside = set(model.get_decoder().modules())
    found = {name: part for name, part in model.named_modules() if part in inside and (hasattr(part, "in_features") or hasattr(part, "nf"))}
    name = min(found, key=lambda name: (".0." not in name, not name.endswith("q_proj"), "att" not in name, name))
    return name, found[name]


def layer_table(layer):
    """Return a table (pandas.DataFrame) of the tensors that a linear layer stores: name, dtype, shape, bytes."""
    import pandas as pd

    rows = [(n, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.numel() * t.element_size()) for n, t in _stored(layer).items()]
    return pd.DataFrame(rows, columns=["tensor", "dtype", "shape", "bytes"]).set_index("tensor")


def _stored(module):
    """{name: tensor} of what ``module`` stores, without single numbers and texts (bitsandbytes adds a layer's format when it is asked what to save).

    What two names share, as a head that is the embedding table, is there once.
    """
    kept = [(name, t) for name, t in module.state_dict().items() if t.ndim and ".quant_state." not in f".{name}"]
    found = {(t.data_ptr() or name, t.shape): (name, t) for name, t in reversed(kept)}
    return dict(reversed(found.values()))


def read_tensor(step, name):
    """Return the tensor ``name`` as it stands in ``step``'s checkpoint file, on the CPU, before any library has touched it."""
    return files.read_tensor(step.folder, name)


def _place(device):
    return "GPU memory" if device.startswith("cuda") else "Host memory of this notebook"
