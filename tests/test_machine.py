"""What machine is this, and does a step fit? GPUs are described by their driver's program, so that none is needed here."""

import json
import os
import subprocess
import sys

import pytest
from support.book import cells

from helpers import ROOT, machine
from helpers.models import choose
from helpers.models.catalogue import LLAMA_2

T4 = "0, Tesla T4, 7.5, 15360, 14910"
TWO = f"{T4}\n1, Tesla T4, 7.5, 15360, 15100"
P100 = "0, Tesla P100-PCIE-16GB, 6.0, 16384, 16280"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an nvidia-smi on the path that prints what it is told."""

    def install(output):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_no_driver(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.gpus() == []


def test_two_gpus(driver, monkeypatch):
    driver(TWO)
    first, second = machine.gpus()
    assert first.name == "Tesla T4" and first.capability == (7, 5) and first.free == 14910 * 2**20 and second.index == 1
    assert "bfloat16 only emulated" in first.sentence and first.supported and not first.native_bf16
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in machine.gpus()] == [1]
    for hidden, left in (("", []), ("-1", []), ("1,-1,0", [1])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert [gpu.index for gpu in machine.gpus()] == left


def test_driver_that_says_nothing_useful(driver):
    driver("0, Old Card, [N/A], 2000, 1000")
    assert machine.gpus() == []


PROGRAM = """
import json, sys
import pandas as pd
from helpers import machine
from helpers.models import choose
from helpers.errors import DeviceError
tier, reason = choose.choose_tier("auto")
found = choose.survey()
torch_before = "torch" in sys.modules
try:
    asked = machine.get_device(0)
except DeviceError as error:
    asked = str(error)
