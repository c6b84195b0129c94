"""llama.cpp built for this processor computes what the wheel computes; where it cannot be had, a sentence says why and nothing is left behind."""

import io
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from helpers import ledger, machine, quality, timing
from helpers.engines import llamacpp, native, timed
from helpers.errors import CheckpointError
from helpers.models import choose
from helpers.models.catalogue import CHECKPOINTS

FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").is_file() else set()
ARCHIVE = "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"


@pytest.fixture(scope="module")
def folder():
    """The real libraries: fetched once into the project, as notebook 11 does."""
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        found = native.fetch()
    if not found:
        pytest.skip(" ".join(said))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{type: path} of the small model."""
    place = tmp_path_factory.mktemp("gguf")
    return {type: llamacpp.write(CHECKPOINTS / "small", type, place / f"small-{type}.gguf") for type in ("F32", "Q8_0", "Q4_0", "Q4_K_M")}


@pytest.fixture(scope="module")
def prompts(models):
    return [ids[: 4 + n] for n, ids in enumerate(models[2][2](quality.lines()[:12]).input_ids)]


def test_the_builds_are_those_that_this_processor_can_run(folder):
    """ggml asks the processor; the system tells the same."""
    found = native.builds(folder)
    assert list(found.values()) == sorted(found.values(), reverse=True) and min(found.values()) > 0
    if "linux-x64" in folder.name:
        assert ("haswell" in found) == ({"avx2", "fma", "bmi2", "f16c"} <= FLAGS)
        assert ("sapphirerapids" in found) == ({"amx_int8", "amx_tile", "avx512_bf16", "avx512_vnni", "avx512vbmi"} <= FLAGS)
        assert next(iter(found)) == "sapphirerapids" or "amx_int8" not in FLAGS


def test_builds_that_do_not_load_are_a_sentence(tmp_path, capsys):
    (tmp_path / "libggml-cpu-haswell.so").write_bytes(b"no library")
    assert native.builds(tmp_path) == {} and "The wheel goes on." in capsys.readouterr().out


def test_in_32_bits_every_build_computes_what_the_wheel_computes(folder, files, prompts):
    server = llamacpp.load(files["F32"], 1)
    theirs = np.array([llamacpp.log_probabilities(server, ids, 1536) for ids in prompts])
    for build in [*native.builds(folder)][:1] + ["haswell"] * ("haswell" in native.builds(folder)):
        ours = native.log_probabilities(folder, build, files["F32"], prompts)
        assert ours.shape == (12, 1536) and np.abs(np.exp(ours).sum(1) - 1).max() < 1e-9
        assert np.array_equal(ours.argmax(1), theirs.argmax(1)) and np.abs(ours - theirs).max() < 0.02, build


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_quantised_the_best_build_computes_the_same_model(folder, files, prompts, type):
    """Its rounding of the inputs may differ from the wheel's; the distance is small beside that of the format itself."""
    server = llamacpp.load(files[type], 1)
    whole = llamacpp.load(files["F32"], 1)
    theirs = np.array([llamacpp.log_probabilities(server, ids, 1536) for ids in prompts])
    exact = np.array([llamacpp.log_probabilities(whole, ids, 1536) for ids in prompts])
    ours = native.log_probabilities(folder, next(iter(native.builds(folder))), files[type], prompts)

    def kl(other):
        return float((np.exp(exact) * (exact - other)).sum(1).mean())

    assert 0 < kl(ours) < 1.5 * kl(theirs) + 1e-3


