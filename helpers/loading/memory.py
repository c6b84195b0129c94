"""Who still holds a model that was meant to be freed, and how is its memory given back? First used in notebook 01."""

import contextlib
import gc
import re
import sys
import traceback
import types

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
    """Let every large buffer that is freed meanwhile go back to the operating system at once (mallopt(3): M_MMAP_THRESHOLD is -3).

    glibc keeps them up to 32 MB; while a checkpoint is quantised tensor by tensor that adds up to 1.7 times the weights, to 1.1 with this.
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
    if namespace is None:
        namespace = _shell().user_ns if _shell() else vars(sys.modules["__main__"])
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


def forget():
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


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _is_module(variables):
    module = sys.modules.get(variables.get("__name__")) if isinstance(variables.get("__name__"), str) else None
    return module is not None and vars(module) is variables
