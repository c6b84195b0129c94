"""What do formats younger than the article need, beside a few lines? The inputs that every linear layer reads, and checkpoints of theirs.

AWQ's layout (``version`` gemm) is that of AutoAWQ, read by gptqmodel and vLLM; FP8, MXFP4, NVFP4 and 8-bit activations are written by
compressed-tensors, vLLM's own package for checkpoints. The formats themselves are built in the cells. First used in notebook 16.
"""

import copy
import json
from pathlib import Path

from helpers import machine, timing
from helpers.engines import timed
from helpers.errors import CheckpointError
from helpers.loading import library, offline, quiet
from helpers.models import choose, files
from helpers.models.catalogue import LINEARS
from helpers.quantise import TOGETHER, calibration_text, pack, windows

SOURCES = ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")  # what makes the inputs of each group of TOGETHER
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight neighbouring outputs in one int32, the lowest bits first
PACKAGES = ("torch", "transformers", "gptqmodel", "torchao", "compressed-tensors")


def load(folder, dtype=None, **settings):
    """Return (model, tokeniser) of the checkpoint ``folder`` on the processor. dtype: float32 by default. settings: more of from_pretrained.

    Raises CheckpointError with the library's reason.
    """
    import torch
    from transformers import AutoModelForCausalLM

    told, report = None, library.Report()
    try:
        with quiet(), offline(), report:
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype or torch.float32, device_map={"": "cpu"}, use_safetensors=True, **settings)
    except Exception as error:
        told = library.explained(error, CheckpointError, f"{folder} cannot be loaded", "run the set-up cells again", report.reason)
    if told:  # raised here, where the half-loaded model is gone
        raise told
    return model.eval(), library.tokeniser(folder)


def linears(model):
    """Return {name: layer} of the linear layers of all blocks, in the order in which they work."""
    return {f"model.layers.{n}.{name}": block.get_submodule(name) for n, block in enumerate(model.model.layers) for name in LINEARS}


def places(model):
    """Yield (source, {name: layer}) for each group of layers that read the same: channel c of their inputs is made by weight c of ``source``.

    What is divided out of a channel there can be multiplied into column c of the readers (AWQ, SmoothQuant). With grouped-query attention a value
    has several readers, so that place is left out.
    """
    for n, block in enumerate(model.model.layers):
        for name, readers in zip(SOURCES, TOGETHER):
            found = {f"model.layers.{n}.{reader}": block.get_submodule(reader) for reader in readers}
            source = block.get_submodule(name)
            if all(len(source.weight) == layer.in_features for layer in found.values()):
                yield source, found


