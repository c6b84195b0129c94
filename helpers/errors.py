"""Errors whose message is one sentence that says what happened and what to do next.

In a notebook IPython shows that sentence alone, without a traceback. First used in notebook 08.
"""


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
