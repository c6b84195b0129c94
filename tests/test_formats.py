"""Each format really is what it says: layer class, stored type, and weights that come back from the packed integers."""

import pytest
import torch

from helpers import loading

LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"]
CLASSES = {1: "Linear8bitLt", 2: "Linear"}


def unpack(step, name):
    """The weights of a GPTQ layer as float32, shape (outputs, inputs), from the file alone (v1: zero points stored minus 1)."""
    part = {p: loading.read_tensor(step, f"{name}.{p}") for p in ("qweight", "qzeros", "scales", "g_idx")}
    shifts = torch.arange(0, 32, 4)
    integers = (part["qweight"][:, None, :] >> shifts[None, :, None] & 15).flatten(0, 1)  # (inputs, outputs)
    zeros = (part["qzeros"][:, :, None] >> shifts & 15).flatten(1) + 1  # (groups, outputs)
    group = part["g_idx"].long()
    return (part["scales"][group].float() * (integers - zeros[group])).T


@pytest.mark.parametrize("name", LAYERS)
def test_8bit_integers_are_absmax(models, name):
    step, model, _ = models[1]
    layer = model.get_submodule(name)
    assert type(layer).__name__ == CLASSES[1] and layer.weight.dtype == torch.int8
    original = loading.read_tensor(step, f"{name}.weight").float()
    scale = original.abs().amax(1, keepdim=True)
    integers = layer.weight.float().cpu()
    difference = ((original / scale * 127).round() - integers).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01  # ties may round the other way
    restored = integers * layer.state_dict()["SCB"].cpu()[:, None] / 127
    assert (restored - original).abs().max() <= (scale / 127).max() * 0.51


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_is_the_file(models, name):
    step, model, _ = models[2]
    layer = model.get_submodule(name)
    assert type(layer).__name__ == CLASSES[2] and layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight.cpu(), loading.read_tensor(step, f"{name}.weight"))


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_gptq_unpacked_by_hand_is_the_librarys(models, number, name):
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    step, model, _ = models[number]
    layer = model.get_submodule(name)
    assert isinstance(layer, BaseQuantLinear) and layer.bits == 4 and layer.group_size == 128
    ours = unpack(step, name)
    units = torch.eye(layer.in_features, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        theirs = layer(units).T.float().cpu()
    assert torch.allclose(ours, theirs, rtol=2 * torch.finfo(model.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("number", [3, 4])
def test_gptq_layout_is_v1(models, number):
    step, model, _ = models[number]
    config = model.config.quantization_config.to_dict()
    assert (config["bits"], config["group_size"], config["desc_act"], config["sym"]) == (4, 128, False, True)
    zeros = loading.read_tensor(step, "model.layers.0.self_attn.q_proj.qzeros")
    assert set(zeros.flatten().tolist()) == {0x77777777}  # zero point 8, stored minus 1


@pytest.mark.parametrize("number", [1, 2])
def test_weights_have_the_bytes_of_the_catalogue(models, number):
    step, model, _ = models[number]
    assert loading.weight_bytes(model) == step.bytes


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_completion_reads_as_english(models, number):
    """The prompt ends with a space, and the model goes on with words, not with a broken start."""
    from helpers import timing

    _, model, tokenizer = models[number]
    _, ids = timing.generate_once(model, tokenizer)
    words = tokenizer.decode(ids).replace(".", " ").replace(",", " ").split()
    text = (loading.Path(__file__).parent.parent / "data" / "text" / "calibration.txt").read_text(encoding="utf-8")
    known = set(text.replace(".", " ").replace(",", " ").split())
    assert len(words) >= 7 and sum(w in known for w in words[:-1]) >= len(words) - 2  # the last word may be cut off


def test_layer_table_lists_what_is_stored(models):
    table = loading.layer_table(models[1][1].get_submodule(LAYERS[0]))
    assert set(table.index) == {"weight", "SCB"} and table.loc["weight", "dtype"] == "int8"
    assert set(loading.layer_table(models[2][1].get_submodule(LAYERS[0])).index) == {"weight"}
