"""How large is a decoder of any architecture, in each format? Counted on an empty copy of it: no formula has to know the architecture.

transformers builds the model that config.json describes without memory for its weights (PyTorch's meta device). Every tensor then has its
shape, and the libraries' own rules say which layers a format converts. What becomes of the parts that formulas forget:

a tied head          is stored once, with the embedding table, and a token reads all of it, as the head
experts              all are stored; a token reads those that its router takes. transformers 5 keeps the experts of a block in one tensor,
                     which is no linear layer: 8-bit, NF4 and GPTQ leave it in 16 bits
sliding windows      bound the KV cache of their layers: it keeps one token less than the window, which the newest token completes
norms, biases, head  stay in 16 bits in all formats, a few in 32 where the architecture says so

``catalogue.Shape`` has the same figures as formulas, for Llamas. First used in notebook 01.
"""

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from helpers import machine
from helpers.errors import CheckpointError, UnknownFormatError
from helpers.models.catalogue import FORMATS, packing, read_json, settings

BLOCKS = (
    "transformer.h",
    "model.decoder.layers",
    "gpt_neox.layers",
    "model.layers",
    "model.language_model.layers",
)  # where optimum 2.3 looks for GPTQ's layers
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # names in configurations: how many experts there are,
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")  # and how many a token reads
TAKE = "take a decoder, such as a Llama, Qwen, Gemma, Mistral or OLMo model"


@dataclass(frozen=True)
class Tensor:
    """One tensor that a model stores. share: of it, what one token reads. wide: the formats in which its numbers have 32 bits, in place of 16."""

    shape: tuple
    share: Fraction
    wide: tuple


@dataclass(frozen=True)
class Kept:
    """What one layer keeps of earlier tokens: ``bytes`` for each of the last ``most`` (None: of all), and ``state`` bytes at any length. width: numbers of one head."""

    bytes: int
    most: int | None
    state: int
    width: int

    def tokens(self, context):
        """How many of ``context`` tokens it keeps."""
        return context if self.most is None else min(context, self.most)


def of(folder):
    """Return the Sizes of the model that ``folder/config.json`` describes; weights need not be there. Raises CheckpointError for what is no decoder, or not known."""
    return _of(str(folder), json.dumps(read_json(folder, "config.json"), sort_keys=True))


def context(config):
    """Return how many tokens a model of ``config`` (transformers' configuration) takes at most; None where it has no end, as of BLOOM and Mamba.

    A model of several media has it in the part of its text. First used in notebook 06.
    """
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config  # the transformers of 2024 has no such method
    return getattr(config, "max_position_embeddings", None)


@lru_cache(maxsize=32)
def _of(folder, config):
    return Sizes(folder)


