"""Measure steps so that they can be compared: each in a process of its own, in turns, with the bandwidth of the memory beside it.

Every result is a row of the ledger. Interrupted, the same call goes on with what is missing. First used in notebook 06.
"""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median

from helpers import kernels, ledger, machine, plots, process, setup
from helpers.benchmark.job import LIBRARIES, Job
from helpers.errors import CourseError, DiskError, PromptError, TokenCountError, UnknownStepError
from helpers.models import choose, files, hub
from helpers.timing import PROMPT, Call, iqr, seconds

ROUNDS = 2


@dataclass
class Run:
    """What ``run`` returns. rows: ledger rows, oldest first. problems: {job: the sentence that says why it was not measured}."""

    id: str
    rows: list = field(default_factory=list)
    problems: dict = field(default_factory=dict)


def run(keys=(1, 2, 3, 4), tier=None, sizes=("",), rounds=ROUNDS, path=None, **options):
    """Measure the steps ``keys`` and return a Run; each row is appended to the ledger at ``path`` as soon as it is there.

    rounds: how often each step is measured, in turns with the others, each time in a new process. sizes, and options: see Job. A run that
    was interrupted goes on when it is asked for again with the same arguments. Raises CourseError for what cannot be asked for; a step that
    cannot run here is left out, and Run.problems says why.
    """
    from tqdm.auto import tqdm

    if rounds < 1 or min([*options.get("batches", (1,)), *(n for n in options.get("prompt_tokens", ()) if n is not None)], default=1) < 1:
        raise PromptError("A number of rounds, a batch size or a prompt length is below 1: give whole numbers from 1 on.")
    if options.get("repeats", 1) < 1 or options.get("warmups", 0) < 0:
        raise TokenCountError("The benchmark was asked for less than 1 repeat or less than 0 warm-ups: give more of them.")
    if not keys or options.get("layers") and not all(sizes):
        raise UnknownStepError("No step is named, or a number of layers without a size: name at least one step, and give layers with a size only.")
    for key in keys:
        choose.get_step(key, tier="embedded")  # an unknown one is said before anything runs
    tier = choose.choose_tier(tier)[0]
    jobs = [Job(key, tier, size, round=n, **options) for n, size, key in product(range(1, rounds + 1), sizes, keys)]
    id, rows, unfinished = _begin(jobs, path)
    found, done = Run(id, rows), {row["job"] for row in rows}
    todo, failed, busiest = [job for job in jobs if job.name not in done], set(), 0.0
    with process.Copies(LIBRARIES) as copies, tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="benchmark") as bar:
        for job in todo:
            bar.set_description(f"{job.key} {job.size}".strip())
            if (job.key, job.size) not in failed:
                busy = machine.busy_cores()
                if busy > 0.3 and not busiest:
                    tqdm.write(f"Other programs keep {busy:.1f} cores busy: figures of a CPU will be far too slow. Close them and measure again.")
                busiest = max(busiest, busy)
                new, problem = _in_a_process(job, copies)
                problems, full = [problem] if problem else [], None
                for row in new:
                    if refused := ledger.refusal(row, found.rows + new):
                        problems.append(refused)
                        continue
                    found.rows.append(row | {"run": id, "job": job.name, "round": job.round, "busy_cores_before": busy, "command": _command(job, keys, rounds)})
                    try:
                        ledger.append(found.rows[-1], path)
                    except DiskError as error:  # the row is kept in this kernel, and so shall be the others of its job
                        full = error
                if problems:
                    found.problems[job.name] = " ".join(problems)
                    failed.add((job.key, job.size))
                if full:
                    raise full
            bar.update()
    unfinished.unlink(missing_ok=True)
    return found


def _begin(jobs, path):
    """(id, rows, file with the id, until the run is finished) of the run of the same jobs that was interrupted; else a new id and no rows."""
    about = [{name: setup.installed(name) for name in ledger.PACKAGES}, machine.device_name(jobs[0].device)]
    mark = hashlib.sha256(json.dumps([asdict(job) for job in jobs] + about, default=str).encode()).hexdigest()[:8]
    unfinished = (Path(path).parent if path else setup.results_dir()) / f"benchmark-{mark}.unfinished"
    if unfinished.is_file():
        id = unfinished.read_text(encoding="utf-8")
        return id, [row for row in ledger.read(path) if row.get("run") == id], unfinished
    id = f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-{mark}"
    files.write(unfinished, id)
    return id, [], unfinished


