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
from typing import NamedTuple

from helpers import ROOT, kernels, loading, machine
from helpers.errors import CourseError, DiskError, ImpossibleFigureError
from helpers.exercises.predictions import NEAR, guess
from helpers.ledger.rows import SCHEMA, problem
from helpers.machine.speed import LARGEST, bandwidth
from helpers.models import choose, files
from helpers.models.catalogue import VARIANTS
from helpers.setup import installed, results_dir
from helpers.timing import NEW_TOKENS, PROMPT, UNSTEADY, Call, iqr, measure, seconds, spread

LOST = 0.1  # of a core: what a row's threads may lack
SURE = 0.9  # of the floor: the best of two bandwidths measured in one minute differ by up to 4 % on a quiet machine, and a kernel may read better than torch's
LOOKS = 3  # bandwidths that are measured before a row is refused: beside other programs one comes out too low, and the floor too high
SETTINGS = ("bits", "group_size", "desc_act", "sym", "checkpoint_format")  # of a GPTQ checkpoint, as a row keeps them
NOISE = 5  # per cent: a smaller change counts as none
BESIDE = 30  # per cent: the noise of warm calls beside other programs, though cores were left: of the two threads of one core each slows the other
ONE_COLD, ONE_WARM = 20, 15  # per cent: the noise where a side has one row: so far apart lay first and warm calls of several runs on a quiet machine
MANY = 5  # rows of a step: from so many on, one that lies apart is no noise
COLD = ("user_s", "sys_s", "cpu_total_s", "wall_s", "ttft_s")  # figures of the first call
# of the warm calls: what of a call; all others their wall time
WARM = {"tpot_s": "tpot", "pass_s": "pass_time", "warm_ttft_s": "ttft", "warm_cpu_total_s": "cpu_total"}
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "huggingface_hub")


