"""GPTQ as notebook 10 builds it against equations written out, and against gptqmodel; checkpoints, model card and upload with their faults."""

import base64
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import test_hub
from support.book import functions

from helpers import loading, plots, quality, quantise, setup
from helpers.errors import CheckpointError, DiskError
from helpers.models import catalogue, choose

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def book():
    """The functions that notebook 10 defines, by name."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    used = {
        "plots": plots,
        "quantise": quantise,
        "setup": setup,
        "json": json,
        "os": os,
        "EvalResult": EvalResult,
        "ModelCard": ModelCard,
        "ModelCardData": ModelCardData,
    }
    return functions("10", without=("try_gptq", "score"), **used)


@pytest.fixture(scope="module")
def small():
    """(step, model in float32, tokenizer, windows); nothing may change the model."""
    step = choose.get_step(2, tier="embedded")
    model, tokenizer = loading.load(step, device="cpu")
    return step, model.float(), tokenizer, quantise.windows(tokenizer, quantise.calibration_text(), count=16)


@pytest.fixture(scope="module")
def layer(small):
    """(weight, inputs) of the first layer, which reads nothing that was quantised before."""
    import torch

    _, model, _, windows = small
    caught = []
    hook = model.get_submodule(LAYER).register_forward_hook(lambda _, inputs, __: caught.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows)
    hook.remove()
    return model.get_submodule(LAYER).weight.detach().clone(), torch.cat(caught)


@pytest.fixture(scope="module")
def library(small):
    """The small model, quantised by transformers' GPTQConfig."""
    import torch
    from transformers import AutoModelForCausalLM, GPTQConfig

    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    step, _, tokenizer, windows = small
    examples = [{"input_ids": windows[:4].tolist(), "attention_mask": torch.ones_like(windows[:4]).tolist()}]
    plan = GPTQConfig(bits=4, group_size=128, damp_percent=0.1, act_group_aware=False, dataset=examples, tokenizer=tokenizer, model_seqlen=128)
    with loading.quiet():
        return AutoModelForCausalLM.from_pretrained(step.checkpoint, quantization_config=plan, dtype=torch.float32, device_map={"": "cpu"})


def by_gptqmodel(weight, inputs, bits=4, group=128, damp=0.1, **order):
    """(integers (out, in), scales (out, groups), group of each input) from gptqmodel's own GPTQ, called as optimum calls it."""
    import torch

    with loading.quiet():
        from gptqmodel import QuantizeConfig
        from gptqmodel.quantization import GPTQ

        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        order = {"desc_act": False, "act_group_aware": False} | order
        task = GPTQ(linear, qcfg=QuantizeConfig(bits=bits, group_size=group, damp_percent=damp, sym=True, offload_to_disk=False, **order))
        task.quantizer.configure(bits=bits, sym=True, perchannel=True)
        for part in inputs.view(-1, 128, inputs.shape[1]):
            task.add_batch(part[None], None)
        scales, zeros, groups, *_ = task.fasterquant(percdamp=damp, group_size=group, actorder=order["desc_act"])
    integers = torch.round(linear.weight.data / scales[:, groups]) + zeros[:, groups]
    return integers, scales, groups


def output_error(weight, inputs, found, book, bits=4):
    integers, scales, groups = found
    wrong = weight - book["weights_of"](integers, scales, groups.long(), bits)
    return (wrong @ inputs.T).square().sum().item()