def _in_a_process(job, copies=process):
    """(rows, problem, a sentence or "") of ``job`` in a new process, one of ``copies``; its checkpoint is fetched or written before, where progress can be seen."""
    try:
        step = job.step()
        if not step.is_folder:
            if machine.gpu_count() < 2:  # said before gigabytes are fetched for nothing
                choose.check_step(step, machine.get_device(job.device))
            hub.fetch(step)
        if step.format == "gptq":  # compiled here, where it can be seen; one that does not run on this device is said here
            device = machine.get_device(job.device)
            kernels.plan_for(step, device) if device == "cpu" else kernels.prepare(step, device)
        return copies.call("helpers.benchmark.job.measure", asdict(job), f"The process of {job.key}"), ""
    except CourseError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # a download that the reader stopped: stop it all
            raise KeyboardInterrupt from error
        return [], str(error)


def _command(job, keys, rounds):
    """The command line that measures the same."""
    options = {"--tier": [job.tier], "--rounds": [rounds], "--new-tokens": [job.new_tokens], "--warmups": [job.warmups], "--repeats": [job.repeats]}
    options["--batch"] = job.batches
    options["--prompt-tokens"] = ["article" if n is None else n for n in job.prompt_tokens]
    options |= {name: [value] for name, value in (("--size", job.size), ("--layers", job.layers), ("--device", job.device)) if value}
    options |= {f"--{name}": [getattr(job, name)] for name in ("checkpoint", "dtype") if getattr(job, name)}
    words = [str(word) for name, values in options.items() for word in (name, *values)]
    return shlex.join(["python", "-m", "tools.benchmark", *map(str, keys), *words])


def pool(rows):
    """Return {(step's key, title, prompt tokens, batch, whether it is the article's prompt): one dict} of ``rows``, rounds pooled.

    Each is its newest row with the first call's figures as medians of the rounds, and the warm ones as medians of all warm calls;
    floor_tpot_s is at the best bandwidth of the rounds, over_floor is TPOT / floor.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["variant"] or row["step"], row["title"], row["prompt_tokens"], row["batch"], row["prompt"] == PROMPT), []).append(row)
    pooled = {}
    for key, group in groups.items():
        calls = [Call(**call) for row in group for call in row["warm"]]
        tpot = median(call.tpot for call in calls) if group[-1]["new_tokens"] > 1 else None
        floor = min(row["floor_tpot_s"] for row in group)
        pooled[key] = group[-1] | {name: median(row[name] for row in group) for name in ("wall_s", "ttft_s", "user_s", "sys_s", "cpu_total_s", "load_s")} | {
            "warm": [asdict(call) for call in calls],
            "warm_wall_s": median(call.wall for call in calls),
            "warm_wall_iqr_s": iqr([call.wall for call in calls]),
            "warm_ttft_s": median(call.ttft for call in calls),
            "warm_cpu_total_s": median(call.cpu_total for call in calls),
            "tpot_s": tpot,
            "decode_tokens_per_s": group[-1]["batch"] / tpot if tpot else None,
            "floor_tpot_s": floor,
            "over_floor": tpot / floor if tpot else None,
            **{name: max(row.get(name) or 0 for row in group) for name in ("others_cores", "cold_others_cores")},  # a busy round marks them all
            "rounds": len(group),
        }  # fmt: skip
    return pooled


def table(rows):
    """Return a table (pandas.DataFrame) of benchmark ``rows``, one line for each step, prompt length and batch, rounds pooled."""
    import pandas as pd

    pooled = list(pool(rows).values())
    lines = [
        {
            "step": row["title"],
            "prompt": row["prompt_tokens"],
            "batch": row["batch"],
            "load": seconds(row["load_s"]),
            **plots.times(row),
            "peak memory": f"{row['peak_generating_bytes'] / 1e9:.2f} GB",
            "kernel": row["layer_class"],
        }
        for row in pooled
    ]
    return plots.marked(pd.DataFrame(lines).set_index("step"), pooled) if lines else pd.DataFrame()


def by_step(rows):
    """Return {step's key as text: pooled row} of benchmark ``rows`` measured with the article's prompt and batch 1, in their order."""
    pooled = pool([row for row in rows if row["prompt"] == PROMPT and row["batch"] == 1])
    return {str(row["variant"] or row["step"]): row for row in pooled.values()}