def make_row(step, timing, model, prediction=None, speed=None):
    """Return the ledger row (a dict that JSON can hold) of ``timing``, measured on ``model``, which ``step`` loaded.

    user_s, sys_s, cpu_total_s, wall_s and ttft_s are those of the cold call, as in the article. Times in seconds, sizes in bytes.
    prediction: the reader's guess of wall_s in seconds, or None. speed, and what is raised: see ``held``.
    """
    _, layer = loading.first_layer(model)
    row = measured(timing) | {
        "step": step.number,  # 0 for a variant
        "variant": step.name,
        "title": step.title,
        "tier": step.tier,
        "device": machine.device_of(model),
        "checkpoint": step.place,
        "revision": None if step.is_folder else step.folder.name,  # the commit: the cache keeps each in a folder of that name
        "format": step.format,
        "quantization": {key: step.quantization[key] for key in SETTINGS if key in step.quantization},
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
    return held(row, str(model.device), speed)


def measured(timing, packages=PACKAGES):
    """The part of a row that is the same whatever was measured: ``timing``'s figures, date, machine, versions of ``packages``."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"participant": name} if (name := os.environ.get("PARTICIPANT")) else {}),  # only who asks for it is named
        **{name: getattr(timing, name) for name in ("prompt", "prompt_tokens", "batch", "new_tokens")},
        "prompt_form": "plain",  # see timing.measure
        "completion": timing.text,
        **({"answer": timing.answer} if timing.answer is not None else {}),  # through the chat template; of base models there is none
        **{f"{name}_s": getattr(timing.cold, name) for name in ("user", "sys", "cpu_total", "wall", "ttft")},
        "warm": [asdict(c) for c in timing.warm],
        "warm_wall_s": timing.median("wall"),
        "warm_wall_iqr_s": timing.iqr("wall"),
        "warm_ttft_s": timing.median("ttft"),
        "tpot_s": timing.median("tpot"),
        "decode_tokens_per_s": timing.decode_rate,
        "pass_s": timing.median("pass_time"),
        "tokens_per_pass": timing.median("tokens_per_pass"),
        **{f"{name}_bytes": getattr(timing, name) for name in ("peak_gpu_allocated", "peak_gpu_reserved", "peak_rss")},
        "threads": timing.threads,
        **timing.load,
        "cold_others_cores": timing.cold.others,
        "cores": machine.cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in packages},
    }


def held(row, device, speed=None):
    """Return ``row``, of any engine, held to its floor: with bandwidth_bytes_per_s, of ``device`` and as many bytes, measured now; a pass that
    reads faster than that (SURE) shows that the memory gives as much.

    speed: one measured before. Raises ImpossibleFigureError if the row cannot be right, see ``refusal``.
    """
    row = row | {"bandwidth_bytes_per_s": speed or bandwidth(device, row["read_bytes"])}
    for _ in range(LOOKS - 1):
        if refusal(row):
            row["bandwidth_bytes_per_s"] = max(row["bandwidth_bytes_per_s"], bandwidth(device, row["read_bytes"]))
    if told := refusal(row):
        raise ImpossibleFigureError(told)
    if row.get("tpot_s"):  # read at least so fast (a millionth more: the floor computed back from it may round up)
        shown = (1 + 1e-6) * (row.get("floor_bytes") or row["read_bytes"]) / (row["tpot_s"] * (row.get("tokens_per_pass") or 1))
        row["bandwidth_bytes_per_s"] = max(row["bandwidth_bytes_per_s"], shown)
    return row


def refusal(row, rows=()):
    """Why ``row`` cannot be right, in a sentence; "" if nothing is wrong. The best bandwidth of ``row`` and of those like it in ``rows`` counts.

    A pass takes at least the time that reading its bytes takes; a token may take less, where one pass judges several proposed ones. Afterwards
    the weights that were read are in the memory: of the GPU, else of the process (resident_bytes: what loading and decoding added to it;
    without that key its peak).
    """
    size = row.get("floor_bytes") or row["read_bytes"]

    def like(other):
        same = (min(each.get("floor_bytes") or each["read_bytes"], LARGEST) // 2**20 for each in (row, other))
        return other["device"] == row["device"] and len(set(same)) == 1 and other.get("bandwidth_bytes_per_s")

    best = max(each["bandwidth_bytes_per_s"] for each in (row, *filter(like, rows)))
    passes = [(call["wall"] - call["ttft"]) / (n - 1) for call in row["warm"] if (n := call.get("passes") or row["new_tokens"]) > 1]
    fastest, floor = min([*passes, row["warm_ttft_s"]]) if passes else inf, size / best
    resident = next((row[key] for key in ("resident_bytes", "peak_gpu_allocated_bytes", "peak_rss_bytes") if row.get(key) is not None), inf)
    wrong = ""
    if fastest < SURE * floor:
        what = "token" if row.get("tokens_per_pass") in (None, 1) else "pass"
        wrong = f"{seconds(fastest)} a {what} is less than the {seconds(floor)} that reading its {size:,} bytes takes at {best / 1e9:.1f} GB/s"
    elif resident < row["read_bytes"]:
        wrong = f"a token reads {row['read_bytes']:,} bytes of weights, and only {resident:,} are in the memory after it"
    end = "This is an error of the measurement, so it was not written down: run it again when the machine is quiet."
    return f"{row['title']}: {wrong}. {end}" if wrong else ""


_kept = []  # (path or None, row) of what no disk has taken yet


def append(row, path=None):
    """Append ``row`` to the ledger, so that an interruption or a second notebook cannot mix or cut lines.

    A row that the disk does not take is printed and kept until this kernel ends: the next call writes it, and ``read`` returns it. Then
    DiskError is raised. Numbers that are not finite are written as null, which is said; ImpossibleFigureError is raised where a row is none
    without them.
    """
    found, row = row, _finite(row)
    if lost := [f"{key} is {found[key]!r:.40}" for key in found if row[key] != found[key]]:
        if problem(row):
            wrong = f"{row.get('title')}: {lost[0]}, not finite"
            raise ImpossibleFigureError(f"{wrong}. This is an error of the measurement, so it was not written down: run it again.")
        print(f"{row['title']}: {', '.join(lost)}, not finite: the ledger keeps null in its place.", file=sys.stderr)
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if (path, row) not in _kept:
        _kept.append((path, row))
    if told := _write_kept():
        print(f"Not in the ledger, but kept in this kernel:\n{line}", file=sys.stderr)
        raise DiskError(f"{told} What was measured is kept until this kernel ends.")


def _finite(value):
    """``value``, of JSON, with None in place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_finite, value))
    return None if isinstance(value, float) and not -inf < value < inf else value


def _write_kept():
    """Write the rows that are kept; return why one was not written, or ""."""
    told = ""
    for path, row in list(_kept):
        try:
            files.append(path or results_dir() / "ledger.jsonl", json.dumps(row, ensure_ascii=False, allow_nan=False))
            _kept.remove((path, row))
        except DiskError as error:
            told = str(error)
    return told


