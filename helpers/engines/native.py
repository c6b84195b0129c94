"""How fast is llama.cpp when it is built for this very processor?

xllamacpp's wheels hold one build, for AVX2 on x86 and for plain ARMv8. npm's ``@node-llama-cpp`` packages hold llama.cpp built for each generation of
processors, and ggml says which of them this one can run. They are fetched from npm's registry (npm's own variable NPM_CONFIG_REGISTRY names another),
refused if their SHA-512 is not the one written here, and called through ctypes in a process of their own. First used in notebook 11.
"""

import base64
import ctypes
import hashlib
import os
import platform
import re
import tarfile
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

from helpers import ROOT, ledger, machine, process, setup
from helpers.engines import llamacpp, timed
from helpers.errors import CheckpointError, CourseError, PromptError
from helpers.models import files
from helpers.setup import installed
from helpers.timing import PROMPT, seconds

VERSION = "3.22.1"  # of the packages; their llama.cpp is release 0.5.0
WHEEL = "wheel"  # stands for xllamacpp's own build where a build is asked for
PACKAGES = {  # (system, processor): (name, bytes to fetch, SHA-512 as npm writes it)
    ("Linux", "x86_64"): ("linux-x64", 10824547, "5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg=="),
    ("Linux", "aarch64"): ("linux-arm64", 7340902, "W+7naKCXX9/eEjjFmRS8vvx91QyLXDbeFxexZc3bh/PtQABZgmRL3C0AtYYXn4YGTj/3Qor4lWZn2tpjZFPLdQ=="),
}
SETS = {  # what the wheel's build leaves unused: its name in /proc/cpuinfo, its usual name
    "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX", "asimddp": "dot products", "i8mm": "I8MM", "sve": "SVE",
}  # fmt: skip
KERNELS = {"AVX512_VNNI": "AVX-512 VNNI", "AVX512": "AVX-512", "AVX_VNNI": "AVX-VNNI", "AVX2": "AVX2", "MATMUL_INT8": "I8MM", "DOTPROD": "dot products"}


def unused(told="/proc/cpuinfo"):
    """Names of this processor's instruction sets that the wheel's build leaves unused; none where the system does not tell them (only Linux does)."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path(told).read_text(encoding="utf-8"), flags=re.M)
    except OSError:
        return []
    flags = found[1].split() if found else []
    return [name for flag, name in SETS.items() if flag in flags]


def fetch():
    """Return the folder of llama.cpp's libraries for this kind of machine, fetched now if they are not there, and say so.

    It lies in the environment variable LLAMA_CPP_DIR, by default ``.llama.cpp/`` in the project. None, with a sentence why, where they bring
    nothing that the wheel has not, or cannot be had: then the wheel goes on.
    """
    there, package = unused(), PACKAGES.get((platform.system(), platform.machine()))
    if not there or not package:
        print("For this processor there is no faster ready-made llama.cpp than the wheel's.")
        return None
    name, size, pinned = package
    folder = setup.folder("LLAMA_CPP_DIR", ".llama.cpp") / f"{name}-{VERSION}"
    print(f"This processor has {', '.join(there)}, which the wheel's build does not use.", end=" ")
    try:
        with files.whole(folder, folder.is_dir, 4 * size, "LLAMA_CPP_DIR") as partial:
            if partial:
                print(f"Fetching llama.cpp built for it: {size / 1e6:.0f} MB, once.", flush=True)
                _unpack(_download(name, size, pinned), partial)
    except (CourseError, OSError, ValueError) as error:  # no network, a proxy's page, a full or read-only disk
        print(f"The build for it cannot be had ({error}): the wheel goes on.")
        return None
    print(f"Builds for it: {folder}")
    return folder


def _download(name, size, pinned):
    """The bytes of the package ``name``. Raises OSError, also if their SHA-512 is not the one ``pinned``."""
    from tqdm.auto import tqdm

    registry = next(filter(None, map(os.environ.get, ("NPM_CONFIG_REGISTRY", "npm_config_registry"))), "https://registry.npmjs.org").rstrip("/")
    address, data = f"{registry}/@node-llama-cpp/{name}/-/{name}-{VERSION}.tgz", bytearray()
    with urlopen(address, timeout=30) as answer, tqdm(total=size, desc=f"{name}-{VERSION}.tgz", unit="B", unit_scale=True) as bar:
        while part := answer.read(2**18):
            data += part
            bar.update(len(part))
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != pinned:
        raise OSError(f"{address} has other content than this course was tested with")
    return bytes(data)


def _unpack(data, folder):
    """Write llama.cpp's and ggml's libraries and their licence from the package ``data`` to ``folder``; not what serves node alone."""
    folder.mkdir()
    with tarfile.open(fileobj=BytesIO(data)) as package:
        for member in package:
            if re.search(r"/(libggml[\w.-]*\.so|libllama\.[\w.]+\.so|LICENSE)$", member.name) and member.isfile():
                (folder / Path(member.name).name).write_bytes(package.extractfile(member).read())


def builds(folder):
    """Return {name: score} of the builds in ``folder`` that this processor can run, by ggml's own judgement, the best first; none, and why, if they do not load."""
    try:
        found = process.call("helpers.engines.native.scores", str(folder), "llama.cpp")
    except process.ProcessError as error:  # a Linux without glibc
        print(f"{error} The wheel goes on.")
        return {}
    return dict(sorted(((name, score) for name, score in found.items() if score), key=lambda entry: -entry[1]))


