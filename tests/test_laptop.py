"""The tier of small real models: its sizes, what it says, the real Hub client with checkpoints of exactly these shapes, and an overflow of a GPU's kernel."""

import re
import shutil
import struct
from dataclasses import asdict

import nbformat
import pytest
import torch
from safetensors import safe_open
from support import qwen
from support.hub import COMMIT, Hub
from support.mocked_cuda import PretendCuda, mock
from test_hub import run

from helpers import ROOT, kernels, ledger, loading, plots, quality, timing
from helpers.article import compare
from helpers.engines import serving
from helpers.errors import DeviceError, PromptError
from helpers.loading import library
from helpers.models import catalogue, choose, files

SMALL, GPTQ, LARGE = (catalogue.STEPS[number].laptop for number in (2, 3, 4))
STEPS = """
import json
from helpers import ledger, loading, timing
from helpers.models import choose
from helpers.errors import CourseError

found = {}
for number in (1, 2, 3, 4):
    step = choose.get_step(number)
    model, tokenizer = loading.load(step)
    measured = timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1)
    found[number] = ledger.make_row(step, measured, model, speed=1e15)  # nothing is said of speed here: the memory need not be measured
    del model
    loading.release()
print(json.dumps(found))
"""


def header(path):
    """Length of a safetensors file's header, with the eight bytes that say it."""
    with open(path, "rb") as file:
        return 8 + struct.unpack("<Q", file.read(8))[0]


def test_sizes_are_the_published_ones():
    """Parameters: https://huggingface.co/api/models/Qwen/Qwen2.5-0.5B and -1.5B. Files: 459 MB and 1.15 GB on the pages of the GPTQ repositories."""
    small, large = catalogue.QWEN_2_5["7B"], catalogue.QWEN_2_5["13B"]
    assert (small.parameters, large.parameters) == (494_032_768, 1_543_714_304)
    assert small.weight_bytes("bf16") == 988_065_536
    assert (round(small.weight_bytes("gptq") / 1e6), round(large.weight_bytes("gptq") / 1e9, 2)) == (459, 1.15)
    assert f"{choose.download('laptop') / 1e9:.1f}" == "2.6" and choose.download("hub") == 13_476_831_232 + 3_893_862_400 + 7_255_009_280


