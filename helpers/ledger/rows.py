"""What is a row of the ledger? Its keys, and the kind of value that each has to have. First used in notebook 01."""

from helpers.models.catalogue import STEPS
from helpers.models.choose import TIERS
from helpers.timing import Call

SCHEMA = 1
REQUIRED = {
    "schema": int, "date": str, "step": int, "title": str, "tier": str, "device": str, "checkpoint": str, "format": str, "prompt": str,
    "completion": str, "new_tokens": int, "parameters": int, "weight_bytes": int, "read_bytes": int, "user_s": float, "sys_s": float,
    "cpu_total_s": float, "wall_s": float, "ttft_s": float,
}  # fmt: skip
KNOWN = {"step": {0, *STEPS}, "tier": {*TIERS, "own"}}
OPTIONAL = {  # or None; numbers, or None, are all keys that end as NUMBERS; see ``_fits``
    name: kind
    for kind, names in {
        str: "variant engine participant prompt_form answer system python revision dtype layer_class kernel note run job command",
        int: "batch prompt_tokens threads cores round",
        dict: "quantization versions",
    }.items()
    for name in names.split()
}
MOST = 1e308  # JSON has whole numbers that no float holds
NUMBERS = ("_s", "_bytes", "_cores", "_per_pass")


def problem(row):
    """Why ``row`` is not a row of this ledger, or None."""
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        return f"is not of schema {SCHEMA}"
    for key, kind in REQUIRED.items():
        value = row.get(key)
        usable = isinstance(value, kind) and not isinstance(value, bool)
        if usable and key in KNOWN:
            usable = value in KNOWN[key]
        elif usable and kind is not str:
            usable = _number(value) and (value > 0 or key != "wall_s")
        if not usable:
            return f"lacks a usable {key!r}"
    needed = ("warm_wall_s", "warm_ttft_s", *["tpot_s"] * (row["new_tokens"] > 1)) if row.get("warm") else ()
    wrong = (key for key, value in row.items() if key not in REQUIRED and value is not None and not _fits(key, value))
    return next((f"lacks a usable {key!r}" for key in (*wrong, *(key for key in needed if not row.get(key)))), None)


def _fits(key, value):
    """Whether ``value``, which is not None, is one for the optional ``key``; keys that nobody knows have any."""
    if key == "warm":
        return isinstance(value, list) and all(map(_call, value))
    if key == "operations_s":
        return isinstance(value, dict) and all(map(_number, value.values()))
    if key in OPTIONAL:
        return isinstance(value, OPTIONAL[key]) and not isinstance(value, bool)
    return _number(value) or not key.endswith(NUMBERS)


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST


def _call(call):
    """Whether ``call`` is a Call as a row keeps it."""
    try:
        return all(map(_number, call.values())) and Call(**call).wall > 0
    except (TypeError, AttributeError):
        return False