def read(path=None, engine="transformers"):
    """Return the ledger's rows of ``engine`` (None: of all), oldest first; a row of transformers names none.

    Lines that are cut off or of another kind are reported and skipped, never changed.
    """
    _write_kept()
    kept = [row for place, row in _kept if place == path]
    path = Path(path or results_dir() / "ledger.jsonl")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            wrong = problem(row)
        except (ValueError, RecursionError):
            wrong = "is not valid JSON (a write was cut off?)"
        if wrong:
            print(f"{path.name}, line {number} {wrong}: skipped.", file=sys.stderr)
        else:
            rows.append(row)
    return [row for row in rows + kept if engine in (None, row.get("engine", "transformers"))]


def by_step(rows):
    """Return {step number, or name of a variant: all its rows} of those ``rows`` that measured the article's call, cold and warm.

    Of several sizes, the last.
    """
    found = {}
    for row in rows:
        if row.get("warm") and (row["prompt"], row["new_tokens"], row.get("batch", 1)) == (PROMPT, NEW_TOKENS, 1):
            variant = row.get("variant") or ""
            found.setdefault((int(variant) if variant.isdecimal() else row["step"] or variant, row["title"]), []).append(row)
    return {key: group for (key, _), group in found.items()}


def history(rows, tier, device):
    """Return ``by_step`` of all ``rows`` measured on ``tier`` and ``device``, by notebooks 01 to 04 and by the benchmark. First used in notebook 05."""
    here = [row for row in rows if (row["tier"], row["device"]) == (tier, device)]
    sizes = {row["parameters"] for row in here if row["step"]}  # another model of the reader's takes no step's place
    return by_step([row for row in here if row["step"] or row.get("variant") in VARIANTS and row["parameters"] in sizes])


def latest(rows, tier, device):
    """Return {step number: its newest row} among ``rows`` measured on ``tier`` and ``device`` by notebooks 01 to 04, in the steps' order."""
    here = [row for row in rows if row["step"] and (row["tier"], row["device"]) == (tier, device) and "run" not in row]
    return dict(sorted({row["step"]: row for row in here}.items()))


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
                print(f"Step {number} is {'not saved' if number in rows else 'missing'}: {error}")
    return dict(sorted(rows.items()))


def measure_step(step, **options):
    """Load ``step``, measure it with timing.measure's ``options``, free it again, and return its row."""
    try:
        model, tokenizer = loading.load(step)
        return make_row(step, measure(model, tokenizer, **options), model)
    finally:
        model = None
        loading.release()


def disturbed(row, key="warm_wall_s"):
    """Why no verdict may be built on ``row``'s figure ``key``, in words; "" if it stands. Rows without the keys of ``measured`` are taken as they are.

    Warm calls keep their time while enough cores are left for their threads (on a full machine the others use what these threads did not get, so
    a tenth of a core lost counts). A first call does not: beside one program on two cores it took 1.6
    to 1.8 times as long on one thread, because the system hands out its memory meanwhile.
    """
    cold, cores = key in COLD, row.get("cores") or 1
    others = row.get("cold_others_cores" if cold else "others_cores") or 0
    threads = 1 if row.get("peak_gpu_allocated_bytes") else row.get("threads") or cores  # one core feeds a GPU
    if others > machine.QUIET and (cold or others + threads > cores + LOST):
        return f"other programs used {others:.1f} of {cores} cores"
    differ = _spread(row)
    return f"the repeats differ by {100 * differ:.0f} %" if differ > UNSTEADY else ""


def _spread(row, key="warm_wall_s"):
    """See timing.spread, of the row's warm calls."""
    return spread([Call(**call) for call in row.get("warm", ())], WARM.get(key, "wall"))


def mark(row, *keys):
    """The mark of ``row`` where its figures ``keys`` are shown, by default a warm one: a sign and a word, "" if they stand."""
    found = next(filter(None, (disturbed(row, key) for key in keys or ("warm_wall_s",))), "")
    return "" if not found else "~ busy" if "programs" in found else "~ noisy"


