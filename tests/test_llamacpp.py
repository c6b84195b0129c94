"""GGUF files hold what the checkpoint holds, llama.cpp computes what transformers computes, and other engines are timed like the steps."""

import asyncio
import json
import shutil
import time
from statistics import median

import numpy as np
import pandas as pd
import pytest
import test_hub
import torch
from safetensors.torch import load_file, save_file
from support.book import functions
from support.hub import Hub

from helpers import ledger, machine, plots, quality, timing
from helpers.engines import clients, llamacpp, serving, timed
from helpers.errors import CheckpointError, ImpossibleFigureError, NotEnoughMemoryError, PromptError, TokenCountError, UnknownFormatError
from helpers.models import catalogue, choose
from helpers.models.catalogue import CHECKPOINTS

SMALL, LARGE = CHECKPOINTS / "small", CHECKPOINTS / "large"


contents = functions("11", llamacpp=llamacpp, pd=pd)["contents"]


def weights(path, name):
    """The tensor ``name`` of a GGUF file as numbers, by the package gguf's own decoder."""
    import gguf

    tensor = next(t for t in llamacpp.reader(path).tensors if t.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{type: path} of the small model in every type."""
    folder = tmp_path_factory.mktemp("gguf")
    return {type: llamacpp.write(SMALL, type, folder / f"small-{type}.gguf") for type in llamacpp.TYPES}


@pytest.fixture(scope="module")
def server(files):
    return llamacpp.load(files["BF16"])


@pytest.fixture(scope="module")
def reference(models):
    """(the unquantised model in float32, its tokeniser)."""
    _, model, tokenizer = models[2]
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32), tokenizer


def test_unquantised_tensors_are_the_checkpoints(files):
    stored = load_file(SMALL / "model.safetensors")
    for name, theirs in (("output.weight", "lm_head.weight"), ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight")):
        for type in ("F32", "BF16"):
            assert np.array_equal(weights(files[type], name), stored[theirs].float().numpy()), (name, type)
    total, read = llamacpp.sizes(files["BF16"])
    norms = 9 * 256 * 2  # stored in 32 bits, where the checkpoint has 16
    assert total == catalogue.Shape.from_config(SMALL).weight_bytes("bf16") + norms and total - read == 2 * 1536 * 256


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
def test_blocks_are_those_of_the_packages_own_quantiser(files, type):
    """llama.cpp's C code and the package gguf's Python code are independent of each other."""
    import gguf

    name = "blk.1.ffn_up.weight"
    weight = load_file(SMALL / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].float().numpy()
    theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[type])
    ours = llamacpp.quantise(weight, type)
    restored, expected = (gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type]) for blocks in (ours, theirs))
    assert (ours == theirs).mean() > 0.999 and np.abs(restored - expected).max() <= np.abs(weight).max() / (7 if type == "Q4_0" else 127)
    assert np.array_equal(weights(files[type], name), restored)


def test_more_bits_are_nearer(files):
    name = "blk.1.attn_output.weight"
    weight = load_file(SMALL / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"].float().numpy()
    errors = [np.square(weights(files[type], name) - weight).sum() for type in ("Q4_0", "Q4_K_M", "Q8_0", "BF16")]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[1] > errors[2] > errors[3] == 0


def test_types_follow_llama_cpps_rule(files):
    table = contents(files["Q4_K_M"])
    better = [name for name in table.index[table["type"] == "Q6_K"]]
    assert better == ["output.weight", "blk.2.attn_v.weight", "blk.2.ffn_down.weight", "blk.3.attn_v.weight", "blk.3.ffn_down.weight"]
    assert table.loc["blk.0.attn_q.weight", "bits a weight"] == 4.5 and table.loc["blk.0.ffn_down.weight", "shape"] == (256, 768)
    assert set(contents(files["Q4_0"])["type"]) == {"F32", "Q4_0", "Q6_K"}


def test_rows_that_are_no_multiple_of_256(tmp_path):
    table = contents(llamacpp.write(LARGE, "Q4_K_M", tmp_path / "large.gguf"))
    assert set(table["type"]) == {"F32", "Q4_K", "Q6_K", "Q5_0", "Q8_0"}  # 384 inputs: the types that llama.cpp takes instead
    assert table.loc["blk.0.attn_q.weight", "type"] == "Q5_0" and table.loc["blk.0.ffn_down.weight", "type"] == "Q4_K"  # 1024 inputs
    server = llamacpp.load(tmp_path / "large.gguf")
    assert len(llamacpp.answer(server, llamacpp.tokenise(server, timing.PROMPT), 5)[0]) == 5


def test_tokeniser_is_the_same(server, models):
    tokenizer = models[2][2]
    texts = [timing.PROMPT, *quality.lines()[:30], "Zażółć — 12,5 % “x”\n\n  two  spaces"]
    for text in texts:
        ids = llamacpp.tokenise(server, text)
        assert ids == tokenizer(text).input_ids, text
        assert llamacpp.detokenise(server, ids[1:]) == text


def test_logits_are_those_of_transformers(files, reference):
    """In 32 bits throughout: the same top token for every prompt, log-probabilities equal to 1e-4."""
    import xllamacpp

    model, tokenizer = reference
    kinds = dict.fromkeys(("cache_type_k", "cache_type_v"), xllamacpp.ggml_type.GGML_TYPE_F32)
    server = llamacpp.load(files["F32"], flash_attn_type=xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED, **kinds)
    for number, line in enumerate(quality.lines()[:30]):
        ids = tokenizer(line).input_ids[: 3 + number]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
        ours = llamacpp.log_probabilities(server, ids, len(theirs))
        assert ours.argmax() == theirs.argmax() and np.abs(ours - theirs).max() < 1e-4


def test_greedy_tokens_are_those_of_transformers(server, models):
    _, model, tokenizer = models[2]
    for prompt in (timing.PROMPT, "The river of ", "My neighbour "):
        ids = llamacpp.tokenise(server, prompt)
        new, chunks = llamacpp.answer(server, ids, 12)
        assert new == timing.generate_once(model, tokenizer, prompt, 12)[1]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == llamacpp.detokenise(server, new)


@pytest.fixture(scope="module")
def measured(files):
    """(Timing, what else a row keeps, arguments of its row) of a process of its own."""
    total, read = llamacpp.sizes(files["BF16"])
    about = {"format": "gguf", "weight_bytes": total, "read_bytes": read, "packages": llamacpp.PACKAGES}
    return *timed.apart("helpers.engines.llamacpp.work", {"path": str(files["BF16"]), "threads": 1}, total), about


def test_measured_like_the_steps_and_alone(measured, server, models, tmp_path):
    """In a process that does not hold torch, with the threads that it was given; the same tokens as in this one."""
    result, more, about = measured
    assert more["beside_torch"] is False and result.threads == 1
    assert len(result.warm) == timing.REPEATS and result.prompt == timing.PROMPT
    assert result.token_ids == llamacpp.answer(server, llamacpp.tokenise(server, timing.PROMPT), timing.NEW_TOKENS)[0]
    assert result.text == models[2][2].decode(result.token_ids)
    for call in (result.cold, *result.warm):
        assert 0 < call.ttft < call.wall
    assert 0.5 < more["engine_tpot_s"] / result.median("tpot") < 2  # two clocks
    row = timed.make_row("llama.cpp", "BF16", result, choose.get_step(2), **about, **more)
    assert row["threads"] == 1 and row["bandwidth_bytes_per_s"] > 1e8
    assert about["read_bytes"] <= row["resident_bytes"] <= row["peak_rss_bytes"] < machine.peak_rss()  # this process holds torch
    path = tmp_path / "ledger.jsonl"
    ledger.append(row, path)
    assert ledger.read(path, engine=None) == [row] == ledger.read(path, engine="llama.cpp") and ledger.read(path) == []
    assert row["title"] == "small BF16 (llama.cpp)" and row["versions"]["xllamacpp"] and row["tier"] == "embedded"
    assert ledger.latest([row], "embedded", row["device"]) == {}  # no step of the article


def rows():
    """A row of a step and one of another engine, with times of their own."""
    base = {
        "tier": "embedded",
        "device": "CPU",
        "prompt": timing.PROMPT,
        "new_tokens": 15,
        "wall_s": 1.0,
        "warm_wall_s": 0.5,
        "warm_ttft_s": 0.1,
        "weight_bytes": 10**6,
    }
    step = base | {"title": "small bf16", "tpot_s": 0.004, "decode_tokens_per_s": 250.0, "read_bytes": 8 * 10**6}
    other = base | {"title": "small Q4_0 (llama.cpp)", "engine": "llama.cpp", "tpot_s": 0.001, "decode_tokens_per_s": 1000.0, "read_bytes": 2 * 10**6}
    other["beside_torch"] = False
    return step, other


def test_the_memory_is_looked_at_while_the_engine_holds_its_weights():
    def load():
        weights = b"x" * 2**26

        def answer(count, arrived):
            arrived()
            return [weights[0]] * count

        return answer, [1], str

    assert 2**26 <= timed.work("json", load, 1)["more"]["resident_bytes"] < 2**27


def test_a_row_that_cannot_be_is_refused(measured, tmp_path, monkeypatch):
    """One check for every engine: more than a tenth faster than its bytes can be read, or with fewer bytes in the memory than it reads."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    result, more, about = measured
    fastest = min(call.tpot for call in result.warm)
    limit = about["read_bytes"] / fastest  # bytes a second at which the fastest call takes as long as reading
    asked = []

    def reads(*speeds):
        monkeypatch.setattr(ledger, "bandwidth", lambda device, size: asked.append((device, size)) or speeds[min(len(asked), len(speeds)) - 1])
        asked.clear()
        return timed.record("llama.cpp", "BF16", result, choose.get_step(2), **about, **more)

    middle = median(call.tpot for call in result.warm)
    row = reads(0.91 * limit)  # a pass that is a little faster than the bandwidth shows that the memory gives as much
    assert row["bandwidth_bytes_per_s"] == pytest.approx(max(0.91 * limit, about["read_bytes"] / middle), rel=1e-5) and asked == [("cpu", about["read_bytes"])]
    assert about["read_bytes"] / row["bandwidth_bytes_per_s"] <= row["tpot_s"]
    assert reads(0.5 * limit, 0.8 * limit, limit)["bandwidth_bytes_per_s"] == limit and len(asked) == 3  # other programs were reading
    with pytest.raises(
        ImpossibleFigureError, match=rf"a token is less than the .* that reading its {about['read_bytes']:,} bytes takes.*run it again"
    ) as error:
        reads(0.89 * limit)
    assert len(asked) == 3 and "\n" not in str(error.value)
    more = more | {"resident_bytes": about["read_bytes"] - 1}
    with pytest.raises(ImpossibleFigureError, match=f"reads {about['read_bytes']:,} bytes of weights, and only {more['resident_bytes']:,} are in the memory"):
        reads(limit)
    assert len(ledger.read(engine=None)) == 2  # what was refused was not written


def test_the_row_that_was_withdrawn_would_be_refused():
    """ONNX Runtime kept the equal blocks of a checkpoint once (25 November 2026): above its floor, but its weights were not in the memory."""
    warm = [{"wall": 1.87, "ttft": 0.369}]
    row = {"title": "7B GPTQ int4", "device": "CPU", "new_tokens": 15, "warm": warm, "warm_ttft_s": 0.369, "read_bytes": 3_550_756_864}
    row |= {"bandwidth_bytes_per_s": 48.8e9, "peak_gpu_allocated_bytes": None, "peak_rss_bytes": 1_366_450_176}
    assert "reads 3,550,756,864 bytes of weights, and only 1,366,450,176 are in the memory" in ledger.refusal(row)
    assert ledger.refusal(row | {"peak_rss_bytes": 4 * 10**9}) == "" != ledger.refusal(row | {"peak_rss_bytes": 4 * 10**9, "bandwidth_bytes_per_s": 28e9})


def test_beside_takes_the_newest_of_the_same_model():
    step, other = rows()
    foreign = [step | {"title": "large bf16"}, step | {"tier": "hub"}, step | {"run": "x"}, step | {"new_tokens": 3}]
    foreign += [other | {"beside_torch": True}, {key: value for key, value in other.items() if key != "beside_torch"}]  # as once measured
    assert timed.newest([other, step | {"tpot_s": 9.0}, *foreign, step], choose.get_step(2)) == [step, other]


def test_comparisons_take_all_rows_and_say_what_is_too_noisy(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    step, other = rows()
    found = []

    def kept(*given):
        found[:] = given
        monkeypatch.setattr(ledger, "read", lambda *_, **__: found)

    def times(row, *values):
        return [row | {"tpot_s": value} for value in values]

    like = choose.get_step(2)
    kept(*times(step, 0.0039, 0.0041), *times(other, 0.00098, 0.00102))
    gain, said = timed.compare(other, step, like)
    assert gain == pytest.approx(4) and said == "small Q4_0 (llama.cpp) decodes 4.0 times as many tokens a second as small bf16."
    assert timed.compare(step, other, like)[0] == pytest.approx(0.25)
    kept(*times(step, 0.004), *times(other, 0.003, 0.009))  # 50 % between the middles, 100 % within one side
    assert timed.compare(other, step, like) == (
        None, "small Q4_0 (llama.cpp) against small bf16: too noisy to tell (one takes 1.5 times as long, and repeats differ by 100 %)."
    )  # fmt: skip
    assert "cannot be told: small" in timed.fastest([step, other], like)[1]
    busy = {"others_cores": 1.5, "cores": 2, "threads": 1}
    kept(step, other | busy)
    assert timed.compare(other, step, like)[1].endswith("and small Q4_0 (llama.cpp): other programs used 1.5 of 2 cores).")
    kept(*times(step, 0.004), *times(other, 0.00401))
    assert timed.compare(other, step, like)[0] == 1 and "about as fast" in timed.compare(other, step, like)[1]
    kept(step, other)
    assert timed.fastest([step, other], like) == (other, "The fastest: small Q4_0 (llama.cpp), 1.00 ms a token.")


def test_table_and_chart_of_engines(capsys):
    some = [row | {"floor_tpot_s": floor} for row, floor in zip(rows(), (0.001, None))]
    table = timed.table(some)
    assert table.loc["small bf16", "floor"] == "1.00 ms" and table.loc["small bf16", "TPOT / floor"] == "4.0"
    assert table.loc["small bf16", "GB/s"] == "8.0" and table.loc["small Q4_0 (llama.cpp)", "GB/s"] == "-"  # 8 MB in a millisecond
    assert table.loc["small Q4_0 (llama.cpp)", "floor"] == "-"
    image = timed.chart(some)
    assert plots.TIERS["embedded"] in image.metadata["alt"] and "small bf16 4.00 ms (floor 1.00 ms); small Q4_0" in image.metadata["alt"]


def test_the_floor_is_of_this_machine():
    here, elsewhere = timed.with_floor([rows()[0] | {"device": machine.device_name("cpu")}, rows()[1]])
    assert 1e-6 < here["floor_tpot_s"] < 1 and elsewhere["floor_tpot_s"] is None


def test_an_engine_that_stops_early_is_refused():
    with pytest.raises(TokenCountError, match="2 new tokens instead of 3"):
        timed.answer_once(lambda n, arrived: [1, 2], 3)


def test_an_answer_whose_tokens_lay_ready_is_asked_for_again():
    """Beside other programs llama.cpp's thread may be done before ours gets a processor: all tokens then come at once, too fast to be true."""
    lags = [0.2, 0.2, 0.0]  # seconds until ours takes the first token, of 0.2 that decoding takes

    def answer(count, arrived):
        lag = lags.pop(0)
        time.sleep(lag)
        arrived()
        time.sleep(0.2 - lag)
        return [1] * count, 0.2

    call, new = timed.answer_once(answer, 3)
    assert not lags and call.decode > 0.19 and new == [1, 1, 1]
    lags[:] = [0.2] * timed.TRIES  # it gives up after these; what is too fast is refused later
    assert timed.answer_once(answer, 3)[0].decode < 0.1 and not lags


def test_requests_that_llama_cpp_refuses(server):
    with pytest.raises(PromptError, match="exceeds the available context size") as error:
        llamacpp.answer(server, [5] * 400, 3)
    assert "\n" not in str(error.value)
    with pytest.raises(PromptError, match="invalid tokens"):
        llamacpp.answer(server, [1, 99999], 3)


OWN = {  # settings of sampling that the maker of a file may write into it; each changes a text that does not say otherwise
    "penalty": {"penalty_repeat": 1.8, "penalty_last_n": 64}, "order": {"sequence": "top_k"}, "other order": {"sequence": "xtc", "xtc_probability": 1.0, "xtc_threshold": 0.001},
}  # fmt: skip


@pytest.fixture(scope="module", params=OWN)
def own_settings(request, tmp_path_factory):
    """A file of the small model that brings settings of sampling."""
    path, settings, real = tmp_path_factory.mktemp("own") / "small.gguf", OWN[request.param], llamacpp._describe

    def describe(writer, *about):
        real(writer, *about)
        for name, value in settings.items():
            getattr(writer, f"add_sampling_{name}")(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llamacpp, "_describe", describe)
        return llamacpp.write(SMALL, "BF16", path)


def test_a_files_own_settings_of_sampling_change_no_text(own_settings, server):
    """In this process and by the server of notebook 14; without the neutral values they would."""
    prompt, other = "The river of ", llamacpp.load(own_settings, 1)
    ids = llamacpp.tokenise(server, prompt)
    wanted = llamacpp.answer(server, ids, 90)[0]
    assert llamacpp.answer(other, ids, 90)[0] == wanted
    bare, received = {"prompt": ids, "max_tokens": 90, "temperature": 0, "ignore_eos": True, "verbose": True, "return_tokens": True, "stream": True}, []
    other.handle_completions(bare, received.append)
    assert [token for chunk in received for token in chunk["__verbose"]["tokens"]] != wanted
    with serving.llamacpp(own_settings, 1, readers=1) as served:
        run = asyncio.run(clients.measure(served.endpoint, [prompt], 1, 90))
    assert run.answers[0].text == llamacpp.detokenise(server, wanted)


def test_files_that_cannot_be_loaded(files, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(files["Q4_0"].read_bytes()[:100_000])
    (tmp_path / "text.gguf").write_text("no file of this kind")
    for name in ("cut.gguf", "text.gguf"):
        with pytest.raises(CheckpointError, match=f"llama.cpp cannot load .*{name}"):
            llamacpp.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="no complete GGUF file"):
        llamacpp.sizes(tmp_path / "text.gguf")
    with pytest.raises(CheckpointError, match="There is no file"):
        llamacpp.load(tmp_path / "none.gguf")


def test_threads_are_chosen_for_the_files_own_sizes(files, tmp_path, monkeypatch):
    """Not those of the model that PyTorch has loaded last."""
    asked = []
    monkeypatch.setattr(choose, "threads", lambda shape: asked.append(shape) or 1)
    assert llamacpp._threads(files["Q4_0"]) == 1
    config = json.loads((SMALL / "config.json").read_text(encoding="utf-8"))
    sizes = [config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")]
    assert [[shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers] for shape in asked] == [sizes]
    (tmp_path / "text.gguf").write_text("no file of this kind")
    assert llamacpp._threads(tmp_path / "text.gguf") == machine.cores()


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_a_share_of_the_machine_writes_the_same_blocks(cores, monkeypatch):
    """The cores are those of the container or job; each takes rows of its own."""
    matrix = np.random.default_rng(0).standard_normal((48, 256), dtype=np.float32)
    whole = llamacpp.quantise(matrix, "Q4_0")
    rows = np.concatenate([llamacpp.quantise(row[None], "Q4_0") for row in matrix])
    monkeypatch.setattr(machine, "cores", lambda: cores)
    assert (llamacpp.quantise(matrix, "Q4_0") == whole).all() and (rows == whole).all()


def test_checkpoints_that_cannot_be_converted(tmp_path):
    with pytest.raises(UnknownFormatError, match="no GGUF type 'Q3'.*Q4_0"):
        llamacpp.write(SMALL, "Q3", tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="holds gptq weights"):
        llamacpp.write(CHECKPOINTS / "small-gptq", "Q8_0", tmp_path / "x.gguf")
    with pytest.raises(UnknownFormatError, match="Rows of 100 numbers"):
        llamacpp.quantise(np.zeros((2, 100)), "Q4_0")
    shutil.copytree(SMALL, tmp_path / "other")
    tokenizer = json.loads((SMALL / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}}), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="tokeniser that this converter does not know.*take a ready GGUF file"):
        llamacpp.write(tmp_path / "other", "Q8_0", tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*gguf*"))


def test_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "disk", lambda folder: 1e6)
    with pytest.raises(NotEnoughMemoryError, match="takes 4.5 MB and 1.0 MB of the disk are free: make room, or set RESULTS_DIR"):
        llamacpp.write(SMALL, "Q8_0", tmp_path / "x.gguf")


def test_an_interrupted_write_leaves_nothing_and_a_finished_one_is_used_again(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llamacpp, "_blocks", interrupt)
        llamacpp.write(SMALL, "Q8_0", path)
    assert not list(tmp_path.iterdir())
    llamacpp.write(SMALL, "Q8_0", path)
    before = path.stat().st_mtime_ns
    assert llamacpp.write(SMALL, "Q8_0", path) == path and path.stat().st_mtime_ns == before


def test_shards_and_a_vocabulary_with_unused_places(tmp_path):
    """A checkpoint as synthetic.write leaves it: several shards, more rows in the table than the tokeniser has tokens."""
    folder = tmp_path / "sharded"
    shutil.copytree(SMALL, folder)
    tensors = load_file(SMALL / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:64]])
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for part, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((SMALL / "config.json").read_text()) | {"vocab_size": 1600}
    (folder / "config.json").write_text(json.dumps(config))
    server = llamacpp.load(llamacpp.write(folder, "Q8_0", tmp_path / "x.gguf"))
    new, _ = llamacpp.answer(server, llamacpp.tokenise(server, timing.PROMPT), 8)
    assert len(new) == 8