class Sizes:
    """All sizes of a model, see ``of``. It answers what catalogue.Shape answers, by the same names.

    tensors: {name: Tensor}, what two names share once. quantised: {name: (in features, out features)} of the layers that GPTQ quantises, by the
    checkpoint's own settings: all linear ones of the blocks, or those that it names. kept: a Kept for each layer with a cache. bits, group_size:
    of GPTQ's integers. renamed: whether the files have other names for the tensors. context: see the function.
    """

    def __init__(self, folder):
        self.folder, raw = folder, read_json(folder, "config.json")
        self.settings = settings(folder)
        self.bits, self.group_size = ({"bits": 4, "group_size": 128} | packing(folder, self.settings)).values()
        model = _skeleton(folder)
        import torch
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.pytorch_utils import Conv1D

        config, head = model.config.get_text_config(decoder=True), model.get_output_embeddings()
        self.hidden_size, self.num_hidden_layers = config.hidden_size, config.num_hidden_layers
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self.intermediate_size = max(inner) if isinstance(inner, (list, tuple)) else inner
        self.context = context(model.config)
        self.vocab_size = len(model.get_input_embeddings().weight)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.heads, self.prefix = getattr(config, "num_attention_heads", 0), model.base_model_prefix
        self.ignored = tuple(model._keys_to_ignore_on_load_unexpected or ())
        self.tied = dict(model.all_tied_weights_keys)
        self.renamed = bool(get_checkpoint_conversion_mapping(raw["model_type"]) or getattr(model, "_checkpoint_conversion_mapping", None))
        count = next((n for name in EXPERTS if isinstance(n := getattr(config, name, None), int) and n), 0)
        active = next((n for name in ACTIVE if isinstance(n := getattr(config, name, None), int) and n), 1)
        tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - {id(getattr(head, "weight", None))}
        read = {id(tensor) for part in (model.get_decoder(), head) if part is not None for tensor in part.state_dict(keep_vars=True).values()} - tables
        seen, self.tensors = set(), {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.ndim and id(tensor) not in seen:
                seen.add(id(tensor))
                routed = count and (re.search(r"(^|\.)experts\.", name) or tensor.ndim == 3 and len(tensor) == count)
                share = Fraction(active, count) if routed else Fraction(1)
                self.tensors[name] = Tensor(tuple(tensor.shape), share if id(tensor) in read else Fraction(0), _wide(model, name))
        start = self.settings.get("block_name_to_quantize") or next(
            (b for b in BLOCKS if any(n.startswith(b) for n, _ in model.named_modules())), "model.layers"
        )
        some = self.settings.get("modules_in_block_to_quantize")
        listed = tuple(sum(some, [])) if some else ("",)
        linear = {name: m for name, m in model.named_modules() if (type(m) is torch.nn.Linear or isinstance(m, Conv1D)) and name.startswith(start)}
        sizes = {name: tuple(m.weight.shape) if isinstance(m, Conv1D) else (m.in_features, m.out_features) for name, m in linear.items()}
        self.quantised = {name: size for name, size in sizes.items() if name.endswith(listed)}
        self.kept = _kept(model, config)

    @cached_property
    def converted(self):
        """The layers of which bitsandbytes makes 8 or 4 bits, by transformers' own choice: all linear ones but the head."""
        with machine.quiet():
            from transformers import BitsAndBytesConfig
            from transformers.integrations import replace_with_bnb_linear
            from transformers.quantizers.base import get_keys_to_not_convert

            model = _skeleton(self.folder)
            left = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
            replace_with_bnb_linear(model, left, BitsAndBytesConfig(load_in_8bit=True))
        return {name: (m.in_features, m.out_features) for name, m in model.named_modules() if type(m).__name__ == "Linear8bitLt"}

    def tensor_bytes(self, format, group_size=None):
        """{name: bytes} of all tensors in ``format``, a converted layer's integers and scales together; group_size: of GPTQ, by default the model's own.

        int8: 1 byte a weight and one float32 scale a row. nf4: half a byte a weight, one float32 scale for each 64 weights, rounded up, and the 16
        values of the code in float32. gptq: see ``packed``. Raises UnknownFormatError, or CheckpointError for sizes that a format cannot have.
        """
        if format not in FORMATS:
            raise UnknownFormatError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")
        layers = {"gptq": lambda: self.quantised, "int8": lambda: self.converted, "nf4": lambda: self.converted}.get(format, dict)()
        found = {}
        for name, tensor in self.tensors.items():
            layer, _, part = name.rpartition(".")
            if part != "weight" or layer not in layers:
                found[name] = math.prod(tensor.shape) * (4 if format in tensor.wide else 2)
            elif format == "gptq":
                found[name] = sum(math.prod(size) * width for size, width in self.packed(layer, group_size).values())
            else:
                n, m = layers[layer]
                found[name] = n * m + 4 * m if format == "int8" else -(-n * m // 2) + 4 * -(-n * m // 64) + 64
        return found

    def packed(self, layer, group_size=None):
        """{part: (shape, bytes a number)} of a GPTQ layer as it is stored: AutoGPTQ's layout. Raises CheckpointError where its integers fill no whole words."""
        (n, m), bits, group = self.quantised[layer], self.bits, group_size or self.group_size
        if wrong := [size for size in (n, m) if size * bits % 32]:
            raise CheckpointError(
                f"{layer} has {wrong[0]} inputs or outputs, of which GPTQ cannot fill whole words of 32 bits with {bits}-bit integers: take this model in bf16"
                " (step 2), in 8 bits (step 1) or in NF4."
            )
        groups = 1 if group == -1 else -(-n // group)
        return {"qweight": ((n * bits // 32, m), 4), "qzeros": ((groups, m * bits // 32), 4), "scales": ((groups, m), 2), "g_idx": ((n,), 4)}

    def weight_bytes(self, format, group_size=None):
        """Bytes of all tensors in ``format``."""
        return sum(self.tensor_bytes(format, group_size).values())

    def read_bytes(self, format, group_size=None):
        """Bytes that one decoded token must read at least: of the tables one row each, which is left out, and of the experts those that are active."""
        return int(sum(size * self.tensors[name].share for name, size in self.tensor_bytes(format, group_size).items()))

    def linears(self):
        """(in features, out features) of the linear layers of the first block, in the model's order."""
        first = re.match(r"(.*?\.)\d+\.", next(iter(self.quantised), ""))
        return [size for name, size in self.quantised.items() if first and name.startswith(first[0])]

    @property
    def linear_parameters(self):
        """Weights in the linear layers of all blocks: what GPTQ quantises."""
        return sum(n * m for n, m in self.quantised.values())

    @property
    def other_parameters(self):
        """Tables, head, norms, biases and fused experts: these stay in 16 bits in all formats."""
        return self.parameters - self.linear_parameters

    @property
    def exllama_bytes(self):
        """Bytes of the scratch space that ExLlamaV2 keeps beside the weights; see catalogue.Shape."""
        return max((2 * n * m + 4 * m * 8 * 2048 for n, m in self.quantised.values()), default=0) + 256

    @property
    def kv_bytes_per_token(self):
        """Bytes of keys and values that the cache keeps for one token, in 16 bits, while no window is full."""
        return sum(layer.bytes for layer in self.kept)

    def kv_bytes(self, context):
        """Bytes of the KV cache of a sequence of ``context`` tokens, in 16 bits: windows keep no more than they see."""
        return sum(layer.bytes * layer.tokens(context) + layer.state for layer in self.kept)

    def operations(self, context=0):
        """Floating-point operations of one token: 2 for each weight that it reads, and the attention over ``context``."""
        weights = sum(math.prod(tensor.shape) * tensor.share for tensor in self.tensors.values() if len(tensor.shape) > 1)
        return 2 * int(weights) + 2 * self.heads * sum(layer.width * layer.tokens(context) for layer in self.kept)


def _skeleton(folder):
    """The model of ``folder/config.json`` without weights, in bfloat16. Raises CheckpointError, one sentence that says what works, for what cannot be built."""
    raw = read_json(folder, "config.json")
    kind = raw.get("model_type")
    with machine.quiet():
        import torch
        import transformers
    problem, named = "", f"{folder} holds a {kind!r} model"
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        why = "whose code lies in its own repository, and the course runs no code of checkpoints" if raw.get("auto_map") else "which it does not know"
        raise CheckpointError(f"{named}, {why} (transformers {transformers.__version__}): {TAKE}.")
    try:
        with machine.quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.is_encoder_decoder:
            problem = f"{named}, an encoder with a decoder, and the course measures decoders alone: {TAKE}."
        elif type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or "ForMaskedLM" in str(raw.get("architectures")):
            problem = f"{named}, of which transformers has no decoder that writes text: {TAKE}."
        else:
            with machine.quiet(), torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
                model.tie_weights()  # transformers 5.0 has not done it
            if (layers := config.get_text_config(decoder=True).num_hidden_layers) > 0:
                return model
            raise ValueError(f"num_hidden_layers is {layers}")
    except Exception as error:
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        problem = f"{folder}/config.json describes no model that transformers can build ({words}): correct it, fetch it again, or take another checkpoint."
    raise CheckpointError(problem)


def _wide(model, name):
    """The formats in which transformers keeps the tensor ``name`` in 32 bits: for some models always, for some where the rest has float16."""
    always, half = ([key.replace("*", ".*") for key in keys or ()] for keys in (model._keep_in_fp32_modules_strict, model._keep_in_fp32_modules))
    if any(re.search(key, name) for key in always):
        return tuple(FORMATS)
    return tuple(format for format in FORMATS if format != "bf16") if any(re.search(key, name) for key in half) else ()


def _kept(model, config):
    """A Kept for each layer, from what the library's cache holds after one token has passed through the empty ``model``.

    Where the model cannot be run without numbers: as grouped queries keep it, heads and their width from ``config``.
    """
    import torch
    from transformers import DynamicCache

    for module in model.modules():
        if type(module).__name__.endswith("Experts"):  # which expert is taken would depend on numbers
            module.forward = lambda hidden, *_, **__: hidden
    cache, failed = DynamicCache(config=config), False
    try:
        with machine.quiet(), torch.no_grad():
            model.get_decoder()(input_ids=torch.zeros((1, 1), dtype=torch.long, device="meta"), past_key_values=cache, use_cache=True)
    except Exception:  # positions that look at numbers (longrope); transformers 5.0 asks torch for what the meta device has not
        failed = True
    queries = getattr(config, "num_attention_heads", 0)
    heads, width = getattr(config, "num_key_value_heads", None) or queries, getattr(config, "head_dim", None) or config.hidden_size // max(1, queries)
    found = []
    for layer in cache.layers:
        window, parts = getattr(layer, "sliding_window", None), [getattr(layer, name, None) for name in ("keys", "values")]
        parts = [torch.empty((1, heads, 1, width), device="meta")] * 2 if failed else [part for part in parts if part is not None]
        states = [getattr(layer, name, None) for name in ("conv_states", "recurrent_states")]
        states = [part for each in states for part in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else [each])]
        state = sum(part.nbytes for part in states if isinstance(part, torch.Tensor))
        found.append(Kept(2 * sum(part.numel() for part in parts), window and window - 1, state, sum(part.shape[-1] for part in parts)))
    return found