def compared(builds):
    """The best of ``builds``, and two that were made for processors with AVX-512 and with AVX2, where they are there: to see what newer ones gain."""
    return [build for build in dict.fromkeys([*list(builds)[:1], "icelake", "haswell"]) if build in builds]


def record(folder, build, path, step, type, threads):
    """Measure the GGUF file ``path`` of ``type`` in ``build`` (a key of ``builds``, or WHEEL) of ``folder``, see timed.apart; append its row and return it.

    The row's layer_class: what multiplied, by llama.cpp's own account, and the build. Raises ProcessError if the build cannot run.
    """
    total, read = llamacpp.sizes(path)
    room, version = ("llamacpp", {"xllamacpp": installed("xllamacpp")}) if build == WHEEL else ("native", {"node-llama-cpp": VERSION})
    job = {"folder": str(folder), "build": build, "path": str(path), "threads": threads}
    result, more = timed.apart(f"helpers.engines.{room}.work", job, total)
    kernel = more.pop("kernel", f"{WHEEL} (xllamacpp {version.get('xllamacpp')})")
    about = {"format": "gguf", "weight_bytes": total, "read_bytes": read, "dtype": type, "checkpoint": Path(path).name, "versions": version}
    return timed.record("llama.cpp", f"{type}, {kernel.split(' (')[0]}", result, step, kernel=kernel, **about, **more)


def log_probabilities(folder, build, path, prompts):
    """Return the log-probabilities (numpy, one row for each of ``prompts``, lists of token ids) of the next token in ``build``, in a process of its own."""
    import numpy as np

    job = {"folder": str(folder), "build": build, "path": str(path), "prompts": prompts}
    return np.array(process.call("helpers.engines.native.next_tokens", job, f"llama.cpp ({build})"))


def verdict(rows):
    """Return in sentences which of ``rows`` (of ``record``, with timed.with_floor) is the fastest at 4 bits, its share of the limit, and what holds the others.

    Two builds read the same bytes of one file: what one of them takes longer is not reading.
    """
    four = sorted((row for row in rows if row["dtype"].startswith("Q4")), key=lambda row: row["tpot_s"])
    best, cache = four[0], machine.last_level_cache()
    said = [
        f"{best['title'].split()[0]}, shortest time a token at 4 bits: {best['layer_class']}, {best['dtype']}, {seconds(best['tpot_s'])},"
        f" {best['floor_tpot_s'] / best['tpot_s']:.0%} of the limit"
        f" ({best['read_bytes'] / 1e6:,.0f} MB at {best['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, measured in the same minutes)."
    ]
    for row in four[1:]:
        change = ledger.difference([best], [row], "tpot_s")
        bytes_, time = row["read_bytes"] / best["read_bytes"], row["tpot_s"] / best["tpot_s"]
        if not change.sign:
            found = f"too noisy to tell ({change.why})" if change.sign is None else "no slower than the noise"
        else:
            found = f"{time:.1f} times as long, for {bytes_:.1f} times the bytes: {'computing' if time > 1.1 * bytes_ else 'reading'} makes the difference"
        said.append(f"{row['layer_class']}, {row['dtype']}: {found}.")
    if best["device"] == machine.device_name("cpu") and best["read_bytes"] < cache:
        said.append(f"These weights fit into the processor's cache ({cache / 1e6:,.0f} MB): such a share says little about a model that does not.")
    return "\n".join(said)


def recorded(run="cpu-2-cores-amx"):
    """Return the rows of the recorded ``run``, see timed.recorded; none, and a sentence, where this copy of the course has it not."""
    if (ROOT / "data" / "recorded" / run).is_dir():
        return timed.recorded(run)
    print(f"No run {run} is recorded yet. On a quiet machine with AMX, in ten minutes: python -m tools.native")
    return []


# What follows runs in the process of its own.


def scores(folder):
    """{name: ggml's score, 0 if this processor cannot run it} of all builds in ``folder``."""
    return {path.stem.removeprefix("libggml-cpu-"): ctypes.CDLL(str(path)).ggml_backend_score() for path in Path(folder).glob("libggml-cpu-*.so")}


def work(job):
    """Measure a GGUF file in this process, which timed.apart started; return what that reads, and the kernel. job: the arguments of Model."""
    loaded = []

    def begin():
        model = Model(**job)
        loaded.append(model)
        ids = model.tokenise(PROMPT)
        return lambda new_tokens, arrived: model.answer(ids, new_tokens, arrived), ids, model.detokenise

    found = timed.work("numpy", begin, job["threads"])  # the builds themselves are small
    return found | {"more": found["more"] | {"kernel": loaded[0].kernel}}


