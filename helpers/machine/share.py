"""Which share of the machine may this process use? The limits of its control groups, from its own to the root, in both versions of cgroups.

Docker, Kubernetes, Slurm and systemd set a limit anywhere on that way, and the smallest one counts
(https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html). First used in notebook 00.
"""

import contextlib
import os
import re
from pathlib import Path

PROC, STANDARD = Path("/proc/self"), Path("/sys/fs/cgroup")


def groups(controller):
    """(version, folder) of each control group that holds this process for ``controller`` ("memory", "cpu"), its own first; [] without Linux."""
    lines, mounts, found = _lines("cgroup"), [], []
    for line in _lines("mountinfo"):  # proc(5): id, parent, device, root, mount point, options … - type, source, super options
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), (after.split(" ") + ["", ""])[:3]
        root, point = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text) for text in fields[3:5])
        if kind == "cgroup2" or kind == "cgroup" and controller in options.split(","):
            mounts.append((2 if kind == "cgroup2" else 1, root, Path(point)))
    mounts += [(2, "/", STANDARD), (1, "/", STANDARD / controller)]  # where they usually are
    for version, root, point in mounts:
        wanted = "" if version == 2 else controller
        own = next((path for _, names, path in (line.split(":", 2) for line in lines if line.count(":") > 1) if wanted in names.split(",")), "/")
        inside = own.removeprefix(root.rstrip("/")) if f"{own}/".startswith(f"{root.rstrip('/')}/") else ""  # a container may see its own group as the root
        folder = point / os.path.normpath(f"/{inside}").lstrip("/")
        while folder.is_relative_to(point):
            if (version, folder) not in found:
                found.append((version, folder))
            folder = folder.parent
    return found


def _lines(name):
    with contextlib.suppress(OSError):
        return (PROC / name).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path):
    """The whole number in the file ``path``; None where there is none ("max")."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())


def memory():
    """(limit, free) in bytes of each control group of this process that has a limit. Cached files are free: the system gives them up when it must."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.max", "memory.current", "inactive_file")}
    found = []
    for version, folder in groups("memory"):
        limit, used, cached = names[version]
        stat = {}
        with contextlib.suppress(OSError, ValueError):
            stat = {key: int(value) for key, value in (line.split() for line in (folder / "memory.stat").read_text().splitlines())}
        limits = [_number(folder / limit), stat.get("hierarchical_memory_limit"), _number(folder / "memory.high") if version == 2 else None]
        if limits := [number for number in limits if number is not None]:
            found.append((min(limits), max(0, min(limits) - max(0, (_number(folder / used) or 0) - stat.get(cached, 0)))))
    return found


def cores():
    """How many cores' time the smallest quota allows (float); None without a quota."""
    found = []
    for version, folder in groups("cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if version == 2:
            with contextlib.suppress(OSError, ValueError):
                quota, period = map(int, (folder / "cpu.max").read_text().split())  # "max 100000" has no quota
        if quota and period and quota > 0:
            found.append(quota / period)
    return min(found, default=None)