def inputs(model, tokenizer, count=16):
    """Return {name: what the layer reads, (tokens, in features)} of ``count`` windows of 128 tokens of the calibration text."""
    import torch

    seen, hooks = {}, []
    for name, layer in linears(model).items():
        hooks.append(layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1)})))
    try:
        with torch.no_grad():
            model(windows(tokenizer, calibration_text(), count).to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def without_outliers(model):
    """Return a copy of the embedded ``model`` without the outlier channels that its build added (data/build/outliers.py): the exact inverse.

    Both compute the same, to the last bit.
    """
    from data.build import outliers, settings

    return outliers.add_outlier_channels(copy.deepcopy(model), settings.SEED, 1 / outliers.FACTOR)


def write_awq(model, packed, tokenizer, folder, group_size=128):
    """Write ``model`` as the AWQ checkpoint ``folder`` (a Path), in place of an older one, and return the bytes of its tensors.

    packed: {name of a layer: (integers below 16 (out, in), scales (out, groups), zero points (out, groups))}. All else is stored in float16.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.half() for name, tensor in model.state_dict().items() if name.removesuffix(".weight") not in packed}
    for name, (codes, scales, zeros) in packed.items():
        order = torch.arange(len(codes)).view(-1, 8)[:, AWQ_ORDER].flatten()
        tensors |= {f"{name}.qweight": pack(codes[order], 4).T, f"{name}.qzeros": pack(zeros[order], 4).T, f"{name}.scales": scales.T.half()}
    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    with files.whole(Path(folder)) as part:
        part.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / "model.safetensors", metadata={"format": "pt"})
        for each in (model.config, model.generation_config, tokenizer):
            each.save_pretrained(part)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        files.write_json(part / "config.json", config | {"dtype": "float16", "torch_dtype": "float16", "quantization_config": settings}, indent=2)
    return file_bytes(folder)


def write_compressed(model, tokenizer, preset, folder):
    """Write a copy of ``model`` as the checkpoint ``folder`` (a Path) by compressed-tensors' ``preset``; return the bytes of its tensors.

    preset: a name of its PRESET_SCHEMES, e.g. "NVFP4A16". What is not quantised is stored in bfloat16. The scales are the library's own, for the largest weight of each row, group or
    tensor; activations are rounded while the model runs, and need none.
    """
    import torch

    with quiet():
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        model = copy.deepcopy(model)
        scheme = preset_name_to_scheme(preset, ["Linear"])
        apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]), show_progress=False)
        for layer in linears(model).values():
            settings, weight, whole = layer.quantization_scheme.weights, layer.weight.data, None
            if hasattr(layer, "weight_global_scale"):
                whole = generate_gparam(weight.amin(), weight.amax())
                layer.weight_global_scale.data.copy_(whole)
            parts = weight.unflatten(-1, (-1, settings.group_size)) if settings.group_size else weight[:, None]
            scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), settings, global_scale=whole)
            layer.weight_scale.data = layer.weight_scale.data.copy_(scale)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        packed = {id(tensor) for layer in linears(model).values() for tensor in layer.parameters()}
        for tensor in model.parameters():
            if id(tensor) not in packed:
                tensor.data = tensor.data.bfloat16()  # as checkpoints hold what is not quantised
        with files.whole(Path(folder)) as part, torch.no_grad():
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            compressor.update_config(part)
    return file_bytes(folder)


def decompressed(model):
    """Return ``model``, loaded from what ``write_compressed`` wrote, with its weights as float32: what its library would do at the first pass."""
    with quiet():
        for hook in list(model._forward_pre_hooks.values()):
            hook(model, ())
    for layer in linears(model).values():
        layer.weight.data = layer.weight.data.float()
    return model


def file_bytes(folder):
    """Bytes of all tensors in the checkpoint ``folder``, as they stand in its file."""
    from safetensors.torch import load_file

    return sum(_bytes(tensor) for tensor in load_file(Path(folder) / "model.safetensors").values())


def stored_bytes(model):
    """Bytes of all tensors of ``model``; of one that a library has replaced by an object of its own (torchao), those of the tensors in it."""
    return sum(map(_bytes, [*model.parameters(), *model.buffers()]))


def _bytes(tensor):
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def record(step, name, model, tokenizer, weight_bytes, format):
    """Measure ``model``, made from ``step``'s, append its row to the ledger as the variant ``name``, and return the row."""
    layer, embedding = next(iter(linears(model).values())), model.get_input_embeddings().weight
    about = {"format": format, "dtype": str(model.dtype).removeprefix("torch."), "title": f"{step.title.split()[0]} {name}"}
    sizes = {"weight_bytes": weight_bytes, "read_bytes": weight_bytes - _bytes(embedding)}
    result, device = timing.measure(model, tokenizer), machine.device_of(model)
    return timed.record("transformers", name, result, step, PACKAGES, _kind(layer), device=device, **about, **sizes)


def record_gguf(step, name, path, weight_bytes, read_bytes):
    """Have llama.cpp measure the file ``path`` of ``step``'s model in a process of its own, append its row to the ledger and return it."""
    job = {"path": str(path), "threads": choose.threads(step.shape)}
    result, more = timed.apart("helpers.engines.llamacpp.work", job, weight_bytes)
    about = {"weight_bytes": weight_bytes, "read_bytes": read_bytes, "format": "gguf", "dtype": name, "checkpoint": path.name}
    return timed.record("llama.cpp", name, result, step, ("xllamacpp", "gguf"), "llama.cpp", **about, **more)


def _kind(layer):
    """Name of the class that computes: the layer's, or that of its weight where a library has replaced only this."""
    weight = getattr(layer, "weight", None)
    return type(weight).__name__ if hasattr(weight, "__tensor_flatten__") else type(layer).__name__
