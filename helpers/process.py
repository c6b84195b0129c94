"""How is a function called in a process of its own? It gets one job and gives one answer; nothing else is shared.

The process may be of another Python, with other packages: then not even the versions are shared. First used in notebook 06, by the
benchmark.
"""

import contextlib
import json
import subprocess
import sys
from importlib import import_module

from helpers import ROOT, errors
from helpers.errors import CourseError

MARK = "answer of the process: "  # begins the line that ``call`` reads


class ProcessError(CourseError, RuntimeError):
    """A process that died, was too slow, or whose answer cannot be read."""


def call(function, job, name="", python=sys.executable, variables=None, timeout=None):
    """Return what ``function`` ("module.name") returns for ``job``, called in a new process of the program ``python``.

    job, answer: what JSON can hold. name: of the process in sentences. variables: its environment, by default this one's. Raises the
    CourseError that the function raises, or ProcessError if the process dies or gives no answer within ``timeout`` seconds.
    """
    name, program = name or function, f"from helpers import process; process.reply({function!r})"
    options = {"cwd": ROOT, "env": variables, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout}
    try:
        done = subprocess.run([python, "-c", program, json.dumps(job)], **options)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{name} gave no answer within {timeout:.0f} s and was stopped: run the cell again when the machine is quiet.") from None
    line = next((line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None and done.returncode == -9:  # SIGKILL, which Windows does not have
        raise ProcessError(f"{name} was killed, most likely because the memory ran out: close other notebooks and run the cell again.")
    if line is None:
        end = f"died of signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
        raise ProcessError(f"{name} {end} and gave no answer: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    try:
        found = json.loads(line)
    except ValueError:
        raise ProcessError(f"The answer of {name} is no JSON, it begins {line[:40]!r}: run the cell again.") from None
    if "problem" in found:
        raise getattr(errors, found["problem"], ProcessError)(found["sentence"] if found["problem"] else f"{name} could not do its job. {found['sentence']}")
    return found["answer"]


def reply(function):
    """The other end of ``call``: print the answer of ``function`` to the job in sys.argv, or why there is none, as one line of JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            module, _, name = function.rpartition(".")
            found = {"answer": getattr(import_module(module), name)(json.loads(sys.argv[1]))}
        except CourseError as error:
            found = {"problem": type(error).__name__, "sentence": str(error)}
        except Exception as error:  # a compiler that is missing, a kernel that refuses
            found = {"problem": "", "sentence": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"}
    print(f"{MARK}{json.dumps(found, allow_nan=False)}", flush=True)