def test_one_row_by_equations_2_and_3(book):
    """OBQ in the natural order, in float64: the inverse is updated weight by weight, no Cholesky factor anywhere."""
    import torch

    generator = torch.Generator().manual_seed(3)
    X, row = torch.randn(200, 32, generator=generator), torch.randn(1, 32, generator=generator)
    X[:, 1] += 2 * X[:, 0]  # inputs that go together
    H = 2 * X.T @ X
    w, inverse = row[0].double(), torch.linalg.inv(H.double() + 0.1 * H.diagonal().double().mean() * torch.eye(32))
    scale, wanted = 2 * row.abs().max().double() / 15, []
    for q in range(32):
        integer = (w[q] / scale).round().clamp(-8, 7)
        wanted.append(integer + 8)
        w = w - (w[q] - scale * integer) / inverse[q, q] * inverse[:, q]  # equation (2)
        inverse = inverse - inverse[:, [q]] @ inverse[[q], :] / inverse[q, q]  # equation (3)
    integers, scales, groups = book["quantise_layer"](row, H, group=-1)
    assert integers[0].tolist() == [value.item() for value in wanted]
    assert scales.item() == pytest.approx(scale.item()) and groups.tolist() == [0] * 32
    assert integers[0].tolist() != ((row[0] / scale).round().clamp(-8, 7) + 8).tolist()  # not what rounding gives