def test_a_row_names_the_build_that_ran(folder, files, models, tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    step, best = models[2][0], next(iter(native.builds(folder)))
    rows = [native.record(folder, build, files["Q4_0"], step, "Q4_0", 1) for build in (best, native.WHEEL)]
    assert ledger.read(tmp_path / "ledger.jsonl", engine=None) == rows == ledger.read(tmp_path / "ledger.jsonl", engine="llama.cpp")
    assert rows[0]["layer_class"].endswith(f" ({best})") and rows[0]["versions"] == {"node-llama-cpp": native.VERSION}
    assert rows[0]["layer_class"].startswith("AMX") == ("amx_int8" in FLAGS)
    assert rows[1]["layer_class"].startswith("wheel (xllamacpp 20") and rows[1]["title"] == "small Q4_0, wheel (llama.cpp)"
    total, read = llamacpp.sizes(files["Q4_0"])
    for row in rows:
        assert row["threads"] == 1 and (row["weight_bytes"], row["read_bytes"]) == (total, read)
        assert row["prompt_tokens"] == 8 and row["completion"] and 0 < row["tpot_s"] < row["wall_s"] and len(row["warm"]) == timing.REPEATS
    assert set(timed.newest(rows, choose.get_step(2))[0]) >= set(rows[0])  # both stand in notebook 11's table
    assert len(timed.newest(rows, choose.get_step(2))) == 2


def test_greedy_tokens_are_those_of_the_wheel(folder, files):
    """In 32 bits, where no build rounds the inputs; in a process without PyTorch."""
    best = next(iter(native.builds(folder)))
    job = {"folder": str(folder), "build": best, "path": str(files["F32"]), "threads": 1}
    (ours, more), (theirs, _) = (timed.apart(f"helpers.engines.{room}.work", job, 1) for room in ("native", "llamacpp"))
    assert ours.token_ids == theirs.token_ids and ours.text == theirs.text and ours.prompt_tokens == theirs.prompt_tokens
    assert more["beside_torch"] is False and more["kernel"].endswith(f"({best})") and more["resident_bytes"] > 10**7


def test_a_damaged_file_is_a_sentence(folder, files, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(files["Q4_0"].read_bytes()[:100_000])
    best = next(iter(native.builds(folder)))
    with pytest.raises(CheckpointError, match=rf"llama.cpp \({best}\) cannot load .*cut.gguf: \w+") as error:
        native.log_probabilities(folder, best, tmp_path / "cut.gguf", [[1]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 fma\n", []),
        ("flags\t\t: avx2 avx512f avx512_vnni\nmore : x\nflags : amx_int8\n", ["AVX-512", "AVX-512 VNNI"]),
        ("flags\t\t: avx512f avx_vnni amx_int8 amx_tile\n", ["AVX-512", "AVX-VNNI", "AMX"]),
        ("Features\t: fp asimd asimddp i8mm\n", ["dot products", "I8MM"]),
        ("", []),
    ],
)
def test_what_the_wheel_leaves_unused(tmp_path, told, found):
    (tmp_path / "cpuinfo").write_text(told)
    assert native.unused(tmp_path / "cpuinfo") == found
    assert native.unused(tmp_path / "none") == []


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry on this machine that answers ``content``; ``asked``: the paths."""

    class Handler(BaseHTTPRequestHandler):
        asked, content = [], b""

        def do_GET(self):
            self.asked.append(self.path)
            self.send_response(200 if self.content else 404)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(native, "unused", lambda: ["AMX"])
    monkeypatch.setattr(native.platform, "system", lambda: "Linux")
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    yield Handler
    server.shutdown()
    server.server_close()


def archive(**members):
    """A gzipped archive with ``members`` ({name: content})."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as package:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def test_what_cannot_be_had_leaves_a_sentence_and_no_file(registry, tmp_path, capsys, monkeypatch):
    for content, reason in ((b"", "404"), (b"<html>a page of a proxy</html>", "other content"), (archive(**{"package/libggml.so": b"x"}), "other content")):
        registry.content = content
        assert native.fetch() is None
        said = capsys.readouterr().out
        assert reason in said and "the wheel goes on" in said and "11 MB" in said
    assert registry.asked == [ARCHIVE] * 3 and not list((tmp_path / "new").iterdir())
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    assert native.fetch() is None and "the wheel goes on" in capsys.readouterr().out
    monkeypatch.setattr(machine, "disk", lambda folder: 1e6)
    assert native.fetch() is None and "set LLAMA_CPP_DIR to another disk" in capsys.readouterr().out


def test_nothing_is_asked_where_the_wheel_is_all_there_is(registry, capsys, monkeypatch):
    monkeypatch.setattr(native.platform, "system", lambda: "Darwin")
    assert native.fetch() is None
    monkeypatch.setattr(native.platform, "system", lambda: "Linux")
    monkeypatch.setattr(native, "unused", list)
    assert native.fetch() is None
    assert capsys.readouterr().out.count("no faster ready-made llama.cpp") == 2 and registry.asked == []


def test_only_the_libraries_are_unpacked(tmp_path):
    members = {
        f"package/bins/linux-x64/{name}": name.encode() for name in ("libggml.v0.5.0.so", "libggml-cpu-x64.so", "libllama.v0.5.0.so", "libllama-common.so")
    }
    members |= {"package/bins/linux-x64/llama-addon.node": b"", "package/LICENSE": b"MIT", "../../libggml-evil.so": b"e", "package/dist/index.js": b""}
    native._unpack(archive(**members), tmp_path / "made")
    found = {path.name for path in (tmp_path / "made").iterdir()}
    assert found == {"libggml.v0.5.0.so", "libggml-cpu-x64.so", "libllama.v0.5.0.so", "LICENSE", "libggml-evil.so"}  # a name, never a path
    assert {path.name for path in tmp_path.iterdir()} == {"made"}


def row(kernel, dtype, tpot, read, **other):
    warm = [{"user": 0.1, "sys": 0.0, "wall": 15 * tpot, "ttft": tpot, "new_tokens": 15, "others": 0.0}] * 5
    base = {
        "title": f"2.7B {dtype}, {kernel} (llama.cpp)",
        "layer_class": kernel,
        "dtype": dtype,
        "tpot_s": tpot,
        "read_bytes": read,
        "warm": warm,
        "device": "CPU (x)",
    }
    return base | {"bandwidth_bytes_per_s": 30e9, "floor_tpot_s": read / 30e9, "cores": 2, "threads": 2, "others_cores": 0.0} | other


def test_the_verdict_follows_from_the_rows():
    """1.5 GB at 30 GB/s take 50 ms: 62.5 ms are 80 % of the limit."""
    rows = [
        row("AMX (a)", "Q8_0", 0.1, 27e8),
        row("AMX (a)", "Q4_0", 0.0625, 15e8),
        row("AVX2 (b)", "Q4_0", 0.1875, 15e8),
        row("wheel (c)", "Q4_K_M", 0.0825, 20e8),
    ]
    first, *others = native.verdict(rows).splitlines()
    assert first.startswith("2.7B, shortest time a token at 4 bits: AMX (a), Q4_0, 62.5 ms, 80% of the limit (1,500 MB at 30.0 GB/s")
    assert others == [
        "wheel (c), Q4_K_M: 1.3 times as long, for 1.3 times the bytes: reading makes the difference.",
        "AVX2 (b), Q4_0: 3.0 times as long, for 1.0 times the bytes: computing makes the difference.",
    ]
    rows[2] |= {"others_cores": 1.5}
    assert "AVX2 (b), Q4_0: too noisy to tell (2.7B Q4_0, AVX2 (b) (llama.cpp): other programs used 1.5 of 2 cores)." in native.verdict(rows)
    rows[3] |= {"tpot_s": 0.0635}
    assert "wheel (c), Q4_K_M: no slower than the noise." in native.verdict(rows)


def test_a_model_in_the_cache_says_so(monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache", lambda: 3 * 10**7)
    here = [row("AMX (a)", "Q4_0", 0.001, size, device=machine.device_name("cpu")) for size in (2e6, 4e7)]
    assert "fit into the processor's cache (30 MB)" in native.verdict(here[:1]) and "cache" not in native.verdict(here[1:])
