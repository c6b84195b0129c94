"""What was measured so far? An append-only file of JSON lines, one row a measured step: ``results/ledger.jsonl``.

First used in notebook 01.
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from statistics import median

from helpers import ROOT, kernels, loading, machine
from helpers.errors import CourseError
from helpers.models import choose
from helpers.models.catalogue import STEPS
from helpers.models.choose import TIERS
from helpers.setup import installed, results_dir
from helpers.timing import UNSTEADY, Call, measure, spread

SCHEMA = 1
LOST = 0.1  # of a core: what a row's threads may lack
NOISE = 5  # per cent: a smaller change counts as none
COLD = ("user_s", "sys_s", "cpu_total_s", "wall_s", "ttft_s")  # figures of the first call
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "huggingface_hub")
REQUIRED = {
    "schema": int, "date": str, "step": int, "title": str, "tier": str, "device": str, "checkpoint": str, "format": str, "prompt": str,
    "completion": str, "new_tokens": int, "parameters": int, "weight_bytes": int, "read_bytes": int, "user_s": float, "sys_s": float,
    "cpu_total_s": float, "wall_s": float, "ttft_s": float,
}  # fmt: skip
KNOWN = {"step": {0, *STEPS}, "tier": {*TIERS, "own"}}


def make_row(step, timing, model, prediction=None):
    """Return the ledger row (a dict that JSON can hold) of ``timing``, measured on ``model``, which ``step`` loaded.

    user_s, sys_s, cpu_total_s, wall_s and ttft_s are those of the cold call, as in the article. Times in seconds, sizes in bytes.
    prediction: the reader's guess of wall_s, or None.
    """
    layer = model.model.layers[0].self_attn.q_proj
    return measured(timing) | {
        "step": step.number,  # 0 for a variant
        "variant": step.name,
        "title": step.title,
        "tier": step.tier,
        "device": machine.device_of(model),
        "checkpoint": step.place,
        "revision": None if step.is_folder else step.folder.name,  # the commit: the cache keeps each in a folder of that name
        "format": step.format,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layer_class": type(layer).__name__,
        "kernel": kernels.used(model),
        "note": step.note,
        "prediction_wall_s": prediction,
        "parameters": step.shape.parameters,
        "weight_bytes": step.bytes,
        "read_bytes": step.shape.read_bytes(step.format),  # of these, what one decoded token reads at least
        "weight_bytes_loaded": loading.weight_bytes(model),  # as the kernel has arranged them for itself
    }


def measured(timing, packages=PACKAGES):
    """The part of a row that is the same whatever was measured: ``timing``'s figures, date, machine, versions of ``packages``."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"participant": name} if (name := os.environ.get("PARTICIPANT")) else {}),  # only who asks for it is named
        **{name: getattr(timing, name) for name in ("prompt", "prompt_tokens", "batch", "new_tokens")},
        "completion": timing.text,
        **{f"{name}_s": getattr(timing.cold, name) for name in ("user", "sys", "cpu_total", "wall", "ttft")},
        "warm": [asdict(c) for c in timing.warm],
        "warm_wall_s": timing.median("wall"),
        "warm_wall_iqr_s": timing.iqr("wall"),
        "warm_ttft_s": timing.median("ttft"),
        "tpot_s": timing.median("tpot"),
        "decode_tokens_per_s": timing.decode_rate,
        **{f"{name}_bytes": getattr(timing, name) for name in ("peak_gpu_allocated", "peak_gpu_reserved", "peak_rss")},
        "threads": timing.threads,
        **timing.load,
        "cold_others_cores": timing.cold.others,
        "cores": machine.cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in packages},
    }