exec(sys.argv[1])
print(json.dumps([tier, reason, machine.get_device(), asked, torch_before, rows]))
"""


def ask(output, driver):
    driver(output)
    settings = os.environ | {"TIER": "auto", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *cells("00", "cell-machine")], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_gpu_that_torch_no_longer_knows(driver):
    """P100: recognised without a CUDA call, the CPU takes its place."""
    tier, reason, device, asked, torch_imported, table = ask(P100, driver)
    assert tier == "embedded" and "today's PyTorch cannot use this GPU (Tesla P100" in reason
    assert device == "cpu" and "cannot use this GPU" in asked and not torch_imported
    assert "TOO OLD" in table["GPU 0"] and "✗" in table["Hugging Face Hub"]


def test_survey_does_not_import_torch(driver):
    tier, reason, device, asked, torch_imported, table = ask("", driver)
    assert not torch_imported and "no NVIDIA GPU" in table["GPU"] and tier == "embedded"


def tree(folder, lines, mounts, files):
    """A /proc/self with its control groups and where they are mounted, and the files below them."""
    (folder / "proc").mkdir()
    (folder / "proc" / "cgroup").write_text("\n".join(lines) + "\n")
    lines = [f"{n} 1 0:{n} {root} {folder / point} rw,nosuid - {kind} none rw,{options}" for n, (root, point, kind, options) in enumerate(mounts)]
    (folder / "proc" / "mountinfo").write_text("\n".join(["20 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]) + "\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")


G, V2 = 2**30, [("/", "cg", "cgroup2", "nsdelegate")]
NONE = 2**63 - 4096  # how version 1 says "no limit"
SHARES = {  # control groups of this process, mounts, files, (total, free) in GiB of a host with 64 of them, 60 free, and 8 cores; cores
    "none": (["0::/"], V2, {"cg/memory.stat": ""}, (64, 60), 8),
    "v2, Docker": (["0::/"], V2, {"cg/memory.max": 2 * G, "cg/memory.current": G, "cg/memory.stat": f"anon 5\ninactive_file {G // 4}", "cg/cpu.max": "200000 100000"},
                   (2, 1.25), 2),
    "v2, no limit": (["0::/a.slice"], V2, {"cg/a.slice/memory.max": "max", "cg/a.slice/memory.current": G, "cg/a.slice/cpu.max": "max 100000"}, (64, 60), 8),
    "v2, limit on a slice above": (["0::/system.slice/job/step"], V2,
                                   {"cg/system.slice/job/step/memory.max": "max", "cg/system.slice/job/memory.max": 4 * G, "cg/system.slice/job/memory.current": 3 * G,
                                    "cg/system.slice/memory.max": 32 * G, "cg/system.slice/memory.current": 31.5 * 2**30, "cg/system.slice/cpu.max": "350000 100000"},
                                   (4, 0.5), 3),
    "v2, the fullest is not the smallest": (["0::/a/b"], V2, {"cg/a/b/memory.max": 4 * G, "cg/a/b/memory.current": G, "cg/a/memory.max": 8 * G,
                                            "cg/a/memory.current": 7 * G}, (4, 1), 8),
    "v2, throttled from": (["0::/a"], V2, {"cg/a/memory.high": 3 * G, "cg/a/memory.max": "max", "cg/a/memory.current": G}, (3, 2), 8),
    "v2, half a core": (["0::/a"], V2, {"cg/a/cpu.max": "50000 100000"}, (64, 60), 1),
    "v2, over-full": (["0::/a"], V2, {"cg/a/memory.max": G, "cg/a/memory.current": 2 * G}, (1, 0), 8),
    "v1, Docker sees its own group as the root": (
        ["4:memory:/docker/abc", "3:cpu,cpuacct:/docker/abc", "0::/"],
        [("/docker/abc", "v1/memory", "cgroup", "memory"), ("/docker/abc", "v1/cpu", "cgroup", "cpu,cpuacct")],
        {"v1/memory/memory.limit_in_bytes": 2 * G, "v1/memory/memory.usage_in_bytes": G, "v1/memory/memory.stat": f"total_inactive_file {G // 2}",
         "v1/cpu/cpu.cfs_quota_us": 400000, "v1/cpu/cpu.cfs_period_us": 100000}, (2, 1.5), 4),
    "v1, Slurm": (["4:memory:/slurm/uid_1/job_2/step_0", "3:cpu:/slurm"], [("/", "v1/memory", "cgroup", "memory"), ("/", "v1/cpu", "cgroup", "cpu")],
                  {"v1/memory/memory.limit_in_bytes": NONE, "v1/memory/slurm/uid_1/job_2/memory.limit_in_bytes": 8 * G, "v1/cpu/slurm/cpu.cfs_quota_us": -1,
                   "v1/memory/slurm/uid_1/job_2/memory.usage_in_bytes": 2 * G, "v1/memory/slurm/uid_1/job_2/step_0/memory.limit_in_bytes": NONE,
                   "v1/cpu/slurm/cpu.cfs_period_us": 100000}, (8, 6), 8),
    "v1, a limit above what the container sees": (["4:memory:/kube/pod/x"], [("/kube/pod/x", "v1/memory", "cgroup", "memory")],
        {"v1/memory/memory.limit_in_bytes": NONE, "v1/memory/memory.usage_in_bytes": G, "v1/memory/memory.stat": f"hierarchical_memory_limit {6 * G}"}, (6, 5), 8),
    "both versions": (["4:memory:/a", "0::/b"], [("/", "v1/memory", "cgroup", "memory"), ("/", "cg", "cgroup2", "")],
                      {"v1/memory/a/memory.limit_in_bytes": 9 * G, "v1/memory/a/memory.usage_in_bytes": 8 * G, "cg/b/cpu.max": "300000 100000"}, (9, 1), 3),
    "a name with a blank": (["0::/my job"], [("/my\\040root", "cg", "cgroup2", ""), *V2], {"cg/my job/memory.max": 5 * G}, (5, 5), 8),
    "a group outside of what is mounted": (["0::/../../other"], V2, {"cg/memory.max": 7 * G}, (7, 7), 8),
    "nothing is told, but it stands where it usually does": ([], [], {"standard/memory/memory.limit_in_bytes": 3 * G, "standard/cpu.max": "100000 100000"}, (3, 3), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARES)
def test_the_smallest_limit_on_the_way_to_the_root_counts(tmp_path, monkeypatch, name):
    import psutil

    lines, mounts, files, (total, free), cores = SHARES[name]
    tree(tmp_path, lines, mounts, {path: int(text) if isinstance(text, float) else text for path, text in files.items()})
    monkeypatch.setattr(machine.share, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine.share, "STANDARD", tmp_path / "standard")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64 * G, "available": 60 * G}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.host_memory() == (total * G, free * G) and machine.cores() == cores


def test_limits_of_a_mounted_container(tmp_path):
    """The real /proc/self/mountinfo and a real mount, in a mount namespace of its own (root)."""
    look = "from helpers import machine; print(*machine.host_memory(), machine.cores())"
    slice = {f"system.slice/job/{name}": value for name, value in {"memory.max": 2 * G, "memory.current": G, "cpu.max": "100000 100000"}.items()}
    for own, files in (("4:memory:/x", {"memory/memory.limit_in_bytes": 2 * G, "memory/memory.usage_in_bytes": G, "cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 100000}),
                       ("0::/", {"memory.max": 2 * G, "memory.current": G, "cpu.max": "100000 100000"}), ("0::/system.slice/job/step", slice)):  # fmt: skip
        write = "".join(f"mkdir -p $(dirname /sys/fs/cgroup/{f}); echo {t!r} > /sys/fs/cgroup/{f}; " for f, t in files.items())
        write += f"echo {own!r} > /sys/fs/cgroup/own; mount --bind /sys/fs/cgroup/own /proc/$$/cgroup; "
        command = ["unshare", "-m", "bash", "-c", f"mount -t tmpfs none /sys/fs/cgroup && {write} exec {sys.executable} -c '{look}'"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip("a mount namespace needs root")
        assert done.stdout.split() == [str(2 * G), str(G), "1"], done.stderr


PEAK = "from helpers import machine; block = bytearray(b'x') * int(sys.argv[1]); del block; print(machine.peak_rss())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not inherit its parent's peak")
def test_the_peak_is_the_processs_own():
    """Started from a small program, from one that has 600 MB, and forked from it; a peak that is over counts."""
    own = f"import subprocess, sys; {PEAK}"
    small = int(subprocess.check_output([sys.executable, "-c", own, "0"], cwd=ROOT))
    grown = int(subprocess.check_output([sys.executable, "-c", own, "300_000_000"], cwd=ROOT))
    parent = (
        "import os, subprocess, sys; from helpers import machine; block = bytearray(b'x') * 600_000_000\n"
        f"print(subprocess.check_output([sys.executable, '-c', {own!r}, '0']).decode().strip(), machine.peak_rss(), flush=True)\n"
        "del block\n"
        "if not (child := os.fork()): print(machine.peak_rss(), flush=True); os._exit(0)\n"
        "os.waitpid(child, 0)"
    )
    started, parents, forked = map(int, subprocess.check_output([sys.executable, "-c", parent], cwd=ROOT).split())
    assert small < 100e6 and started < 1.2 * small and forked < 1.5 * small
    assert 300e6 < grown < 400e6 and 600e6 < parents < 700e6


def survey(*gpus, speed=100e6, disk=100e9, online=""):
    return {"gpus": list(gpus), "free": 12e9, "speed": speed, "disk": disk, "online": online}


def gpu(free, index=0, capability=(7, 5)):
    return machine.Gpu(index, "GPU", capability, int(free), int(free))


def test_verdicts():
    assert choose.verdict(9, 10) == choose.FITS and choose.verdict(10, 10) == choose.TIGHT and choose.verdict(11, 10) == choose.TOO_LARGE
    for sign, word in (verdict.split(" ", 1) for verdict in (choose.FITS, choose.TIGHT, choose.TOO_LARGE)):
        assert len(sign) == 1 and word.isascii()


def test_steps_on_a_t4():
    table = choose.step_table(survey(gpu(15.4e9)), context=512)
    assert list(table["verdict"]) == [choose.FITS, choose.TIGHT, choose.FITS, choose.FITS]
    assert table.loc["2: 7B bf16", "weights"] == "13,476,831,232"
    assert table.loc["2: 7B bf16", "download, time, disk"] == f"13.5 GB, about 2 min, {choose.FITS}"
    assert LLAMA_2["7B"].kv_bytes_per_token == 524_288 and LLAMA_2["13B"].kv_bytes_per_token == 819_200
    longer = choose.step_table(survey(gpu(15.4e9)), context=4096)
    assert longer.loc["2: 7B bf16", "verdict"] == choose.TOO_LARGE and "shorter context" in longer.loc["2: 7B bf16", "what to do"]


def test_steps_on_two_small_gpus():
    table = choose.step_table(survey(gpu(9e9), gpu(9e9, 1)))
    assert "2 GPUs" in table.loc["2: 7B bf16", "free"] and table.loc["2: 7B bf16", "verdict"] != choose.TOO_LARGE
    assert "(GPU)" in table.loc["3: 7B GPTQ", "free"]


def test_steps_without_a_gpu_or_disk_or_network():
    assert "T4 GPU" in choose.step_table(survey()).loc["2: 7B bf16", "what to do"]
    assert "(host)" in choose.step_table(survey()).loc["2: 7B bf16", "free"]
    assert "HF_HOME" in choose.step_table(survey(gpu(20e9), disk=5e9)).loc["2: 7B bf16", "what to do"]
    assert "no network" in choose.step_table(survey(gpu(20e9), speed=None, online="no")).loc["1: 7B 8-bit", "what to do"]
