"""Which model does a step load, and how large is it?

The catalogue is data: the article's four steps and variants that change one thing of them, each with one checkpoint per tier. Sizes are
computed from the model's shape, not looked up: here by formulas for Llamas, in ``sizes`` for any decoder. To add a format, give it a name in
FORMATS, its bytes in ``Shape.weight_bytes`` and ``sizes``, a variant here, and its arguments in ``loading``. First used in notebook 04.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import ROOT
from helpers.errors import CheckpointError, UnknownFormatError

CHECKPOINTS = ROOT / "data" / "checkpoints"
PACKED = (2, 3, 4, 8)  # bits that GPTQ checkpoints have
FORMATS = {"bf16": "bf16", "fp16": "fp16", "int8": "8-bit", "nf4": "NF4", "gptq": "GPTQ"}  # name in code: name in tables
LINEARS = (  # of one block, in the order of Shape.linears
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def read_json(folder, name):
    """Return the JSON object in ``folder/name``. Raises CheckpointError if there is none."""
    try:
        content = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder} has no readable {name}: it is not a checkpoint, or a download was cut off: check the path, or fetch it again.")
    return content


@dataclass(frozen=True)
class Shape:
    """The sizes in a Llama's ``config.json`` that decide how many bytes it has.

    kv_size: width of the keys, and of the values, of one token, where they are narrower than the model: grouped-query attention (Ainslie et
    al., 2023, https://arxiv.org/abs/2305.13245). tied: whether embedding and output head are one table. biases: numbers that the linear
    layers of one block add. bits, group_size: of the integers of a GPTQ checkpoint; group_size -1 is one group for a whole row.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int = 32000
    kv_size: int = 0
    tied: bool = False
    biases: int = 0
    bits: int = 4
    group_size: int = 128
    NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads")  # of config.json, none of which may be missing

    @classmethod
    def from_config(cls, folder):
        """Read the shape from ``folder/config.json``. Raises CheckpointError unless it is a Llama as Llama-2 7B and 13B are; ``sizes.of`` knows others."""
        config = read_json(folder, "config.json")
        if config.get("model_type") != "llama":
            raise CheckpointError(f"{folder} holds a {config.get('model_type')!r} model: this needs a Llama's checkpoint, so take one of those.")
        *sizes, heads = (config.get(name) for name in cls.NAMES)
        if wrong := [name for name, size in zip(cls.NAMES, (*sizes, heads)) if type(size) is not int or size < 1]:
            raise CheckpointError(
                f"{folder}/config.json lacks a size of the model, or it is no whole number ({wrong[0]} is {config.get(wrong[0])!r}): fetch or build the"
                " checkpoint again."
            )
        key_heads, tied = config.get("num_key_value_heads"), config.get("tie_word_embeddings")
        if key_heads not in (None, heads) or tied:
            raise CheckpointError(
                f"{folder} has grouped-query attention or a tied head (num_key_value_heads is {key_heads!r} of {heads}, tie_word_embeddings {tied!r}): this course"
                " knows Llama-2 7B's and 13B's architecture, so take a checkpoint of those."
            )
        hidden, intermediate = sizes[:2]
        if (hidden // heads if config.get("head_dim") is None else config["head_dim"]) * heads != hidden:
            raise CheckpointError(
                f"{folder} has heads that are not {hidden} / {heads} wide: this course knows Llama-2's architecture, so take such a checkpoint."
            )
        biases = 4 * hidden * bool(config.get("attention_bias")) + (2 * intermediate + hidden) * bool(config.get("mlp_bias"))
        return cls(*sizes, biases=biases)

    def linears(self):
        """(in features, out features) of the seven linear layers of one block: q, k, v, o, gate, up, down."""
        h, i, kv = self.hidden_size, self.intermediate_size, self.kv_size or self.hidden_size
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    @property
    def linear_parameters(self):
        """Weights in the linear layers of all blocks: what 8-bit and GPTQ quantise."""
        return self.num_hidden_layers * sum(n * m for n, m in self.linears())

    @property
    def other_parameters(self):
        """Embedding table, output head, norms and biases: these stay in 16 bits in all formats."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return (2 - self.tied) * self.vocab_size * self.hidden_size + norms + self.num_hidden_layers * self.biases

    @property
    def parameters(self):
        """All parameters of the unquantised model."""
        return self.linear_parameters + self.other_parameters

    def weight_bytes(self, format, group_size=None):
        """Bytes of all tensors in ``format``; group_size: of GPTQ, by default the shape's own.

        bf16, fp16: 2 bytes a parameter. int8 (LLM.int8(), https://arxiv.org/abs/2208.07339): 1 byte a weight and one float32 scale a row.
        nf4 (QLoRA, https://arxiv.org/abs/2305.14314): half a byte a weight and one float32 scale for each 64 weights.
        gptq (https://arxiv.org/abs/2210.17323, layout of AutoGPTQ): ``bits`` a weight; for each group of ``group_size`` inputs and each
        output one float16 scale and a zero point of as many bits; and for each input an int32 group index.
        """
        rest = 2 * self.other_parameters
        if format in ("bf16", "fp16"):
            return 2 * self.linear_parameters + rest
        if format == "int8":
            return self.linear_parameters + self.num_hidden_layers * sum(4 * m for _, m in self.linears()) + rest
        if format == "nf4":
            return self.linear_parameters // 2 + self.linear_parameters // 64 * 4 + rest
        if format == "gptq":
            group = group_size or self.group_size
            groups = {n: 1 if group == -1 else -(-n // group) for n, _ in self.linears()}
            block = sum((n + groups[n]) * m * self.bits // 8 + 2 * groups[n] * m + 4 * n for n, m in self.linears())
            return self.num_hidden_layers * block + rest
        raise UnknownFormatError(f"There is no format {format!r}: choose one of {', '.join(FORMATS)}.")

    @property
    def exllama_bytes(self):
        """Bytes of the scratch space that ExLlamaV2 keeps beside the weights, 4 a token and output of the widest layer, for 8 x 2048 tokens.

        And that layer's weights in float16 (gptqmodel's ExllamaV2Linear.scratch_space_fixed): 812 MB for Llama-2 7B, 1,048 MB for 13B.
        """
        return max(2 * n * m + 4 * m * 8 * 2048 for n, m in self.linears()) + 256

    def kv_bytes(self, context):
        """Bytes of the KV cache of a sequence of ``context`` tokens, in 16 bits."""
        return context * self.kv_bytes_per_token

    @property
    def kv_bytes_per_token(self):
        """Bytes of keys and values that the cache keeps for one token, in 16 bits: 2 for each layer."""
        return 2 * self.num_hidden_layers * (self.kv_size or self.hidden_size) * 2

    def read_bytes(self, format, group_size=None):
        """Bytes that one decoded token must read at least: all but the embedding table, of which it needs one row; a tied one is the head too."""
        return self.weight_bytes(format, group_size) - (0 if self.tied else 2 * self.vocab_size * self.hidden_size)

    def operations(self, context=0):
        """Floating-point operations of one token: 2 for each weight of the linear layers and the head, and the attention over ``context``."""
        return 2 * (self.linear_parameters + self.vocab_size * self.hidden_size) + 4 * self.num_hidden_layers * self.hidden_size * context


def settings(folder):
    """Return the quantization_config of ``folder/config.json``, {} without one. Raises CheckpointError if it is no object, or names blocks by no text."""
    found = read_json(folder, "config.json").get("quantization_config") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder}/config.json has a quantization_config that is no object ({found!r:.40}): fetch or build the checkpoint again.")
    if not isinstance(blocks := found.get("block_name_to_quantize") or "", str):
        raise CheckpointError(f"{folder}/config.json has a block_name_to_quantize that is no text ({blocks!r:.40}): correct it, or take it out.")
    return found


def packing(folder, settings):
    """{bits, group_size} of a checkpoint's quantization_config ``settings``, {} where it is not GPTQ's. Raises CheckpointError for what nobody can read."""
    if settings.get("quant_method") != "gptq":
        return {}
    bits, group = settings.get("bits"), settings.get("group_size", 128)
    mixed = [name for name in ("dynamic", "lm_head") if settings.get(name)]
    some = settings.get("modules_in_block_to_quantize")
    if some and not (isinstance(some, list) and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in some)):
        mixed.append("modules_in_block_to_quantize, which is no list of lists of names")
    if mixed:
        problem = f"its layers are not all quantised alike ({mixed[0]})"
    elif type(bits) is not int or bits not in PACKED:
        problem = f"its bits are {bits!r}, and GPTQ checkpoints that today's libraries read have {', '.join(map(str, PACKED[:-1]))} or {PACKED[-1]}"
    elif type(group) is not int or group != -1 and group < 1:
        problem = f"its group_size is {group!r}, which is neither a whole number above 0 nor -1"
    else:
        return {"bits": bits, "group_size": group}
    raise CheckpointError(f"The figures of {folder} cannot be computed, because {problem}: take a GPTQ checkpoint with one setting for all layers.")


LLAMA_2 = {"7B": Shape(4096, 11008, 32), "13B": Shape(5120, 13824, 40)}
QWEN_2_5 = {  # Qwen2.5-0.5B and -1.5B (https://arxiv.org/abs/2412.15115), in the places of the article's two sizes; biases: of q, k and v
    "7B": Shape(896, 4864, 24, 151936, kv_size=128, tied=True, biases=896 + 2 * 128),
    "13B": Shape(1536, 8960, 28, 151936, kv_size=256, tied=True, biases=1536 + 2 * 256),
}
REAL = {"hub": LLAMA_2, "laptop": QWEN_2_5}  # {tier: {the article's size: Shape}} of the checkpoints that are fetched


@dataclass(frozen=True)
class Step:
    """One step of the article: plain data. ``choose.get_step`` adds the tier and the checkpoint that this machine can use.

    number: 1 to 4, or 0 for a variant, whose key in VARIANTS is ``name``. model: "7B" or "13B", the Llama-2 that the step is about.
    format: how the weights are stored, one of FORMATS. dtype: type of the activations (for GPTQ on a GPU only, see
    loading.load_arguments). hub, embedded, laptop: the step's checkpoint on these tiers. tier: the chosen one of choose.TIERS, or "own" for
    another checkpoint of the reader's. checkpoint: the Hub id or folder that is loaded. note: why it is this one, in a sentence, where
    that needs saying. detail: what a variant changes, in words. threshold: from which size on LLM.int8() computes an input in 16 bits
    (0: none). kernel: gptqmodel's name of the kernel that is asked for, "" for the course's choice (``kernels``).
    """

    number: int
    model: str
    format: str
    dtype: str
    hub: str
    embedded: str
    laptop: str
    tier: str = ""
    checkpoint: str = ""
    revision: str = "main"
    note: str = ""
    name: str = ""
    detail: str = ""
    threshold: float = 6.0
    kernel: str = ""

    @property
    def key(self):
        """What ``get_step`` was asked for: the number, or a variant's name."""
        return self.name or self.number

    @property
    def title(self):
        """Short name for tables and charts, e.g. "7B 8-bit"; a stand-in never has Llama-2's name, e.g. "small 8-bit", "Qwen2.5-0.5B 8-bit"."""
        model = self.model
        if self.tier == "laptop":
            model = Path(self.laptop).name.split("-Instruct")[0]
        if self.tier in ("embedded", "own"):
            model = Path(self.checkpoint).name.removesuffix("-gptq")
        return " ".join(filter(None, [model, FORMATS[self.format], self.packing, self.detail]))

    packing = ""  # of a GPTQ checkpoint that is not packed as the article's are; see choose.Chosen


BASE = "meta-llama/Llama-2-7b-hf", "small", "Qwen/Qwen2.5-0.5B-Instruct"  # on the tiers hub, embedded, laptop
STEPS = {
    1: Step(1, "7B", "int8", "float16", *BASE),
    2: Step(2, "7B", "bf16", "bfloat16", *BASE),
    3: Step(3, "7B", "gptq", "float16", "TheBloke/Llama-2-7b-Chat-GPTQ", "small-gptq", "Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4"),
    4: Step(4, "13B", "gptq", "float16", "TheBloke/Llama-2-13B-GPTQ", "large-gptq", "Qwen/Qwen2.5-1.5B-Instruct-GPTQ-Int4"),
}
LARGE = {"model": "13B", "hub": "meta-llama/Llama-2-13b-hf", "embedded": "large", "laptop": "Qwen/Qwen2.5-1.5B-Instruct"}
KERNELS = ("torch", "torch_aten", "triton", "exllama_v2", "marlin")  # for 4-bit GPTQ; torch_aten for CPUs, the last three for GPUs
VARIANTS = {  # each changes one thing of one of the four
    "int8-no-outliers": replace(STEPS[1], detail="without outliers", threshold=0.0),
    "fp16": replace(STEPS[2], format="fp16", dtype="float16"),
    "nf4": replace(STEPS[1], format="nf4"),
    **{f"gptq-{kernel}": replace(STEPS[3], detail=f"({kernel})", kernel=kernel) for kernel in KERNELS},
    "13b-bf16": replace(STEPS[2], **LARGE),
    "13b-int8": replace(STEPS[1], **LARGE),
    "13b-nf4": replace(STEPS[1], format="nf4", **LARGE),
}