class Difference(NamedTuple):
    """A change in per cent, see ``difference``; noise: which change counts as none, in per cent; why it is more than NOISE, or ""."""

    percent: float
    noise: float = NOISE
    why: str = ""

    @property
    def sign(self):
        """-1 less, 1 more, 0 about the same, None too noisy to tell."""
        return (1 if self.percent > 0 else -1) if abs(self.percent) > self.noise else None if self.why else 0

    def below(self, limit):
        """Whether it is a change to ``limit`` per cent or lower: True, False, or None if that is too noisy to tell."""
        ratio, edge, factor = 1 + self.percent / 100, 1 + limit / 100, 1 + self.noise / 100
        return True if ratio * factor <= edge else False if ratio / factor > edge else None

    def words(self, what):
        """E.g. "80 % less wall time"."""
        if self.sign:
            return f"{abs(self.percent):.0f} % {'less' if self.percent < 0 else 'more'} {what}"
        same = f"about the same {what} ({self.percent:+.0f} %)"
        return same if self.sign == 0 else f"{what} too noisy to tell ({self.percent:+.0f} %, and {self.why})"

    def times(self):
        """E.g. "1.52 times as long". First used in notebook 05."""
        said = f"{1 + self.percent / 100:.2f} times as long"
        return said if self.sign else f"about as long ({said})" if self.sign == 0 else f"too noisy to tell ({said}, and {self.why})"

    def guess(self, prediction, what, reason=""):
        """See predictions.guess: of the ratio after / before, if its noise is smaller than what counts as near. First used in notebook 01."""
        return guess(prediction, 1 + self.percent / 100, what, reason, self.why if self.noise > NEAR else "")


def calm(rows, key):
    """Those of ``rows`` whose figure ``key`` stands, all of them where none does; of these the ones that no other program ran beside, if there are any."""
    rows = [row for row in rows if not disturbed(row, key)] or rows
    return [row for row in rows if not _beside(row)] or rows


def _beside(row):
    return (row.get("others_cores") or 0) > machine.QUIET


def _value(row, key):
    return median(call["user"] + call["sys"] for call in row["warm"]) if key == "warm_cpu_total_s" else row[key]


def middle(rows, key):
    """Median of the figure ``key`` over all ``rows`` of a step; disturbed ones are left out where others are there. First used in notebook 09."""
    return median(_value(row, key) for row in calm(rows, key))


def difference(before, after, key, after_key=None, many=False):
    """Return the Difference of the figure ``key`` from rows ``before`` to rows ``after`` (there ``after_key``, if it is another).

    before, after: all rows of a step on one machine, at least one each; their ``middle`` is compared. The noise is how far the rows of one side
    lie apart (of MANY rows, the interquartile range, so that measuring again heals), at least that range of their warm calls and NOISE, ONE_COLD or
    ONE_WARM where a side has one row, and BESIDE where other programs ran; it has no end where only disturbed rows are there. A change that is not larger than the noise is none.
    many: whether many machines are asked, which tell how far runs lie apart, so that one row of each is enough. First used in notebook 05.
    """
    sides, noise, why = [(calm(rows, name), name) for rows, name in ((before, key), (after, after_key or key))], NOISE, ""
    for standing, name in sides:
        if trouble := disturbed(standing[-1], name):
            noise, why = inf, ": ".join(filter(None, (standing[-1].get("title"), trouble)))
        values = [_value(row, name) for row in standing]
        apart = iqr(values) if len(values) >= MANY else max(values) - min(values)
        noise = max(noise, 100 * apart / median(values), *(100 * _spread(row, name) for row in standing))
        if noise < BESIDE and any(map(_beside, standing)):
            noise, why = BESIDE, why or f"other programs ran beside {standing[-1].get('title') or 'it'}"
    first, second = (middle(*side) for side in sides)
    percent, why = 100 * (second - first) / first, why or (f"repeats differ by {noise:.0f} %" if noise > NOISE else "")
    alone = [(ONE_COLD if name in COLD else ONE_WARM, standing[0]) for standing, name in sides if len(standing) == 1 and not many]
    if alone and noise < (least := max(limit for limit, _ in alone)):
        noise = least
        if abs(percent) > NOISE:
            why = f"one run of {alone[-1][1].get('title') or 'it'} does not tell how far runs lie apart"
    return Difference(percent, noise, why)


def recorded_rows(files="*/ledger.jsonl"):
    """Return the rows of transformers in all recorded runs (``files`` in data/recorded), each with the key "recorded": the run's name."""
    paths = sorted((ROOT / "data" / "recorded").glob(files))
    return [row | {"recorded": path.parent.name} for path in paths for row in read(path)]
