"""Compile, without a GPU, every CUDA extension that the course can cause to be compiled on a T4, through the course's own code.

    python -m tools.t4 [--python ENVIRONMENT/bin/python] [--capability 7.5 8.0] [--toolkit FOLDER]

ENVIRONMENT needs a CUDA build of torch and the packages that the notebooks' set-up cell adds. torch is told that it has the GPU
(tests/support/mocked_cuda.py); the compiler, and all that it makes, are real. The status is 1 if an extension does not build, or if a GPTQ
load would wait for one longer than LONGEST. Where there is no CUDA compiler of torch's own CUDA version, one is put together from
NVIDIA's packages on PyPI.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 60  # seconds of compiling that a GPTQ load may wait for, on two cores that do nothing else: half of the compiler's processor time
TOOLKIT = {  # CUDA's major version: NVIDIA's packages with its compiler, and with the headers that gptqmodel's sources ask for
    "13": (
        "nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85", "nvidia-cuda-runtime==13.0.96",
        "nvidia-cuda-profiler-api==13.0.85", "nvidia-nvtx==13.0.85", "nvidia-cuda-culibos==13.0.85",
    ),
}  # fmt: skip
WAITED_FOR = "exllamav2"  # the others: gptq_block is switched off in notebook 10, so only a reader's own program compiles it; Triton's takes a second
# Headers of cuSPARSE and the like, which torch's own headers ask for: a small compiler has none, torch's CUDA packages bring them.
HEADERS = """
import pathlib, nvidia, torch
print(next((p / f"cu{torch.version.cuda.split('.')[0]}" / "include" for p in map(pathlib.Path, nvidia.__path__)), ""))
"""
NAMES = (WAITED_FOR, "gptq_block", "Triton's dequantisation")


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.t4", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable, help="the Python of an environment with a CUDA build of torch")
    parser.add_argument("--capability", nargs="+", default=["7.5"], help="compute capabilities to compile for, e.g. 7.5 8.0")
    parser.add_argument("--toolkit", type=Path, help="a folder with bin/nvcc (default: CUDA_HOME, else this machine's, else one is put together)")
    options = parser.parse_args(arguments)
    cuda = said(options.python, "-c", "import torch; print(torch.version.cuda or '')")
    if not cuda:
        sys.exit(f"{options.python} has no torch that was built for CUDA. Make an environment that has: make replica LIST=freeze.txt FOLDER=folder,"
                 " then make t4 T4_PYTHON=folder/environment/bin/python")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="t4-") as temporary:
        folder = Path(temporary)
        home = options.toolkit or toolkit(cuda, folder / "toolkit")
        print(f"Compiling with {home}/bin/nvcc for torch with CUDA {cuda}, on {os.cpu_count()} cores:", flush=True)
        return max([build(options.python, home, capability, folder) for capability in options.capability])


def build(python, home, capability, folder):
    """Compile all for ``capability`` in a process of its own, print a line for each; return 1 if one failed, else 0."""
    headers = said(python, "-c", HEADERS)
    variables = os.environ | {
        "CUDA_HOME": str(home), "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(folder / capability), "TRITON_CACHE_DIR": str(folder / capability / "triton"),
        "CPATH": headers,
    }  # fmt: skip
    command = [python, str(ROOT / "tools" / "t4_build.py"), capability]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    results = [json.loads(line.removeprefix("built: ")) for line in done.stdout.splitlines() if line.startswith("built: ")]
    failed = len(results) < len(NAMES)
    for name, result in zip(NAMES, results):
        problem = result["problem"]
        if not problem and name == WAITED_FOR and result["cpu"] / 2 > LONGEST:
            problem = f"a load would wait longer than {LONGEST} s"
        failed |= bool(problem)
        figures = f"{result['seconds']:6.1f} s ({result['cpu']:6.1f} s of processor time), {result['peak'] / 1e9:4.1f} GB at most"
        print(f"  {capability}  {name:24} {figures}  {problem or 'builds'}", flush=True)
    if len(results) < len(NAMES):
        print(f"  {capability}  the build ended early: {done.stderr.strip()[-2000:]}", flush=True)
    return int(failed)


def toolkit(cuda, folder):
    """Return a folder with a CUDA compiler of the same major version as ``cuda``: this machine's, else ``folder``, filled from PyPI."""
    major = cuda.split(".")[0]
    for home in filter(None, (os.environ.get("CUDA_HOME"), f"/usr/local/cuda-{cuda}", "/usr/local/cuda")):
        nvcc = Path(home) / "bin" / "nvcc"
        if nvcc.is_file() and f"release {major}." in said(str(nvcc), "--version"):
            return Path(home)
    if major not in TOOLKIT:
        sys.exit(f"This torch was built for CUDA {cuda}, for which PyPI has no whole compiler: install one, and name its folder with --toolkit.")
    parts = folder.with_name("parts")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(parts), *TOOLKIT[major]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"The CUDA compiler could not be fetched: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    (parts / "nvidia" / f"cu{major}").rename(folder)
    (folder / "lib64").symlink_to("lib")
    (folder / "lib" / "libcudart.so").symlink_to(next((folder / "lib").glob("libcudart.so.*")).name)
    for programs in (folder / "bin", folder / "nvvm" / "bin"):
        for program in programs.iterdir():
            program.chmod(0o755)
    return folder


def said(*command):
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
