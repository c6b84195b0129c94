"""A class that nobody taught: thirty participants whose ledgers are made from recorded rows. Every row that is made up says ``"simulated": true``.

``python -m tests.support.classroom FOLDER [HOW MANY]`` writes one, to try the wall before a class.
"""

import json
import random
import sys
import zipfile
from pathlib import Path

from helpers import ROOT

RECORDED = ROOT / "data" / "recorded"
T4S, CPUS, BUSY = 10, 20, 5


def scaled(row, factor, jitter, random, **other):
    """``row`` with all its times ``factor`` times as long, each call by up to ``jitter`` more or less, and the keys of ``other``."""
    first, calls = factor * (1 + random.uniform(-jitter, jitter)), []
    for call in row["warm"]:
        own = factor * (1 + random.uniform(-jitter, jitter))
        calls.append({key: call[key] * own for key in ("user", "sys", "wall", "ttft")} | {"new_tokens": 15, "others": 0.0})
    middle = sorted(calls, key=lambda call: call["wall"])[len(calls) // 2]
    new = row | {key: row[key] * first for key in ("user_s", "sys_s", "cpu_total_s", "wall_s", "ttft_s")} | {"warm": calls, "warm_wall_s": middle["wall"]}
    tpot = (middle["wall"] - middle["ttft"]) / 14
    return new | {"warm_ttft_s": middle["ttft"], "tpot_s": tpot, "decode_tokens_per_s": 1 / tpot} | other | {"simulated": True}


def rows(name):
    """{step: row of the recorded run ``name``}, without what only the benchmark writes."""
    found = [json.loads(line) for line in (RECORDED / name / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: {key: value for key, value in row.items() if key not in ("run", "job", "round", "command")} for row in found if row["step"]}


def t4(number):
    """The four steps of a participant with a T4, as if Llama-2 had been loaded from the Hub: the recorded CPU's times, made shorter."""
    chance = random.Random(number)
    shape = {1: 0.30, 2: 0.09, 3: 0.055, 4: 0.021}  # of the first call: this class agrees with the article
    return [
        scaled(row, shape[step] * chance.uniform(0.9, 1.1), 0.01, chance, tier="hub", device="Tesla T4", cores=2, others_cores=0.0, cold_others_cores=0.0,
               kernel="TorchLinear: simulated" if step > 2 else None, prediction_wall_s=round(chance.uniform(1, 30), 1))
        for step, row in sorted(rows("cpu-2-cores-llama-2").items())
    ]  # fmt: skip


def cpu(number, busy=False):
    """The four steps of a participant without a GPU; busy: other programs took 1.7 of the two cores."""
    chance = random.Random(1000 + number)
    factor, others = (chance.uniform(5, 8), 1.7) if busy else (chance.uniform(0.8, 1.25), 0.0)
    made = []
    for step, row in sorted(rows("cpu-2-cores").items()):
        guess = row["wall_s"] * factor * chance.choice([0.1, 0.5, 1, 1.1, 2, 20]) if step in (1, 2) else None
        made.append(
            scaled(
                row,
                factor * chance.uniform(0.94, 1.06),
                0.02,
                chance,
                threads=2 if busy else 1,
                others_cores=others,
                cold_others_cores=others,
                prediction_wall_s=guess,
            )
        )
    return made


def text(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder, times=1):
    """Write a class into ``folder``: ``times`` x (ten T4s, twenty CPUs, of which five are busy), and once what goes wrong.

    Two participants are called Kim; one has handed in twice; three files are broken: torn in the middle of a row, no ledger at all, empty.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times * T4S):
        (folder / f"t4-{number}.jsonl").write_text(text(t4(number)), encoding="utf-8")
    for number in range(times * CPUS):
        content = text(cpu(number, busy=number % CPUS >= CPUS - BUSY))
        if number == 0:  # the two Kims are CPUs 0 and 1
            (folder / "kim.jsonl").write_text(content, encoding="utf-8")
        elif number == 1:
            (folder / "Kim").mkdir()
            (folder / "Kim" / "ledger.jsonl").write_text(content, encoding="utf-8")
        elif number == 2:  # chose a name, and the file has none
            named = [row | {"participant": "Zoë"} for row in cpu(2)]
            (folder / "ledger (1).jsonl").write_text(text(named), encoding="utf-8")
        elif number == 3:
            with zipfile.ZipFile(folder / "ayşe.zip", "w") as archive:
                archive.writestr("results/ledger.jsonl", content)
                archive.writestr("results/comparison.png", b"not looked at")
        elif number == 4:  # nobody's name: a number
            (folder / "Copy of ledger.jsonl").write_text(content, encoding="utf-8")
        else:
            (folder / f"cpu-{number}.jsonl").write_text(content, encoding="utf-8")
    (folder / "again.jsonl").write_text((folder / "t4-0.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    whole = text(cpu(10**6))  # three whole rows, then half of one
    (folder / "torn.jsonl").write_text(whole[: len(whole) - len(whole.splitlines()[-1]) // 2], encoding="utf-8")
    (folder / "photo.jsonl").write_bytes(b"\xff\xd8\xff\xe0 no ledger\n" * 3)
    (folder / "empty.jsonl").write_bytes(b"")


if __name__ == "__main__":
    write(sys.argv[1], *map(int, sys.argv[2:]))
