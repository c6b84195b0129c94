"""Errors whose message is one sentence that says what happened and what to do next.

In a notebook IPython shows that sentence alone, without a traceback. First used in notebook 08.
"""

import errno
import re


class CourseError(Exception):
    """Base class: catch it to catch everything that the helpers raise on purpose."""

    def _render_traceback_(self):
        """IPython calls this instead of printing a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UnknownStepError(CourseError, ValueError):
    """A step number that the catalogue does not have."""


class UnknownFormatError(CourseError, ValueError):
    """A number format that the course does not have."""


class UnknownTierError(CourseError, ValueError):
    """A tier that does not exist."""


class PromptError(CourseError, ValueError):
    """An empty prompt, or one that does not fit into the model's context."""


class TokenCountError(CourseError, ValueError):
    """A number of tokens, warm-ups or repeats that makes no sense."""


class ImpossibleFigureError(CourseError, ValueError):
    """A row of the ledger that breaks a limit of its machine: an error of the measurement."""


class CheckpointError(CourseError, OSError):
    """A checkpoint that is missing, incomplete, damaged or of another architecture."""


class NotEnoughMemoryError(CourseError, MemoryError):
    """The weights do not fit into the free memory, or the free space of a disk."""


class DiskError(CourseError, OSError):
    """A file or a folder that cannot be written: the disk is full or read-only, or a variable names no folder."""


class LibraryError(CourseError, RuntimeError):
    """A library that failed on a model or a text of the reader's."""


class NotFiniteError(CourseError, ArithmeticError):
    """A model whose layers compute numbers that are not finite: nothing that is measured on it counts."""


class DeviceError(CourseError, RuntimeError):
    """A device that this machine does not have."""


class KernelError(DeviceError):
    """A GPTQ kernel that failed while a model was loaded with it: another one may do."""


class PackagesError(CourseError, ImportError):
    """Packages that are missing, too old, or replaced while the kernel was using them."""


PART = -1  # no number of a system's: numpy, which counts what it wrote
WORDS = {  # in the text of an error that has no number: the system's name of it
    "No space left": "ENOSPC", "Disk quota exceeded": "EDQUOT", "File too large": "EFBIG", "Read-only file": "EROFS", " requested and ": "PART",
}  # fmt: skip


def _numbers(**reasons):
    """{number of the operating system: clause}, of those that it has."""
    return {PART if name == "PART" else getattr(errno, name): said for name, said in reasons.items() if name == "PART" or hasattr(errno, name)}


FULL = _numbers(  # where less or another disk helps
    ENOSPC="the disk is full", EDQUOT="your quota on the disk is used up", PART="the disk took only a part of it",
    EFBIG="the file would be larger than the disk or your limits allow (ulimit -f)",
)  # fmt: skip
CLOSED = _numbers(  # where another folder helps
    EROFS="the disk is read-only", EACCES="you may not write there", EPERM="you may not write there", ENOTDIR="a file stands where a folder is needed",
    EISDIR="a folder of that name is there", ENAMETOOLONG="the path is too long", EIO="the disk reports an error", ESTALE="the network disk has gone away",
)  # fmt: skip
NO_FOLDER = _numbers(EEXIST="a file stands where a folder is needed", ENOENT="the folder cannot be made")  # where one was to be made


def chain(error):
    """``error`` and what caused it (list), outermost first."""
    links = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def kinds(error):
    """The names (set of str) of the classes of ``error`` and of what caused it."""
    return {cls.__name__ for link in chain(error) for cls in type(link).__mro__}


def disk_trouble(error, setting, reasons=FULL | CLOSED):
    """Say in a clause why the disk stopped ``error`` and what to do; "" if it did not.

    setting: the environment variable that names the folder. reasons: {number of the operating system: clause}, those that count here. Libraries
    that are not Python's say the number in their text (Rust's "os error 28"), or the words only.
    """
    for link in chain(error):
        said, name = re.search(r"os error (\d+)", str(link)), next((name for words, name in WORDS.items() if words in str(link)), "")
        number = int(said[1]) if said else getattr(link, "errno", None) or (PART if name == "PART" else getattr(errno, name, None))
        if number in reasons:
            advice = f"make room, or set {setting} to a folder on another disk" if number in FULL else f"set {setting} to a folder that you may write to"
            return f"{reasons[number]}: {advice}"
    return ""