def next_tokens(job):
    """See ``log_probabilities``, in this process."""
    prompts = job.pop("prompts")
    model = Model(**job)
    return [model.log_probabilities(ids).tolist() for ids in prompts]


class _Parameters(ctypes.Structure):
    """llama_model_params or llama_context_params, as the library fills them in: we pass its defaults on, so their layout need not be known here."""

    _fields_ = [("content", ctypes.c_ubyte * 1024)]


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [("n_tokens", ctypes.c_int32), *[(name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")]]


_P, _I, _B, _S = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, _S, _P)
SIGNATURES = {  # of llama.h: what comes back, what goes in
    "llama_log_set": (None, _LOG, _P), "llama_print_system_info": (_S,), "llama_backend_init": (None,),
    "llama_model_default_params": (_Parameters,), "llama_context_default_params": (_Parameters,),
    "llama_model_load_from_file": (_P, _S, _Parameters), "llama_init_from_model": (_P, _P, _Parameters),
    "llama_set_n_threads": (None, _P, _I, _I), "llama_get_memory": (_P, _P), "llama_memory_clear": (None, _P, _B),
    "llama_model_get_vocab": (_P, _P), "llama_vocab_n_tokens": (_I, _P), "llama_tokenize": (_I, _P, _S, _I, _P, _I, _B, _B),
    "llama_detokenize": (_I, _P, _P, _I, _P, _I, _B, _B), "llama_batch_get_one": (_Batch, _P, _I), "llama_decode": (_I, _P, _Batch),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), _P, _I),
}  # fmt: skip


class Model:
    """A GGUF file that one of the builds has loaded, once a process. Raises CheckpointError if it cannot.

    folder, build: see ``record``. kernel: what multiplies its matrices, by llama.cpp's own account.
    """

    def __init__(self, folder, build, path, threads=1):
        self.library, said = ctypes.CDLL(str(next(Path(folder).glob("libllama.*.so")))), []
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.log = _LOG(lambda level, text, data: said.append(text.decode(errors="replace")))  # kept as long as the library may call it
        self.library.llama_log_set(self.log, None)
        load = ctypes.CDLL(str(next(Path(folder).glob("libggml.*.so")))).ggml_backend_load
        load.restype, load.argtypes = _P, [_S]
        there = load(str(Path(folder) / f"libggml-cpu-{build}.so").encode())
        self.library.llama_backend_init()
        model = there and self.library.llama_model_load_from_file(str(path).encode(), self.library.llama_model_default_params())
        self.context = model and self.library.llama_init_from_model(model, self.library.llama_context_default_params())
        if not self.context:
            raise CheckpointError(
                f"llama.cpp ({build}) cannot load {path}: {(''.join(said).strip() or 'it gave no reason').splitlines()[-1]}; write or fetch it again."
            )
        self.library.llama_set_n_threads(self.context, threads, threads)
        self.vocabulary = self.library.llama_model_get_vocab(model)
        features = set(re.findall(r"(\w+) = 1", self.library.llama_print_system_info().decode()))
        sets = next((name for feature, name in KERNELS.items() if feature in features), "plain")
        self.kernel = f"{'AMX' if re.search(r'AMX model buffer size', ''.join(said)) else sets} ({build})"

    def tokenise(self, text):
        """Token ids of ``text``, begin-of-sequence first."""
        text = text.encode()
        ids = (_I * (len(text) + 8))()
        return ids[: self.library.llama_tokenize(self.vocabulary, text, len(text), ids, len(ids), True, True)]

    def detokenise(self, ids):
        """The text of ``ids``."""
        text = ctypes.create_string_buffer(64 * len(ids) + 64)
        count = self.library.llama_detokenize(self.vocabulary, (_I * len(ids))(*ids), len(ids), text, len(text), False, True)
        return text.raw[: max(count, 0)].decode(errors="replace")

    def answer(self, ids, new_tokens, arrived=lambda: None):
        """Decode ``new_tokens`` tokens greedily after ``ids``, without an earlier prompt's cache; call ``arrived`` at each; return them."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        new = []
        for _ in range(new_tokens):
            new.append(int(self._logits(new[-1:] or ids).argmax()))
            arrived()
        return new

    def log_probabilities(self, ids):
        """Log-probabilities (numpy, float64) of the token after ``ids``."""
        import numpy as np

        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        logits = self._logits(ids).astype(np.float64)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def _logits(self, ids):
        """The logits (numpy) of the token after ``ids``, which are added to the cache."""
        import numpy as np

        array = (_I * len(ids))(*ids)  # the batch only points at it
        if self.library.llama_decode(self.context, self.library.llama_batch_get_one(array, len(ids))):
            raise PromptError(f"llama.cpp could not decode {len(ids)} more tokens: give a shorter prompt, its context has room for 512.")
        return np.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, -1), (self.library.llama_vocab_n_tokens(self.vocabulary),))