def test_the_documentation_has_the_catalogues_names_and_sizes():
    lines = re.findall(r"\| [\d, ]+ \| (Qwen/\S+) \| ([\d,]+) \|", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    shapes = catalogue.QWEN_2_5
    assert lines == [
        (SMALL, f"{shapes['7B'].weight_bytes('bf16'):,}"),
        (GPTQ, f"{shapes['7B'].weight_bytes('gptq'):,}"),
        (LARGE, f"{shapes['13B'].weight_bytes('gptq'):,}"),
    ]


def test_titles_never_say_llama_2():
    titles = [catalogue.replace(step, tier="laptop").title for step in catalogue.STEPS.values()]
    assert titles == ["Qwen2.5-0.5B 8-bit", "Qwen2.5-0.5B bf16", "Qwen2.5-0.5B GPTQ", "Qwen2.5-1.5B GPTQ"]
    assert plots.label(3, {2: {"tier": "laptop"}}) == "3: Qwen2.5-0.5B GPTQ"
    assert "not Llama-2" in plots.TIERS["laptop"] and set(plots.TIERS) == {*choose.TIERS, "own"}


def test_what_fits_on_a_laptop():
    found = {"gpus": [], "free": 4e9, "disk": 9e9, "online": "", "speed": 1e7}
    table = choose.step_table(found, tier="laptop")
    assert list(table.index) == ["1: Qwen2.5-0.5B 8-bit", "2: Qwen2.5-0.5B bf16", "3: Qwen2.5-0.5B GPTQ", "4: Qwen2.5-1.5B GPTQ"]
    assert table.loc["2: Qwen2.5-0.5B bf16", "weights"] == "988,065,536" and set(table["verdict"]) == {choose.FITS}
    assert table.loc["1: Qwen2.5-0.5B 8-bit", "download, time, disk"] == "1.0 GB, about 2 min, ✓ fits" and set(table["what to do"]) == {"run it: TIER=laptop"}
    assert set(choose.step_table(found | {"free": 1e9}, tier="laptop")["what to do"]) == {"embedded models"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """{repository: folder}: the first in its full size, the GPTQ ones with two blocks and all of their vocabulary."""
    place = tmp_path_factory.mktemp("qwen")
    yield {
        SMALL: qwen.write(place / "small", "7B"),
        GPTQ: qwen.write(place / "gptq", "7B", "gptq", layers=2),
        LARGE: qwen.write(place / "large", "13B", "gptq", layers=1),
    }
    shutil.rmtree(place)  # 1.8 GB


def test_the_four_steps_through_the_real_client(served, tmp_path):
    file = served[SMALL] / "model.safetensors"
    assert file.stat().st_size == 988_097_824 == 988_065_536 + header(file)  # to the byte the published file's length
    with Hub(served) as hub:
        rows = run(STEPS, hub.url, tmp_path / "home", TIER="laptop", RESULTS_DIR=str(tmp_path), THREADS="2", HF_HUB_DOWNLOAD_TIMEOUT="60")
        shutil.rmtree(tmp_path / "home")
        assert not hub.tokens and len(hub.fetched("model.safetensors")) == 3  # steps 1 and 2 share one
    assert [row["title"] for row in rows.values()] == ["Qwen2.5-0.5B 8-bit", "Qwen2.5-0.5B bf16", "Qwen2.5-0.5B GPTQ", "Qwen2.5-1.5B GPTQ"]
    assert {(row["tier"], row["revision"], row["prompt_form"], row["note"]) for row in rows.values()} == {("laptop", COMMIT, "plain", "")}
    assert [row["checkpoint"] for row in rows.values()] == [SMALL, SMALL, GPTQ, LARGE] and all("answer" in row for row in rows.values())
    assert [row["layer_class"] for row in rows.values()][:2] == ["Linear8bitLt", "Linear"] and "Linear" != rows["3"]["layer_class"] == rows["4"]["layer_class"]
    for row in rows.values():
        assert row["weight_bytes"] == pytest.approx(row["weight_bytes_loaded"], rel=0.002) and ledger.problem(row) is None
    assert rows["2"]["weight_bytes"] == 988_065_536 and rows["2"]["read_bytes"] == 988_065_536  # a tied head is read


def test_notebook_03_finds_its_weights_in_a_layer_with_a_bias(served, tmp_path):
    """Its self-check holds for Qwen2.5's layers too: what the library adds to the product is no weight, and is far larger than the rounding."""
    cells = [cell.source for cell in nbformat.read(ROOT / "notebooks" / "03_gptq_7b.ipynb", as_version=4).cells if cell.cell_type == "code"]
    last = next(n for n, source in enumerate(cells) if source.startswith("allowed"))
    cells = [source for source in cells[1 : last + 1] if not re.search(r"(timing|plots|ledger)\.", source)]  # nothing is timed or drawn
    told = 'import json\nprint(json.dumps([difference, allowed, stored["scales"].shape[1]]))'
    with Hub(served) as hub:
        program = "\n".join([*cells, told])
        difference, allowed, outputs = run(
            program, hub.url, tmp_path / "home", TIER="laptop", RESULTS_DIR=str(tmp_path), THREADS="2", HF_HUB_DOWNLOAD_TIMEOUT="60"
        )
    with safe_open(served[GPTQ] / "model.safetensors", "pt") as file:
        bias = file.get_tensor("model.layers.0.self_attn.q_proj.bias").float()
    assert len(bias) == outputs and difference <= allowed < bias.abs().max() / 10


# Chat


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """The embedded small model, made a chat model by its tokeniser."""
    folder = tmp_path_factory.mktemp("chat") / "small"
    shutil.copytree(catalogue.CHECKPOINTS / "small", folder)
    (folder / "special_tokens_map.json").unlink()
    qwen.tokeniser(folder)
    step = choose.get_step(2, checkpoint=str(folder))
    return step, *loading.load(step, device="cpu")


def test_a_chat_model_is_timed_plainly_and_asked_through_its_template(chat):
    step, model, tokenizer = chat
    result = timing.measure(model, tokenizer, warmups=0, repeats=1)
    plain = tokenizer(timing.PROMPT, return_tensors="pt").input_ids
    asked = tokenizer(f"<|im_start|>user\n{timing.PROMPT}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    texts = [tokenizer.decode(model.generate(ids, max_new_tokens=15, min_new_tokens=15, do_sample=False)[0, ids.shape[1] :]) for ids in (plain, asked)]
    assert [result.text, result.answer] == texts and texts[0] != texts[1] and result.prompt_tokens == plain.shape[1]
    row = ledger.make_row(step, result, model)
    assert (row["prompt"], row["prompt_form"], row["completion"], row["answer"]) == (timing.PROMPT, "plain", *texts)
    assert compare.completions_table({2: row}).loc["step 2", "yours, through the chat template"] == repr(texts[1])


def test_a_base_model_has_no_answer(models):
    step, model, tokenizer = models[2]
    result = timing.measure(model, tokenizer, new_tokens=2, warmups=0, repeats=1)
    row = ledger.make_row(step, result, model)
    assert result.answer is None and "answer" not in row and row["prompt_form"] == "plain"
    assert list(compare.completions_table({2: row}).columns) == ["the article", "yours"]
    assert compare.completions_table({2: row, 3: row | {"answer": "x"}})["yours, through the chat template"].tolist() == [
        "not measured", "no chat model", "'x'", "not measured",
    ]  # fmt: skip


def test_a_template_that_fails_is_one_sentence(chat):
    tokenizer = chat[2]
    before, tokenizer.chat_template = tokenizer.chat_template, "{{ raise_exception('no users here') }}"
    try:
        with pytest.raises(PromptError, match="chat template of this tokeniser fails: .*no users here.*What to do: correct chat_template"):
            library.asked(tokenizer, "hello")
    finally:
        tokenizer.chat_template = before


def test_quality_without_a_begin_of_sequence_token(chat):
    """The end-of-text token stands in front, and the protocol says so; of a large vocabulary only some lines are taken."""
    _, model, tokenizer = chat
    encoded, protocol = quality.held_out(model, tokenizer)
    assert {row[0] for row in encoded} == {tokenizer.eos_token_id} and len(encoded) == len(quality.lines())
    assert "</s> in front and nothing behind" in protocol and "<s>" not in protocol.replace("</s>", "") and protocol.startswith("each line of")
    some, told = quality.held_out(_Wide(), tokenizer)
    tokens = sum(len(row) - 1 for row in encoded)
    assert (
        4 * 151936 * sum(len(row) - 1 for row in some) <= 1.02 * quality.ROOM < 4 * 151936 * tokens
        and some == encoded[::4]
        and told.startswith("one line in 4 of")
    )


class _Wide:
    """A model with Qwen's output head."""

    def get_output_embeddings(self):
        return torch.nn.Linear(1, 151936, bias=False)


# A kernel whose sums have 16 bits


def halves(folder, name):
    """A forward for the GPTQ layer ``name`` of ``folder`` as ExLlamaV2's: eight products of an unscaled integer and an input are added in float16 (dot22_8_f)."""
    packed, scales, group = (files.read_tensor(folder, f"{name}.{part}") for part in ("qweight", "scales", "g_idx"))
    integers = (packed[:, None, :] >> torch.arange(0, 32, 4)[:, None] & 15).flatten(0, 1) - 8  # symmetric
    scales = scales.float()[group.long()[::8]]  # (inputs / 8, outputs)

    def forward(x):
        products = (x.half()[..., :, None] * integers.half()).unflatten(-2, (-1, 8))  # (…, inputs / 8, 8, outputs)
        sums = products[..., 0, :]
        for n in range(1, 8):
            sums = sums + products[..., n, :]  # of halves: each is rounded to one, and above 65,504 it is infinite
        return (sums.float() * scales).sum(-2).to(x.dtype)

    return forward


@pytest.fixture
def t4(monkeypatch, tmp_path):
    """A step with a Qwen2 in GPTQ whose inputs are large, on a T4 that has every kernel; each load is noted with its kernel."""
    from safetensors.torch import load_file, save_file

    folder = qwen.write(tmp_path / "qwen", "7B", "gptq", layers=1)
    tensors, block = load_file(folder / "model.safetensors"), "model.layers.0."
    tensors[f"{block}post_attention_layernorm.weight"][:64] = 3000.0  # 8 products of up to 8 x 9,000 are beyond float16; scaled, they are not
    tensors[f"{block}mlp.up_proj.scales"] *= 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    step, asked = choose.get_step(3, checkpoint=str(folder)), []
    model, tokenizer = loading.load(step, device="cpu")
    layer = model.model.layers[0].mlp.gate_proj
    exact = layer.forward

    def load(step, arguments, before, plan):
        asked.append(plan.kernel)
        layer.forward = halves(folder, f"{block}mlp.gate_proj") if plan.kernel == "exllama_v2" else exact
        kernels.remember(model, plan)
        return model, tokenizer

    mock(monkeypatch)
    monkeypatch.setattr(kernels, "_cannot_be_compiled", lambda kernel: "")
    monkeypatch.setattr(kernels, "make_ready", lambda kernel: "")
    monkeypatch.setattr(loading, "_load", load)
    return step, asked


def test_a_kernel_that_overflows_gives_way(t4, capsys):
    step, asked = t4
    with PretendCuda():
        model, tokenizer = loading.load(step)
        said = capsys.readouterr().out
        assert asked == ["exllama_v2", "triton"]
        assert (
            "ExLlamaV2 does not do for this model, because its sums have 16 bits, and those of model.layers.0.mlp.gate_proj overflow: it is loaded again"
            in said
        )
        assert "Triton (not ExLlamaV2, because its sums have 16 bits" in kernels.used(model)
        assert library.not_finite(model, library.encode(tokenizer, timing.PROMPT, return_tensors="pt")) is None
        for action in (loading.load, lambda step: serving.attempt({"step": asdict(step), "device": None})):
            with pytest.raises(DeviceError, match="No kernel for this GPTQ checkpoint works here: not ExLlamaV2, because its sums have 16 bits"):
                action(catalogue.replace(step, kernel="exllama_v2"))
        found = serving.attempt({"step": asdict(step), "device": None})  # before a server: it gets the kernel that can
        assert found["kernel"] == "triton" and not found["overflows"] and found["sentence"].startswith("Triton (not ExLlamaV2, because its sums have 16 bits")


def test_a_llama_is_not_looked_at_before_its_first_call(monkeypatch):
    model = type("Model", (), {"config": type("Config", (), {"model_type": "llama"})})
    monkeypatch.setattr(library, "not_finite", lambda *_: pytest.fail("its cold call would not be cold"))
    assert loading._overflow(model, None, kernels.Plan(["exllama_v2"])) == loading._overflow(model, None, None) == ""
