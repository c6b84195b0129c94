"""Load a step's model, look into a layer, free the memory again, and name who still holds it. First used in notebook 01."""

import contextlib
import gc
import io
import logging
import os
import re
import sys
import traceback
import types
import warnings
import weakref

from helpers import machine
from helpers.errors import CheckpointError, DeviceError, NotEnoughMemoryError
from helpers.models import choose, files, hub

_loaded = {}  # of the model loaded last: weak references to its parts, its device, and the memory in use after it was loaded


def load_arguments(step, device=None):
    """Return the keyword arguments of ``AutoModelForCausalLM.from_pretrained`` for ``step``, the checkpoint's name included.

    The article's arguments, with these differences: 8-bit is asked for with a BitsAndBytesConfig (``load_in_8bit=`` has left
    transformers); GPTQ's activations are bfloat16 on a CPU, where float16 arithmetic is slow; only safetensors files are read;
    and the device is named in full. Where no ``device`` is asked for and the first GPU is too small, as many GPUs as it needs share
    the model. Raises DeviceError if ``device`` is not there.
    """
    import torch

    free = [] if device is not None else [torch.cuda.mem_get_info(n)[0] for n in range(machine.gpu_count())]
    shared = choose.spread(step.bytes, free) if len(free) > 1 else []
    device = machine.get_device(device)
    dtype = step.dtype if device != "cpu" or step.format != "gptq" else "bfloat16"
    arguments = {"pretrained_model_name_or_path": step.checkpoint}
    if settings := _quantisation(step):
        import transformers

        arguments["quantization_config"] = getattr(transformers, settings[0])(**settings[1])
    arguments |= {"dtype": getattr(torch, dtype), "device_map": {"": device}, "use_safetensors": True}
    if len(shared) > 1:
        arguments |= {"device_map": "sequential", "max_memory": {n: int(free[n] - choose.OVERHEAD) for n in shared}}
    if not step.is_folder:
        arguments |= {"revision": step.revision, "local_files_only": True}  # ``load`` has fetched the files before
    return arguments


def _quantisation(step):
    """(class, arguments) of the quantization_config that ``step`` is loaded with; None where the checkpoint's own is enough, or none."""
    if step.format == "int8":
        return "BitsAndBytesConfig", {"load_in_8bit": True} | ({} if step.threshold == 6.0 else {"llm_int8_threshold": step.threshold})
    if step.format == "nf4":
        return "BitsAndBytesConfig", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": step.dtype}
    return ("GPTQConfig", {"bits": 4, "backend": f"gptq_{step.kernel}"}) if step.kernel else None


def show_call(step, device=None):
    """Print the transformers call that ``load`` makes for ``step``, as one would type it."""
    print("AutoModelForCausalLM.from_pretrained(")
    for name, value in load_arguments(step, device).items():
        if name == "pretrained_model_name_or_path":
            value = os.path.relpath(value) if step.is_folder else value
            print(f"    {value!r},")
        elif name == "quantization_config":
            kind, settings = _quantisation(step)
            print(f"    {name}={kind}({', '.join(f'{key}={setting!r}' for key, setting in settings.items())}),")
        else:
            print(f"    {name}={value!r},")
    print(")")


def load(step, device=None):
    """Load ``step``'s model and tokeniser with exactly the call that ``show_call`` prints, and print the memory before and after.

    Returns (model, tokenizer). Raises DeviceError, CheckpointError (a folder is checked before its weights are read) or
    NotEnoughMemoryError (before anything large is fetched or read). "Before" is after the libraries were imported, so that the
    difference is the model's.
    """
    arguments = load_arguments(step, device)
    device = _first_device(arguments)
    if step.is_folder:
        files.check_folder(step.checkpoint, step.format)
    if "max_memory" not in arguments:
        choose.check_memory(step.bytes, device)
    if not step.is_folder:
        hub.fetch(step)
    with quiet():
        import transformers.modeling_utils  # noqa: F401

        if step.format in ("int8", "nf4"):
            import bitsandbytes  # noqa: F401
        elif step.format == "gptq":
            import gptqmodel  # noqa: F401  transformers imports it too, with a banner of a page
    if step.format == "gptq" and device != "cpu":
        print("gptqmodel now chooses a GPU kernel. The first time on a machine it compiles it, which takes minutes.", flush=True)
    # The imports above leave exceptions behind, which keep this function's variables for ever: the model must not be one of them.
    return _load(step, arguments, machine.in_use(device))


def _load(step, arguments, before):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device, problem = _first_device(arguments), None
    try:
        with quiet(keep_stderr=True), giving_back(), offline():
            tokenizer = AutoTokenizer.from_pretrained(step.checkpoint, revision=step.revision, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(**arguments)
        if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())) and device != "cpu":
            problem = NotEnoughMemoryError("The GPUs together are too small for this model: set TIER=embedded for the small models.")
    except ImportError as error:
        problem = DeviceError(f"A library or compiler for this step is missing on {device}: {_first_line(error)} Or set TIER=embedded.")
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        problem = machine.out_of_memory(error, device, "loading") or CheckpointError(f"{step.checkpoint} cannot be loaded: {_first_line(error)}")
    if problem:  # raised here, where the failed call's variables, and so the half-loaded model, are gone
        model = None
        free_caches()
        raise problem
    after = machine.in_use(device)
    _loaded.update(parts=[weakref.ref(part) for part in _parts(model)], after=after, device=device)
    print(f"Weights: {weight_bytes(model) / 1e6:,.1f} MB. {_place(device)}: {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after.")
    return model, tokenizer


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
    _forget()
    free_caches()
    device = _loaded.get("device") or machine.get_device()
    now = machine.in_use(device)
    if "after" in _loaded:
        print(f"{_place(device)}: {_loaded['after'] / 1e6:,.0f} MB with the model, {now / 1e6:,.0f} MB now.")
    alive = [part for reference in _loaded.get("parts", ()) if (part := reference()) is not None]
    if alive:
        names = holders(alive)
        advice = f"del {', '.join(n for n in names if n.isidentifier())}" if any(n.isidentifier() for n in names) else "free it"
        if any(name.startswith("Out[") for name in names):
            advice = "%reset -f out" if advice == "free it" else f"{advice} and %reset -f out"
        print(f"The model, or a part of it, is still in memory, held by {', '.join(names) or 'a library'}: {advice}, then call release() again.")
    return now


