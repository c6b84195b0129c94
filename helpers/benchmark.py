"""Measure steps so that they can be compared: each in a process of its own, in turns, with the bandwidth of the memory beside it.

    python -m helpers.benchmark                                        # the article's four steps
    python -m helpers.benchmark 1 int8-no-outliers fp16 2 3 4 --rounds 3
    python -m helpers.benchmark 2 3 --prompt-tokens 8 64 128 --batch 1 4
    python -m helpers.benchmark 1 2 3 --size 1.3B                      # random weights of that size, see helpers.synthetic

Every result is a row of the ledger. Interrupted, the same command goes on with what is missing.
"""

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

from helpers import checks, kernels, ledger, plots, results, steps, tiers, timing
from helpers.article import NEW_TOKENS, ROOT
from helpers.errors import CourseError, PromptError, TokenCountError, UnknownStepError
from helpers.job import MARK, Job

ROUNDS = 2


@dataclass
class Run:
    """What ``run`` returns. rows: ledger rows, oldest first. problems: {job: the sentence that says why it was not measured}.

    busy: the most processor cores that other programs were using when a step began.
    """

    id: str
    rows: list = field(default_factory=list)
    problems: dict = field(default_factory=dict)
    busy: float = 0.0


def run(keys=(1, 2, 3, 4), tier=None, sizes=("",), rounds=ROUNDS, path=None, **options):
    """Measure the steps ``keys`` and return a Run; each row is appended to the ledger at ``path`` as soon as it is there.

    rounds: how often each step is measured, in turns with the others, each time in a new process. sizes, and options: see Job. A run that
    was interrupted goes on when it is asked for again with the same arguments. Raises CourseError for what cannot be asked for; a step that
    cannot run here is left out, and Run.problems says why.
    """
    from tqdm.auto import tqdm

    if rounds < 1 or min([*options.get("batches", (1,)), *(n for n in options.get("prompt_tokens", ()) if n is not None)], default=1) < 1:
        raise PromptError("Rounds, batch sizes and prompt lengths are 1 or more.")
    if options.get("repeats", 1) < 1 or options.get("warmups", 0) < 0:
        raise TokenCountError("A benchmark needs at least 1 repeat, and no fewer than 0 warm-ups.")
    if not keys or options.get("layers") and not all(sizes):
        raise UnknownStepError("Name at least one step; and a number of layers only together with a size.")
    for key in keys:
        steps.get_step(key, tier="embedded")  # an unknown one is said before anything runs
    tier = tiers.choose_tier(tier)[0]
    jobs = [Job(key, tier, size, round=n, **options) for n, size, key in product(range(1, rounds + 1), sizes, keys)]
    id, rows, unfinished = _begin(jobs, path)
    found, done = Run(id, rows), {row["job"] for row in rows}
    todo, failed = [job for job in jobs if job.name not in done], set()
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="benchmark") as bar:
        for job in todo:
            bar.set_description(f"{job.key} {job.size}".strip())
            if (job.key, job.size) not in failed:
                busy = _busy_cores()
                if busy > 0.3 and not found.busy:
                    tqdm.write(f"Other programs keep {busy:.1f} cores busy: figures of a CPU will be far too slow. Close them and measure again.")
                found.busy = max(found.busy, busy)
                new, problem = _in_a_process(job)
                problem = problem or next(filter(None, (refusal(row, found.rows + new) for row in new)), "")
                if problem:
                    found.problems[job.name] = problem
                    failed.add((job.key, job.size))
                for row in new if not problem else ():
                    found.rows.append(row | {"run": id, "job": job.name, "round": job.round, "busy_cores_before": busy, "command": _command(job, keys, rounds)})
                    ledger.append(found.rows[-1], path)
            bar.update()
    unfinished.unlink(missing_ok=True)
    return found


def refusal(row, rows):
    """Why ``row`` cannot be right: a token faster than its bytes can be read, at the best bandwidth seen in ``rows``; "" if nothing is wrong."""
    bandwidth = max(r["bandwidth_bytes_per_s"] for r in [row, *rows] if r["device"] == row["device"] and (r is row or _working_set(r) == _working_set(row)))
    floor = row["floor_bytes"] / bandwidth
    fastest = min(min(call["wall"] - call["ttft"] for call in row["warm"]) / max(row["new_tokens"] - 1, 1), row["warm_ttft_s"])
    if row["new_tokens"] > 1 and fastest < floor:
        return (
            f"{row['title']}: {fastest * 1e3:.3g} ms a token is less than the {floor * 1e3:.3g} ms that reading its {row['floor_bytes']:,} bytes takes at "
            f"{bandwidth / 1e9:.1f} GB/s. This is an error of the measurement, so it was not written down: run it again when the machine is quiet."
        )
    return ""