READY = """
import json
from helpers.engines import llamacpp
from helpers.models import catalogue, choose
from helpers.errors import CourseError
step = choose.get_step(2, tier="hub")
path = llamacpp.file(step, "Q4_0")
server = llamacpp.load(path)
found = {"name": path.name, "tokens": len(llamacpp.answer(server, llamacpp.tokenise(server, "A "), 4)[0])}
try:
    llamacpp.file(step, "Q8_0")
except CourseError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


ANY = """
import json
from helpers.engines import llamacpp
from helpers.errors import CourseError
path = llamacpp.ready("maker/Any-GGUF", "Q4_0")
found = {"name": path.name, "tokens": len(llamacpp.answer(llamacpp.load(path), [1, 40], 4)[0])}
for repository, type in (("maker/Any-GGUF", "Q8_0"), ("maker/Any", "Q4_0")):
    try:
        llamacpp.ready(repository, type)
    except CourseError as error:
        found[type] = str(error)
print(json.dumps(found))
"""


def test_a_ready_file_of_any_repository(files, tmp_path):
    ready = tmp_path / "ready"
    ready.mkdir()
    for name in ("any-q4_0.gguf", "any-q4_0_4_4.gguf", "README.md"):
        shutil.copy(files["Q4_0"], ready / name)
    with Hub({"maker/Any-GGUF": ready, "maker/Any": SMALL}) as hub:
        found = test_hub.run(ANY, hub.url, tmp_path / "home", HF_HUB_DOWNLOAD_TIMEOUT="10")
    assert found["name"] == "any-q4_0.gguf" and found["tokens"] == 4
    assert "has 0 files of type Q8_0: its GGUF files are any-q4_0.gguf, any-q4_0_4_4.gguf" in found["Q8_0"]
    assert "maker/Any has 0 files of type Q4_0: it has no GGUF file; those that have usually end in -GGUF" in found["Q4_0"]


def test_a_model_that_is_no_llama_is_not_written_as_one(tmp_path):
    from support import qwen

    from helpers.models.catalogue import Shape

    folder = qwen.write(tmp_path / "mini", Shape(256, 512, 1, 1536, kv_size=128, tied=True, biases=512))
    with pytest.raises(
        CheckpointError, match="holds a model of type qwen2, and this converter writes Llamas: take a ready GGUF file .*convert_hf_to_gguf.py FOLDER"
    ):
        llamacpp.write(folder, "BF16", tmp_path / "x.gguf")


def test_a_ready_file_from_the_hub(files, tmp_path):
    """The real client, a Hub on the loopback interface: fetched once, a missing file is a sentence."""
    ready = tmp_path / "ready"
    ready.mkdir()
    shutil.copy(files["Q4_0"], ready / "llama-2-7b.Q4_0.gguf")
    with Hub({"meta-llama/Llama-2-7b-hf": SMALL, "TheBloke/Llama-2-7B-GGUF": ready}) as hub:
        asked = []
        for _ in range(2):
            found = test_hub.run(READY, hub.url, tmp_path / "home", HF_TOKEN=hub.token, HF_HUB_DOWNLOAD_TIMEOUT="10")
            asked.append(len(hub.fetched("llama-2-7b.Q4_0.gguf")))
        assert found["name"] == "llama-2-7b.Q4_0.gguf" and found["tokens"] == 4
        assert "TheBloke/Llama-2-7B-GGUF has no file llama-2-7b.Q8_0.gguf" in found["error"]
        assert asked[0] >= 1 and asked[1] == asked[0], hub.asked
