"""A class that nobody taught: thirty participants whose ledgers are made from recorded rows. Every row that is made up says ``"simulated": true``.

``python -m tests.support.classroom FOLDER [HOW MANY]`` writes one, to try the wall before a class; with ``homework`` in place of a number, what the same
thirty hand in afterwards, to try the marking.
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


EXERCISES = {"00.row": "easy", "00.cost": "medium", "00.question": "question", "03.unpack": "hard", "03.zero": "easy", "03.question": "question"}


def answers(number):
    """How the exercises of participant ``number`` stand: the first ``number`` % 7 are right, the next one is wrong, the others are open."""
    done, found = number % (len(EXERCISES) + 1), {}
    for n, (notebook, name) in enumerate(key.split(".") for key in EXERCISES):
        found.setdefault(notebook, {})[name] = "right" if n < done else "wrong" if n == done else "open"
    return found


def homework(folder):
    """Write what thirty people hand in: a folder or an archive each, with exercises.json, ledger.jsonl and, of every third, predictions.jsonl. CPUs 0 and 1 are both called Kim.

    Three hand-ins are broken beside them: an exercises.json that is torn, one that is foreign, an archive that is cut off.
    """
    folder = Path(folder)
    for number in range(T4S + CPUS):
        cpus = number - T4S
        own = t4(number) if cpus < 0 else cpu(cpus, busy=cpus >= CPUS - BUSY)
        name = f"t4-{number}" if cpus < 0 else {0: "kim", 1: "Kim"}.get(cpus, f"cpu-{cpus}")
        parts = {"ledger.jsonl": text(own), "exercises.json": json.dumps(answers(number))}
        if number % 3 == 0:
            parts["predictions.jsonl"] = text({"what": f"0{n}: a ratio", "prediction": 2.0, "measured": 1.5, "reason": ""} for n in range(1, 8))
        (folder / name).mkdir(parents=True)
        if number % 2:
            with zipfile.ZipFile(folder / name / "results.zip", "w") as archive:
                for file, content in parts.items():
                    archive.writestr(f"results/{file}", content)
        else:
            for file, content in parts.items():
                (folder / name / file).write_text(content, encoding="utf-8")
    for name, content in {"torn": json.dumps(answers(3))[:40], "foreign": '{"name": "package", "version": "1.0"}'}.items():
        (folder / name).mkdir()
        (folder / name / "exercises.json").write_text(content, encoding="utf-8")
    (folder / "cut.zip").write_bytes((folder / "t4-1" / "results.zip").read_bytes()[:100])


if __name__ == "__main__":
    homework(sys.argv[1]) if sys.argv[2:] == ["homework"] else write(sys.argv[1], *map(int, sys.argv[2:]))