def append(row, path=None):
    """Append ``row`` to the ledger in one write, so that an interruption or a second notebook cannot mix or cut lines."""
    path = Path(path or results_dir() / "ledger.jsonl")
    line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with open(path, "ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line  # an earlier write was cut off: leave it, begin a new line
        file.write(line)
        os.fsync(file.fileno())


def read(path=None, engine="transformers"):
    """Return the ledger's rows of ``engine`` (None: of all), oldest first; a row of transformers names none.

    Lines that are cut off or of another kind are reported and skipped, never changed.
    """
    path = Path(path or results_dir() / "ledger.jsonl")
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = _problem(row)
        except (ValueError, RecursionError):
            problem = "is not valid JSON (a write was cut off?)"
        if problem:
            print(f"{path.name}, line {number} {problem}: skipped.", file=sys.stderr)
        elif engine in (None, row.get("engine", "transformers")):
            rows.append(row)
    return rows


def history(rows, tier, device):
    """Return {step number: all its rows} among ``rows`` measured on ``tier`` and ``device`` by notebooks 01 to 04. First used in notebook 05."""
    found = {}
    for row in rows:
        if row["step"] and row["tier"] == tier and row["device"] == device and "run" not in row:
            found.setdefault(row["step"], []).append(row)
    return found


def latest(rows, tier, device):
    """Return {step number: its newest row} among ``rows`` measured on ``tier`` and ``device`` by notebooks 01 to 04, in the steps' order."""
    return {number: found[-1] for number, found in sorted(history(rows, tier, device).items())}


def steps(tier, missing=(), **options):
    """Return {number: row} of the steps on ``tier`` on this machine, in the steps' order, each the newest.

    Steps of ``missing`` (numbers) that the ledger lacks are loaded and measured now; one that cannot be is left out, with a sentence.
    options: as for timing.measure; what is measured with any does not go into the ledger.
    """
    rows = latest(read(), tier, machine.device_name())
    for number in missing:
        if number not in rows:
            try:
                rows[number] = measure_step(choose.get_step(number, tier), **options)
                if not options:
                    append(rows[number])
            except CourseError as error:
                print(f"Step {number} is missing: {error}")
    return dict(sorted(rows.items()))


def measure_step(step, **options):
    """Load ``step``, measure it with timing.measure's ``options``, free it again, and return its row."""
    try:
        model, tokenizer = loading.load(step)
        return make_row(step, measure(model, tokenizer, **options), model)
    finally:
        model = None
        loading.release()


def _problem(row):
    """Why ``row`` is not a row of this ledger, or None."""
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        return f"is not of schema {SCHEMA}"
    for key, kind in REQUIRED.items():
        value = row.get(key)
        usable = isinstance(value, kind) and not isinstance(value, bool)
        if usable and key in KNOWN:
            usable = value in KNOWN[key]
        elif usable and kind is float:
            usable = 0 <= value < inf and (value > 0 or key != "wall_s")
        if not usable:
            return f"lacks a usable {key!r}"
    return None


def disturbed(row, key="warm_wall_s"):
    """Why no verdict may be built on ``row``'s figure ``key``, in words; "" if it stands. Rows without the keys of ``measured`` are taken as they are.

    Warm calls keep their time while enough cores are left for their threads (on a full machine the others use what these threads did not get, so
    a tenth of a core lost counts). A first call does not: beside one program on two cores it took 1.6
    to 1.8 times as long on one thread, because the system hands out its memory meanwhile.
    """
    cold, cores = key in COLD, row.get("cores") or 1
    others, threads = row.get("cold_others_cores" if cold else "others_cores") or 0, row.get("threads") or cores
    if others > machine.QUIET and (cold or others + threads > cores + LOST):
        return f"other programs used {others:.1f} of {cores} cores"
    differ = _spread(row)
    return f"the repeats differ by {100 * differ:.0f} %" if differ > UNSTEADY else ""


def _spread(row):
    """See timing.spread, of the row's warm calls."""
    return spread([Call(**call) for call in row.get("warm", ())])


def mark(row, *keys):
    """The mark of ``row`` where its figures ``keys`` are shown, by default a warm one: a sign and a word, "" if they stand."""
    found = next(filter(None, (disturbed(row, key) for key in keys or ("warm_wall_s",))), "")
    return "" if not found else "~ busy" if "programs" in found else "~ noisy"


def difference(before, after, key):
    """(change in per cent, noise in per cent, why it is noisy or "") of the figure ``key`` from rows ``before`` to rows ``after``.

    before, after: all rows of a step on one machine, at least one each; the medians are compared. Rows that were disturbed are left out where
    others are there. The noise is how far the rows of one side lie apart, at least the interquartile range of their warm calls and NOISE; it
    has no end where only disturbed rows are there. A change that is not larger than the noise is none. First used in notebook 05.
    """
    middles, noise, why = [], NOISE, ""
    for rows in (before, after):
        calm = [row for row in rows if not disturbed(row, key)]
        if not calm:
            noise, why = inf, f"{rows[-1].get('title', 'a step')}: {disturbed(rows[-1], key)}"
        values = [row[key] for row in calm or rows]
        middle = median(values)
        noise = max(noise, 100 * (max(values) - min(values)) / middle, *(100 * _spread(row) for row in calm or rows))
        middles.append(middle)
    why = why or (f"repeats differ by {noise:.0f} %" if noise > NOISE else "")
    return 100 * (middles[1] - middles[0]) / middles[0], noise, why


def recorded_rows():
    """Return the ledger rows of all recorded runs (``data/recorded/*/ledger.jsonl``), each with the key "recorded": the run's name."""
    paths = sorted((ROOT / "data" / "recorded").glob("*/ledger.jsonl"))
    return [row | {"recorded": path.parent.name} for path in paths for row in read(path)]
