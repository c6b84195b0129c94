"""Who still holds a model that was meant to be freed? Names notebook variables, IPython's outputs and modules."""

import gc
import sys
import traceback
import types

DEPTH = 8  # steps from a tensor up to the variable: parameter, layer, list, closure, hook, …


def find(parts, namespace=None):
    """Return the names (sorted list of str) of what keeps any of the objects ``parts`` alive.

    Follows references backwards (gc.get_referrers) until it meets the notebook's variables (``namespace``, by default IPython's, or
    __main__'s), its outputs ("Out[7]"), a module's variable or a running function.
    """
    namespace = _notebook() if namespace is None else namespace
    outputs = namespace.get("_oh", {})
    names, frontier = set(), list(parts)
    own = {id(parts), id(sys._getframe()), id(sys._getframe().f_back)}
    seen = own | {id(part) for part in frontier}
    for _ in range(DEPTH):
        if not frontier:
            break
        held = {id(thing) for thing in frontier}
        seen |= {id(held), id(frontier)}
        following = []
        for referrer in gc.get_referrers(*frontier):
            if id(referrer) in seen:
                continue
            seen.add(id(referrer))
            if referrer is namespace:
                names |= {name for name, value in referrer.items() if id(value) in held}
            elif referrer is outputs:
                names |= {f"Out[{number}]" for number, value in referrer.items() if id(value) in held}
            elif isinstance(referrer, types.FrameType):
                names.add(f"the running function {referrer.f_code.co_name}")
            elif isinstance(referrer, dict) and _is_module(referrer):
                names |= {f"{referrer['__name__']}.{name}" for name, value in referrer.items() if id(value) in held}
            else:
                following.append(referrer)
        frontier = following
    plain = {name for name in names if not name.startswith("_")}  # _ and _7 name outputs too
    return sorted(plain or names)


def forget_last_error():
    """Free the variables of the functions that the last error went through: its traceback, kept for %debug, holds them."""
    for name in ("last_traceback", "last_exc"):
        last = getattr(sys, name, None)
        last = getattr(last, "__traceback__", last)
        if isinstance(last, types.TracebackType):
            traceback.clear_frames(last)


def _notebook():
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        return shell.user_ns
    return vars(sys.modules["__main__"])


def _is_module(variables):
    module = sys.modules.get(variables.get("__name__")) if isinstance(variables.get("__name__"), str) else None
    return module is not None and vars(module) is variables