def test_one_integer_on_the_other_side_moves_the_next_by_eight(book):
    """Why no limit of the largest difference says anything: 0.499 and 0.501 steps round to 0 and 1, and H01 / H11 = 8 makes 3.99 and -3.99 of the next 0."""
    import torch

    H = torch.tensor([[256.0, 8.0, 0.0], [8.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    W = torch.tensor([[0.499, 0.0, -7.5], [0.501, 0.0, -7.5]])  # in steps of the grid: the largest weight makes its scale 1
    integers, scales, _ = book["quantise_layer"](W, H, group=-1, damp=0.0)
    assert scales.flatten().tolist() == [1.0, 1.0] and (integers[:, :2] - 8).tolist() == [[0, 4], [1, -4]]
    U = book["cholesky_of_inverse"](H)
    assert (U[0, 1].abs() / U[0, 0]).item() == pytest.approx(8, rel=1e-4)  # steps that one step of column 0 moves column 1


def test_without_calibration_gptq_is_rounding(small, book):
    import copy

    import torch

    _, model, _, windows = small
    rounded = quality.round_to_nearest(copy.deepcopy(model))
    for name in (LAYER, "model.layers.3.mlp.down_proj"):
        weight = model.get_submodule(name).weight.detach()
        found = book["quantise_layer"](weight, torch.eye(weight.shape[1]))
        assert torch.allclose(book["weights_of"](*found), rounded.get_submodule(name).weight, atol=1e-7)


SETTINGS = {
    "as in the notebook": {},
    "2 bits": {"bits": 2},
    "3 bits": {"bits": 3},
    "8 bits": {"bits": 8},
    "a scale a row": {"group": -1},
    "damping of the paper": {"damp": 0.01},
    "act-order": {"desc_act": True},
    "group-aware order": {"act_group_aware": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_integers_are_gptqmodels(layer, book, settings):
    """At most one in a thousand differs, by one: both add up 32-bit numbers, in another order, and a tie falls to one side or the other."""
    import torch

    weight, inputs = layer
    if "act_group_aware" in settings:  # so that the group which comes first in the order does not stand first
        weight, inputs = weight.roll(128, 1), inputs.roll(128, 1)
    H = book["hessian"](inputs)
    ours = {key: value for key, value in settings.items() if key in ("bits", "group", "damp")}
    order = book["by_activation"](H) if "desc_act" in settings else book["group_aware"](H) if "act_group_aware" in settings else None
    found = book["quantise_layer"](weight, H, order=order, **ours)
    theirs = by_gptqmodel(weight, inputs, **settings)
    apart = (found[0] - theirs[0]).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() <= 0.001
    bits = settings.get("bits", 4)
    assert torch.allclose(found[1], theirs[1], rtol=2e-4) and found[2].equal(theirs[2].long())  # what is written, in the order in which it is written
    if "act_group_aware" in settings:
        assert found[2].tolist() == [n // 128 for n in range(len(H))] and order[0] >= 128
    nearest = book["quantise_layer"](weight, torch.eye(len(H)), bits, settings.get("group", 128))
    assert output_error(weight, inputs, found, book, bits) == pytest.approx(output_error(weight, inputs, theirs, book, bits), rel=0.01)
    assert output_error(weight, inputs, found, book, bits) < output_error(weight, inputs, nearest, book, bits)


@pytest.mark.parametrize("group", [32, 64])
def test_small_groups_differ_for_a_known_reason(layer, book, group):
    """gptqmodel works in blocks of 128 columns, and takes the scales of all groups of a block from the weights at the block's beginning."""
    import torch

    weight, inputs = layer
    H = book["hessian"](inputs)
    theirs = by_gptqmodel(weight, inputs, group=group)
    W, U, integers, scales = weight.clone(), book["cholesky_of_inverse"](book["damped"](H)), torch.empty_like(weight), []
    for q in range(W.shape[1]):
        if q % 128 == 0:
            block = W.clone()
        if q % group == 0:
            scales.append(book["find_scale"](block[:, q : q + group], 4))
        integers[:, q] = book["to_integer"](W[:, q], scales[-1], 4)
        W[:, q:] -= ((W[:, q] - book["to_weight"](integers[:, q], scales[-1], 4)) / U[q, q])[:, None] * U[q, q:]
    apart = (integers - theirs[0]).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() <= 0.001
    ours = book["quantise_layer"](weight, H, group=group)
    apart = (ours[0] - theirs[0]).abs()
    assert 0.001 < (apart > 0).float().mean() < 0.1 and apart.max() <= 3
    assert output_error(weight, inputs, ours, book) == pytest.approx(output_error(weight, inputs, theirs, book), rel=0.1)


def test_an_input_that_never_occurs(layer, book):
    weight, inputs = layer
    inputs = inputs.clone()
    inputs[:, 5] = 0
    integers, scales, _ = book["quantise_layer"](weight, book["hessian"](inputs))
    assert integers.isfinite().all() and scales.isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_as_gptqmodel_packs(bits, layer, book):
    """All four tensors, and back again; the library's layer holds layout v2, whose zero points are one higher."""
    import torch

    with loading.quiet():
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    weight, inputs = layer
    integers, scales, groups = book["quantise_layer"](weight, book["hessian"](inputs), bits)
    packed = book["layout"](integers, scales, groups, bits)
    assert quantise.unpack(packed["qweight"], bits).T.equal(integers.int())
    assert quantise.unpack(packed["qzeros"].T, bits).unique().tolist() == [2 ** (bits - 1) - 1]
    assert sum(
        tensor.numel() * tensor.element_size() for tensor in packed.values()
    ) == weight.numel() * bits // 8 + scales.numel() * 2 + scales.numel() * bits // 8 + 4 * len(groups)
    linear = torch.nn.Linear(256, 256, bias=False)
    linear.weight.data = book["weights_of"](integers, scales, groups, bits)
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    with loading.quiet():
        theirs = TorchLinear(bits=bits, group_size=128, desc_act=False, sym=True, in_features=256, out_features=256, bias=False)
        theirs.pack(linear, scales, torch.full_like(scales, 2 ** (bits - 1)), groups.int())
    assert theirs.qweight.equal(packed["qweight"]) and theirs.scales.equal(packed["scales"]) and theirs.g_idx.equal(packed["g_idx"])
    assert (quantise.unpack(theirs.qzeros.T, bits) - 1).equal(quantise.unpack(packed["qzeros"].T, bits))


def test_layers_read_what_the_new_weights_make(small, book):
    """The walk hands each layer the inputs that it has in the finished model; hooks are gone, and nothing but the linear layers has changed."""
    import copy

    import torch

    _, model, _, windows = small
    changed, handed = copy.deepcopy(model), {}

    def choose(name, weight, inputs):
        handed[name] = inputs
        return 0.9 * weight

    with torch.no_grad():
        assert book["walk"](changed, windows[:3], lambda inputs: inputs, choose) is changed
    assert list(handed) == [f"model.layers.{n}.{name}" for n in range(4) for names in quantise.TOGETHER for name in names]
    seen = {}
    hooks = [changed.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1)})) for name in handed]
    with torch.no_grad():
        changed(windows[:3])
    for hook in hooks:
        hook.remove()
    assert all(torch.allclose(handed[name], seen[name], atol=1e-4) for name in handed)
    assert not any(module._forward_pre_hooks for module in changed.modules())
    before = dict(model.named_parameters())
    for name, weight in changed.named_parameters():
        assert weight.equal(0.9 * before[name] if "_proj" in name else before[name])


def test_windows(small):
    _, _, tokenizer, _ = small
    found = quantise.windows(tokenizer, ["One short line.", "Another one."] * 40, count=99)
    assert found.shape[1] == 128 and 1 <= len(found) < 99 and found[0, 0] == tokenizer.bos_token_id
    assert (found == tokenizer.bos_token_id).sum() > 1


def test_saved_and_loaded_again(library, small, tmp_path):
    import torch

    _, _, tokenizer, windows = small
    folder = tmp_path / "mine-gptq"
    folder.mkdir()
    (folder / "old").write_text("from an earlier run")
    with torch.no_grad():
        before = library(windows[:2]).logits
    for _ in range(2):  # saving changes nothing in memory, so it can be done again
        quantise.save(library, tokenizer, folder)
    with torch.no_grad():
        assert library(windows[:2]).logits.equal(before)
    assert [path.name for path in tmp_path.iterdir()] == ["mine-gptq"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "quantize_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "old" not in names and "input_ids" not in (folder / "config.json").read_text()
    step = choose.get_step(3, checkpoint=str(folder))
    assert step.title == "mine GPTQ" and step.tier == "own"
    zeros = loading.read_tensor(step, f"{LAYER}.qzeros")
    assert {number & 0xFFFFFFFF for number in zeros.flatten().tolist()} == {0x77777777}
    assert loading.read_tensor(step, "lm_head.weight").dtype == torch.float16
    again, _ = loading.load(step, device="cpu")
    assert loading.weight_bytes(again) == step.bytes
    with torch.no_grad():
        after = again(windows[:2]).logits.float()
    assert (after - before).abs().max() < 0.03 * before.abs().max()  # the activations are bfloat16 now
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == json.loads((folder / "quantize_config.json").read_text())
    assert config["quantization_config"]["checkpoint_format"] == "gptq" and config["quantization_config"]["bits"] == 4


def test_a_model_that_gptq_has_not_made_is_refused(small, tmp_path):
    _, model, tokenizer, _ = small
    with pytest.raises(CheckpointError, match="quantise it first"):
        quantise.save(model, tokenizer, tmp_path / "no")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_does_not_take_it_is_one_sentence(library, small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="a file stands where a folder is needed: set RESULTS_DIR"):
        quantise.save(library, small[2], tmp_path / "file" / "mine-gptq")


def test_weights_in_a_kernels_own_order_are_not_saved(library, small, tmp_path):
    layer = library.get_submodule(LAYER)
    before, layer.qweight = layer.qweight, layer.qweight[:8]
    with pytest.raises(CheckpointError, match="backend='torch'"):
        quantise.save(library, small[2], tmp_path / "mine-gptq")
    layer.qweight = before
    assert not list(tmp_path.iterdir())


def test_what_it_needs(book):
    """Llama-2 7B by hand, with the paper's calibration set."""
    memory, operations = book["needs"](catalogue.LLAMA_2["7B"], 128 * 2048)
    assert memory == 13_476_831_232 + 2 * 2 * 128 * 2048 * 4096 + 12 * 11008**2
    block = sum(n * m // 2 + n // 128 * m * 5 // 2 + 4 * n for n, m in [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)])
    assert book["needs"](catalogue.LLAMA_2["7B"], 2048)[0] == 13_476_831_232 + 32 * block  # packing, at the end, takes more than walking
    assert operations == 2 * 128 * 2048 * (8 * 6_476_005_376 + 32 * (6 * 4096**2 + 11008**2))


def test_operations_are_those_that_torch_counts(small, book, tmp_path):
    """In a run of the library on one block: its matrix products. What GPTQ adds to later blocks of columns, a few per cent, comes on top."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, GPTQConfig, LlamaForCausalLM

    from data.build.train import llama_config

    _, _, tokenizer, windows = small
    one_block = llama_config({"hidden": 128, "inner": 256, "layers": 1, "heads": 2, "positions": 256}, 1536)
    LlamaForCausalLM(one_block).save_pretrained(tmp_path)
    examples = [{"input_ids": windows[:8].tolist(), "attention_mask": torch.ones_like(windows[:8]).tolist()}]
    plan = GPTQConfig(bits=8, dataset=examples, tokenizer=tokenizer, model_seqlen=128, act_group_aware=False)
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    with loading.quiet(), FlopCounterMode(display=False) as counter:
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=plan, dtype=torch.float32, device_map={"": "cpu"})
    counted = sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if str(operation) in ("aten.mm", "aten.addmm"))
    assert 1 <= counted / book["needs"](catalogue.Shape.from_config(tmp_path), 8 * 128)[1] < 1.05


@pytest.fixture
def made(tmp_path, book):
    """(folder, base step, rows before and after): a checkpoint as notebook 10 leaves it, without weights worth mentioning."""
    folder = tmp_path / "my-small-gptq"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    settings = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "act_group_aware": True, "damp_percent": 0.1}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    base = choose.get_step(2, tier="embedded")
    before = quality.make_row(base, {"perplexity": 2.25, "tokens": 1234}, device="Some CPU")
    after = quality.make_row(choose.get_step(3, tier="embedded"), {"perplexity": 2.5, "tokens": 1234}, device="Some CPU")
    book["write_card"](folder, base, before, after, "32 windows of some text")
    return folder, base, before, after


def test_the_card_says_what_was_measured(made):
    from huggingface_hub import ModelCard

    folder, base, before, after = made
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "transformers" and "gptq" in card.data.tags and card.data.get("base_model") is None
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 2.5)
    for words in ("2.2500", "2.5000", f"{after['weight_bytes']:,}", f"{before['weight_bytes']:,}", "1,234", "32 windows of some text", quality.PROTOCOL, "Some CPU",
                  after["date"][:10], "stands in for Llama-2 and is none", "False, True", f"gptqmodel {after['versions']['gptqmodel']}"):  # fmt: skip
        assert words in card.text, words
    assert "{" not in card.text and str(folder.parent) not in card.text


def test_the_card_of_a_model_from_the_hub_names_it(made, book):
    from dataclasses import replace

    from huggingface_hub import ModelCard

    folder, base, before, after = made
    book["write_card"](folder, replace(base, tier="own", checkpoint="someone/some-llama"), before, after, "text")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "someone/some-llama" and card.data.get("license") is None and "someone/some-llama" in card.text


class Taker(BaseHTTPRequestHandler):
    """The part of the Hub that takes uploads: repositories, YAML check, preupload, LFS batch and PUT, commit (https://huggingface.co/docs/hub/api)."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, about, **headers):
        body = json.dumps(about).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message):
        self.answer(status, {"error": message}, X_Error_Message=message)

    def handle_request(self):
        hub, path = self.server.hub, self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub["asked"].append((self.command, path))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path.startswith("/store/"):
            hub["store"][path.split("/")[2]] = body
            return self.answer(200, {})
        if token not in ("hf_write", "hf_read"):
            return self.refuse(401, "Invalid credentials in Authorization header")
        if self.command == "GET":
            name = path.removeprefix("/api/models/")
            if name not in hub["private"]:
                return self.refuse(404, "Repository not found")
            return self.answer(200, {"id": name, "private": hub["private"][name], "siblings": [], "tags": [], "sha": "0" * 40})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if token == "hf_read":
            return self.refuse(403, "You don't have the rights to create a model under the namespace")
        about = json.loads(body.splitlines()[0])
        if path == "/api/repos/create":
            name = f"{about.get('organization') or 'reader'}/{about['name']}"
            known = name in hub["private"]
            hub["private"].setdefault(name, bool(about.get("private") or about.get("visibility") == "private"))
            return self.answer(409 if known else 200, {"url": f"https://huggingface.co/{name}"})
        if "/preupload/" in path:
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False} for f in about["files"]
            ]
            return self.answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [{**o, "actions": {"upload": {"href": f"{hub['url']}/store/{o['oid']}", "header": {}}}} for o in about["objects"]]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            if hub["broken"]:
                return self.refuse(500, "Internal error")
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub["files"][value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    hub["files"][value["path"]] = hub["store"][value["oid"]]
            return self.answer(200, {"commitUrl": f"{hub['url']}/reader/my-small-gptq/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})
        self.refuse(404, "no such address")

    do_GET = do_POST = do_PUT = handle_request


@pytest.fixture
def taker():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    server.daemon_threads = True
    server.hub = {"url": f"http://127.0.0.1:{server.server_port}", "private": {}, "files": {}, "store": {}, "asked": [], "broken": False}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.hub
    server.shutdown()
    server.server_close()


PUBLISH = """
import sys
from helpers import quantise
from helpers.errors import CourseError

folder, repository, yes = sys.argv[1:4]
try:
    print(quantise.publish(folder, repository or None, yes=yes == "yes"))
except CourseError as error:
    print(f"{type(error).__name__}: {error}")
"""


def publish(folder, url, repository, token, yes="yes"):
    """The last printed line of quantise.publish in a process of its own, and nothing lost in the folder."""

    def fingerprint():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    environment = test_hub.settings(url, folder.parent / "home", HF_TOKEN=token, HF_HUB_DOWNLOAD_TIMEOUT="10", HF_HUB_ETAG_TIMEOUT="10")
    before = fingerprint()
    done = subprocess.run([sys.executable, "-c", PUBLISH, str(folder), repository, yes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert fingerprint() == before and (not token or token not in done.stdout)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def test_upload(made, taker):
    """Private, and every byte arrives, the weights by the large-file way; a second time nothing is in the way."""
    folder = made[0]
    for _ in range(2):
        assert publish(folder, taker["url"], "reader/my-small-gptq", "hf_write") == f"{taker['url']}/reader/my-small-gptq/commit/{'1' * 40}"
    assert taker["private"] == {"reader/my-small-gptq": True}
    assert taker["files"] == {path.name: path.read_bytes() for path in folder.iterdir()} and len(taker["store"]) == 1


def test_nothing_is_uploaded_unasked(made, taker, capsys):
    assert publish(made[0], taker["url"], "", "hf_write") == "None"
    assert publish(made[0], taker["url"], "reader/my-small-gptq", "hf_write", yes="no") == "None"
    assert taker["asked"] == []
    assert quantise.publish(made[0], None, yes=True) is None and "my_repository is None" in capsys.readouterr().out
    assert quantise.publish(made[0], "reader/mine") is None
    said = capsys.readouterr().out
    assert "private" in said and "model.safetensors" in said and "upload_it = True" in said


FAULTS = {
    "no token": ("", "there is no token"),
    "a read token": ("hf_read", "may not write"),
    "a wrong token": ("hf_wrong", "is not valid"),
    "a public repository of that name": ("hf_write", "exists already and is public"),
    "a Hub that breaks": ("hf_write", "problem of its own (HTTP 500)"),
    "no name": ("hf_write", "no name of a repository"),
    "no network": ("hf_write", "cannot be reached"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upload_that_fails_is_one_sentence(made, taker, fault):
    token, words = FAULTS[fault]
    taker["broken"] = fault == "a Hub that breaks"
    if "public" in fault:
        taker["private"]["reader/mine"] = False
    said = publish(made[0], "http://127.0.0.1:9" if fault == "no network" else taker["url"], "a/b/c" if fault == "no name" else "reader/mine", token)
    assert said.startswith("UploadError: ") and words in said and "my-small-gptq stays on this disk" in said and said.count(". ") == 0, said
    assert not taker["files"] and math.prod(taker["private"].values()) == ("public" not in fault)
