"""Everything runs on the embedded tier and leaves its results in a temporary folder; the notebooks' kernels inherit both.

With TEST_RESULTS, a folder, the notebooks leave them there, and every later process of the same `make test` begins with a copy of it.
"""

import os
import shutil
import signal
import tempfile

os.environ["TIER"] = "embedded"
os.environ["RESULTS_DIR"] = RESULTS = os.environ.get("TEST_RESULTS") or tempfile.mkdtemp(prefix="results-")
if RESULTS == os.environ.get("TEST_RESULTS") and "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["RESULTS_DIR"] = RESULTS = shutil.copytree(RESULTS, tempfile.mkdtemp(prefix="results-"), dirs_exist_ok=True)

import pytest

from helpers import ledger, loading, process
from helpers.machine import network
from helpers.models import choose
from tools import run

LONG = ("test_hub.py", "test_formats_after.py", "test_real_model.py", "test_checkpoints.py")  # minutes each
for name in (*network.OFFLINE, "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"):
    os.environ.pop(name, None)  # the reader's own: the tests have a Hub of theirs


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `make test &` in a script: the programs that the tests interrupt would not listen
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU; make gpu runs these")
    if shutil.which("nvidia-smi") and "gpu" not in config.getoption("markexpr"):  # all other tests, and the notebooks beside them, run as without a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if config.getoption("nbmake", False):  # kernels begin as they do in `make run`
        from tools import kernel  # late: make gpu has no Jupyter

        copies = process.Copies(kernel.MODULES)
        kernel.use(copies)
        config.add_cleanup(copies.__exit__)


def pytest_collection_modifyitems(items):
    """Of several processes, none shall end alone on a long file: those begin first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in LONG)


def own_environment():
    """What a test, a fixture of its module or a library that they call sets in os.environ is gone after it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


environment_of_a_test = pytest.fixture(own_environment, autouse=True)
environment_of_a_module = pytest.fixture(own_environment, autouse=True, scope="module")  # before the module's own fixtures, which are set up before any test's


@pytest.fixture(scope="session")
def run_results():
    """Folder with the results of notebooks 01 to 05: those that nbmake has just run, else they run now."""
    rows = ledger.read(f"{RESULTS}/ledger.jsonl")
    if not {1, 2, 3, 4} <= {row["step"] for row in rows} or not os.path.exists(f"{RESULTS}/comparison.md"):
        assert run.main(["01", "02", "03", "04", "05"]) == 0
    return RESULTS


@pytest.fixture(scope="session")
def models():
    """{step number: (step, model, tokenizer)}, freshly loaded: no call of ``generate`` has touched the layers yet."""
    loaded = {}
    for number in (1, 2, 3, 4):
        step = choose.get_step(number)
        loaded[number] = (step, *loading.load(step))
    return loaded
