"""Programs that compute beside what is tested."""

import subprocess
import sys
from contextlib import ExitStack, contextmanager


@contextmanager
def busy(programs, seconds=300):
    """``programs`` processes (list of Popen) that compute, at most for ``seconds``."""
    code = f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
    with ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen([sys.executable, "-c", code])) for _ in range(programs)]
        try:
            yield children
        finally:
            for child in children:
                child.kill()