def _parts(model):
    """The model, its layers and their tensors: all that can be held by itself."""
    return [*model.modules(), *model.parameters(), *model.buffers()]


def _first_device(arguments):
    """The device of the embedding table: the only one, or the first of several GPUs."""
    where = arguments["device_map"]
    return where[""] if isinstance(where, dict) else f"cuda:{min(arguments['max_memory'])}"


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
    return files.read_tensor(step.folder, name)


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


IPYTHONS = {"In", "Out", "exit", "quit", "get_ipython", "open"}  # its own variables in every notebook
DEPTH = 8  # steps from a tensor up to the variable: parameter, layer, list, closure, hook, …


def free_caches():
    """Give memory that nothing uses any more back to the device and to the operating system."""
    import torch

    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _glibc("malloc_trim", 0)


@contextlib.contextmanager
def giving_back():
    """Let every large buffer that is freed meanwhile go back to the operating system at once.

    glibc keeps freed buffers of up to 32 MB in its heap, and the holes add up while a checkpoint is quantised tensor by tensor: to 1.7
    times the weights, and to 1.1 with this. (mallopt(3): M_MMAP_THRESHOLD is -3.)
    """
    _glibc("mallopt", -3, 2**20)
    try:
        yield
    finally:
        _glibc("mallopt", -3, 2**25)
        _glibc("malloc_trim", 0)


def _glibc(function, *arguments):
    """Call a function of glibc; do nothing where there is none."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)


def hollow(model):
    """Free the weights of ``model`` although variables still hold it: after this it is an empty shell."""
    import torch

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name in tensors:
                tensors[name] = None
        for name, value in list(vars(module).items()):  # bitsandbytes keeps tensors in ``state``, ExLlama in ``q_tensors``
            if name in ("state", "q_tensors", "q_handle") or isinstance(value, torch.Tensor):
                setattr(module, name, None)
    free_caches()


def holders(parts, namespace=None):
    """Return the names (sorted list of str) of what keeps any of the objects ``parts`` alive.

    Follows references backwards (gc.get_referrers) until it meets the notebook's variables (``namespace``, by default IPython's, or
    __main__'s), its outputs ("Out[7]") or a running function of the notebook. Variables of modules are named where nothing else is found.
    """
    namespace = _notebook() if namespace is None else namespace
    outputs = namespace.get("_oh", {})
    names, modules, frontier = set(), set(), list(parts)
    own = {id(parts), id(sys._getframe()), id(sys._getframe().f_back)}
    seen = own | {id(part) for part in frontier}
    for _ in range(DEPTH):
        if not frontier:
            break
        held = {id(thing) for thing in frontier}
        seen |= {id(held), id(frontier)}
        following = []
        for referrer in gc.get_referrers(*frontier):
            if referrer is namespace:
                names |= {name for name, value in referrer.items() if id(value) in held}
                continue
            if referrer is outputs:
                names |= {f"Out[{number}]" for number, value in referrer.items() if id(value) in held}
                continue
            if id(referrer) in seen:
                continue
            seen.add(id(referrer))
            if isinstance(referrer, types.FrameType):
                if referrer.f_globals is namespace and referrer.f_locals is not namespace:
                    names.add(f"the running function {referrer.f_code.co_name}")
            elif isinstance(referrer, dict) and _is_module(referrer):
                modules |= {f"{referrer['__name__']}.{name}" for name, value in referrer.items() if id(value) in held}
            else:
                following.append(referrer)
        frontier = following
    plain = {name for name in names if not name.startswith("_")} - IPYTHONS  # _ and _7 name outputs too
    return sorted(plain or names or modules)


def _forget():
    """Free what nobody can see: the variables that the last error's traceback keeps for %debug, and IPython's second copy of old outputs."""
    for name in ("last_traceback", "last_exc"):
        last = getattr(sys, name, None)
        last = getattr(last, "__traceback__", last)
        if isinstance(last, types.TracebackType):
            traceback.clear_frames(last)
    if shell := _shell():
        for name in [name for name in shell.user_ns_hidden if re.fullmatch(r"_+\d*", name)]:
            if shell.user_ns.get(name) is not shell.user_ns_hidden[name]:  # %reset -f out forgets the first copy only
                del shell.user_ns_hidden[name]


def _notebook():
    shell = _shell()
    return shell.user_ns if shell else vars(sys.modules["__main__"])


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _is_module(variables):
    module = sys.modules.get(variables.get("__name__")) if isinstance(variables.get("__name__"), str) else None
    return module is not None and vars(module) is variables