def _begin(jobs, path):
    """(id, rows, file) of the run to go on with, if one of the same jobs was interrupted; else a new id and no rows.

    file: stands beside the ledger until the run is finished, and holds its id.
    """
    about = [{name: ledger.installed(name) for name in ledger.PACKAGES}, tiers.device_name(jobs[0].device)]
    mark = hashlib.sha256(json.dumps([asdict(job) for job in jobs] + about, default=str).encode()).hexdigest()[:8]
    unfinished = (Path(path).parent if path else ledger.results_dir()) / f"benchmark-{mark}.unfinished"
    if unfinished.is_file():
        id = unfinished.read_text(encoding="utf-8")
        return id, [row for row in ledger.read(path) if row.get("run") == id], unfinished
    id = f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}-{mark}"
    unfinished.write_text(id, encoding="utf-8")
    return id, [], unfinished


def _in_a_process(job):
    """(rows, problem) of ``job``, measured in a new process; problem is a sentence, or "".

    Its checkpoint is fetched or written before, in this process, whose progress bars can be seen.
    """
    from helpers import download

    try:
        step = job.step()
        if not step.is_folder:
            if tiers.gpu_count() < 2:  # said before gigabytes are fetched for nothing
                checks.check_step(step, tiers.get_device(job.device))
            download.fetch(step)
        if step.format == "gptq" and (device := tiers.get_device(job.device)) != "cpu":  # compiled here, where it can be seen
            kernels.prepare(step, device)
    except CourseError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # a download that the reader stopped: stop it all
            raise KeyboardInterrupt from error
        return [], str(error)
    command = [sys.executable, "-m", "helpers.job", json.dumps(asdict(job))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        try:
            out, errors = worker.communicate()
        except BaseException:
            worker.kill()
            raise
    for line in out.splitlines():
        if line.startswith(MARK):
            answer = json.loads(line.removeprefix(MARK))
            return answer["rows"], answer["problem"]
    if worker.returncode == -signal.SIGKILL:
        return [], f"{job.key}: its process was killed, most likely because the memory ran out."
    return [], f"{job.key}: its process failed: {(errors.strip() or 'it said nothing').splitlines()[-1]}"


def _command(job, keys, rounds):
    """The command line that measures the same."""
    options = {"--tier": [job.tier], "--rounds": [rounds], "--new-tokens": [job.new_tokens], "--warmups": [job.warmups], "--repeats": [job.repeats]}
    options["--batch"] = job.batches
    options["--prompt-tokens"] = ["article" if n is None else n for n in job.prompt_tokens]
    options |= {name: [value] for name, value in (("--size", job.size), ("--layers", job.layers), ("--device", job.device)) if value}
    words = [str(word) for name, values in options.items() for word in (name, *values)]
    return shlex.join(["python", "-m", "helpers.benchmark", *map(str, keys), *words])


def _busy_cores():
    """How many cores are busy now, before our own process starts."""
    import psutil

    return psutil.cpu_percent(interval=0.3) / 100 * psutil.cpu_count()


def _working_set(row):
    from helpers.bandwidth import LARGEST

    return min(row["floor_bytes"] // 2**20, LARGEST // 2**20)


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.benchmark", description=__doc__.split("\n", 1)[0])
    parser.add_argument("steps", nargs="*", default=["1", "2", "3", "4"], help=f"1 to 4, or one of {', '.join(steps.VARIANTS)}")
    parser.add_argument("--tier", choices=("auto", *tiers.TIERS))
    parser.add_argument("--size", nargs="+", default=[""], help="sizes with random weights, e.g. 1.3B 2.7B, in place of the tier's models")
    parser.add_argument("--layers", type=int, help="with --size: another number of blocks")
    parser.add_argument("--prompt-tokens", nargs="+", default=["article"], help="lengths of the prompt; article: the article's")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sequences at a time")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--warmups", type=int, default=timing.WARMUPS)
    parser.add_argument("--repeats", type=int, default=timing.REPEATS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device")
    given = parser.parse_args(arguments)
    try:
        lengths = tuple(None if n == "article" else int(n) for n in given.prompt_tokens)
    except ValueError:
        print("--prompt-tokens takes whole numbers, or the word article.", file=sys.stderr)
        return 2
    keys = [int(key) if key.isdigit() else key for key in given.steps]
    try:
        found = run(
            keys, given.tier, given.size, given.rounds, layers=given.layers, prompt_tokens=lengths, batches=tuple(given.batch), new_tokens=given.new_tokens,
            warmups=given.warmups, repeats=given.repeats, device=given.device,
        )  # fmt: skip
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The ledger could not be written ({error}): make room, or set RESULTS_DIR to another folder; then the same command goes on.", file=sys.stderr)
        return 2
    if found.rows:
        print(f"\n{plots.where(found.rows[0])}\n{results.table(found.rows).to_string()}")
    for sentence in dict.fromkeys(found.problems.values()):
        print(f"Not measured: {sentence}")
    print(f"{len(found.rows)} rows of run {found.id} are in {ledger.results_dir() / 'ledger.jsonl'}.")
    return 0 if found.rows else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was measured is in the ledger; the same command goes on.")
