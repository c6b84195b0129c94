"""How does a checkpoint become a GGUF file, what is in one, and how does llama.cpp run it?

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is one file with the sizes, the tokeniser and the weights. The package ``gguf``
writes it; the blocks of integers are computed by llama.cpp's own ``ggml_quantize_chunk``, which the wheels of xllamacpp export (but for Windows:
take a ready file there). Which tensor gets which type is llama.cpp's rule (src/llama-quant.cpp, ``llama_tensor_get_type``). The same wheel runs
it within this process. First used in notebook 11.
"""

import contextlib
import ctypes
import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

from helpers import machine, setup
from helpers.engines import timed
from helpers.errors import CheckpointError, PromptError, UnknownFormatError
from helpers.loading import library
from helpers.models import choose, files, hub
from helpers.models.catalogue import LINEARS, REAL, Shape, read_json
from helpers.timing import NEW_TOKENS, PROMPT, REPEATS

TYPES = {  # name: (matrices, output head, a share of attn_v and ffn_down); norms stay float32
    "F32": ("F32", "F32", "F32"),
    "F16": ("F16", "F16", "F16"),
    "BF16": ("BF16", "BF16", "BF16"),
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "Q4_0": ("Q4_0", "Q6_K", "Q4_0"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"),
}
PACKAGES = ("xllamacpp", "gguf")
OTHERWISE = (
    "take a ready GGUF file (llamacpp.ready finds one in a repository of the Hub), or llama.cpp's own converter, which knows all architectures:"
    " git clone --depth 1 https://github.com/ggml-org/llama.cpp, then python llama.cpp/convert_hf_to_gguf.py FOLDER --outtype bf16"
)
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256, the block of the K types
GREEDY = {  # in each request to llama.cpp: what one leaves out comes from the GGUF file's own settings, general.sampling.*
    "temperature": 0, "samplers": ["top_k", "temperature"], "top_k": 40, "mirostat": 0, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0,
    "dry_multiplier": 0, "xtc_probability": 0, "ignore_eos": True, "cache_prompt": False,
}  # fmt: skip
READY = {  # of an unquantised checkpoint on the Hub: the repository with its GGUF files, and their names
    "meta-llama/Llama-2-7b-hf": ("TheBloke/Llama-2-7B-GGUF", "llama-2-7b.{}.gguf"),
    "meta-llama/Llama-2-13b-hf": ("TheBloke/Llama-2-13B-GGUF", "llama-2-13b.{}.gguf"),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-{}.gguf"),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-{}.gguf"),
}


def file(step, type):
    """Return the path of the GGUF file of ``step``'s model in ``type`` (a key of TYPES): fetched ready on the tiers of the Hub, else made by ``write``."""
    if step.tier in REAL:
        _rule(type)
        repository, name = READY[getattr(step, step.tier)]
        return hub.fetch_file(repository, name.format(type if step.tier == "hub" else type.lower()))
    return write(choose.bring(step), type, setup.results_dir() / "gguf" / f"{step.place.rpartition('/')[2]}-{type}.gguf")


def ready(repository, type="Q4_K_M"):
    """Return the path of the GGUF file of ``type`` in a ``repository`` of the Hub, of whatever architecture, fetched unless it is in the cache.

    Such repositories have one file a type, which ends in its name. Raises CheckpointError, which names the files that are there.
    """
    names = sorted(name for name in hub.names(repository) if name.lower().endswith(".gguf"))
    found = [name for name in names if name.lower().endswith(f"{type.lower()}.gguf")]
    if len(found) != 1:
        there = f"its GGUF files are {', '.join(names)}" if names else "it has no GGUF file; those that have usually end in -GGUF"
        raise CheckpointError(f"{repository} has {len(found)} files of type {type}: {there}. Choose another type or repository.")
    return hub.fetch_file(repository, found[0])


def write(checkpoint, type, path=None, importance=None):
    """Write the unquantised Llama in the folder ``checkpoint`` as a GGUF file of ``type`` and return its path; show progress.

    path: by default ``gguf/NAME-TYPE.gguf`` in the results folder. importance: {name in the checkpoint: see ``quantise``}. A file that is newer
    than the checkpoint is used again. Raises CheckpointError if the folder can't be converted, UnknownFormatError, NotEnoughMemoryError if the disk is too small.
    """
    import gguf
    from tqdm.auto import tqdm

    _rule(type)
    checkpoint = Path(checkpoint)
    if (kind := read_json(checkpoint, "config.json").get("model_type")) != "llama":
        raise CheckpointError(f"{checkpoint} holds a model of type {kind}, and this converter writes Llamas: {OTHERWISE}.")
    Shape.from_config(checkpoint)  # Llamas as Llama-2 is one
    files.check_folder(checkpoint, "bf16")
    config = library.plain_llama(checkpoint, OTHERWISE, ropes=("default", "linear"))
    path = Path(path or setup.results_dir() / "gguf" / f"{checkpoint.name}-{type}.gguf")
    plan = _plan(checkpoint, type)
    with files.whole(path, lambda: files.newer(path, checkpoint), need=sum(size for *_, size in plan)) as partial:
        if partial:
            writer = gguf.GGUFWriter(partial, "llama")
            _describe(writer, checkpoint, config)
            for _, name, kind, shape, size in plan:
                writer.add_tensor_info(name, shape, "float32", size, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for source, name, kind, _, _ in tqdm(plan, desc=f"writing {path.name}"):
                writer.write_tensor_data(_blocks(_tensor(checkpoint, source), kind, (importance or {}).get(source)))
            writer.close()
    return path


def sizes(path):
    """Return (bytes of all tensors, bytes that one decoded token reads: all but the embedding table, of which it needs one row).

    Where the file has no head of its own, the table is the head too, and a token reads all of it.
    """
    tensors = {t.name: int(t.n_bytes) for t in reader(path).tensors}
    return sum(tensors.values()), sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)


def quantise(matrix, type, importance=None):
    """Return ``matrix`` (numpy, shape (rows, columns)) as rows of ggml's blocks (uint8). type: a ggml type, e.g. "Q4_K".

    importance: (columns,), by how much the square of an error counts in each column: llama.cpp's importance matrix (tools/imatrix).
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[type]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = matrix.shape[1]
    counts = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    if counts is not None and counts.shape != (columns,):
        raise UnknownFormatError(f"An importance of shape {counts.shape} does not fit rows of {columns} numbers: give one number for each column.")
    if columns % block:
        raise UnknownFormatError(f"Rows of {columns} numbers cannot be written as {type}: its blocks have {block}, so choose another type.")

    def blocks(rows):
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        found = np.empty((len(rows), columns // block * size), dtype=np.uint8)
        _ggml().ggml_quantize_chunk(int(kind), rows.ctypes.data, found.ctypes.data, 0, len(rows), columns, None if counts is None else counts.ctypes.data)
        return found

    with ThreadPoolExecutor(machine.cores()) as pool:  # the C function runs without Python's lock
        return np.concatenate(list(pool.map(blocks, np.array_split(matrix, machine.cores()))))


def _rule(type):
    if type not in TYPES:
        raise UnknownFormatError(f"This course writes no GGUF type {type!r}: choose one of {', '.join(TYPES)}.")
    return TYPES[type]


def more_bits(layer, layers):
    """Whether attn_v and ffn_down of block ``layer`` get more bits in a mixture (llama.cpp's use_more_bits)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _plan(checkpoint, type):
    """[(name in the checkpoint, name in GGUF, ggml type, shape, bytes)] of all tensors, in the order of the file."""
    import gguf

    shape = Shape.from_config(checkpoint)
    layers, (usual, head, special) = shape.num_hidden_layers, _rule(type)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    wanted = [("model.embed_tokens", (shape.vocab_size, shape.hidden_size), usual), ("lm_head", (shape.vocab_size, shape.hidden_size), head)]
    for n in range(layers):
        for linear, (inputs, outputs) in zip(LINEARS, shape.linears()):
            better = more_bits(n, layers) and linear.endswith(("v_proj", "down_proj"))
            wanted.append((f"model.layers.{n}.{linear}", (outputs, inputs), special if better else usual))
        wanted += [(f"model.layers.{n}.{norm}", (shape.hidden_size,), "F32") for norm in files.NORMS]
    wanted.append(("model.norm", (shape.hidden_size,), "F32"))
    settings, plan = read_json(checkpoint, "config.json"), []
    biased = [half for half, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")) if settings.get(key)]
    for name, sizes, kind in wanted:
        kind = gguf.GGMLQuantizationType[FALLBACK[kind] if kind in FALLBACK and sizes[-1] % 256 else kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
        plan.append((f"{name}.weight", f"{names.get_name(name)}.weight", kind, sizes, count // block * size))
        if len(sizes) == 2 and any(f".{half}." in name for half in biased):
            plan.append((f"{name}.bias", f"{names.get_name(name)}.bias", gguf.GGMLQuantizationType.F32, sizes[:1], 4 * sizes[0]))
    return plan


def _tokeniser(checkpoint):
    """Return (tokenizer.json, id that begins a text or None). Raises CheckpointError if the file's head cannot say all of what it does."""
    content, tokenizer = read_json(checkpoint, "tokenizer.json"), library.tokeniser(checkpoint)
    model, before, added = content.get("model", {}), content.get("pre_tokenizer") or {}, content.get("added_tokens") or []
    around, inside = library.encode(tokenizer, "a"), library.encode(tokenizer, "a", special=False)
    rows = Shape.from_config(checkpoint).vocab_size
    problems = {
        "is no byte-level BPE": model.get("type") != "BPE" or before.get("type") != "ByteLevel",
        "changes the text first (normalizer)": content.get("normalizer"),
        "splits text in another way (pre_tokenizer)": before.get("add_prefix_space") or not before.get("use_regex", True),
        "merges in another way": any(
            model.get(key) for key in ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
        ),
        "takes spaces into its added tokens": any(token.get(key) for token in added for key in ("lstrip", "rstrip", "single_word")),
        "puts more around a text than one token before it": around[len(around) - len(inside) :] != inside or len(around) > len(inside) + 1,
        "has tokens beyond the embedding table": max([*model.get("vocab", {}).values(), *(token["id"] for token in added)], default=0) >= rows,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise CheckpointError(f"{checkpoint} has a tokeniser that this converter does not know (it {found[0]}): take a ready GGUF file.")
    return content, around[0] if len(around) > len(inside) else None


def _describe(writer, checkpoint, config):
    """Write sizes and tokeniser into the file's head."""
    import gguf

    shape, (tokenizer, begin) = Shape.from_config(checkpoint), _tokeniser(checkpoint)
    model, added = tokenizer["model"], {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    rope = config.rope_parameters or {}
    writer.add_name(checkpoint.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_vocab_size(shape.vocab_size)
    tokens = {number: token for token, number in model["vocab"].items()} | {number: token["content"] for number, token in added.items()}
    kinds = {number: 3 if token["special"] else 4 for number, token in added.items()}  # control, the user's own
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of byte-level BPE
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens.get(n, f"[unused {n}]") for n in range(shape.vocab_size)])
    writer.add_token_types([kinds.get(n, 1 if n in tokens else 5) for n in range(shape.vocab_size)])  # normal, unused
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for number, add in ((config.bos_token_id if begin is None else begin, writer.add_bos_token_id), (ends[0] if ends else None, writer.add_eos_token_id)):
        if number is not None:
            add(number)
    writer.add_add_bos_token(begin is not None)


def _tensor(checkpoint, name):
    """The tensor ``name`` of a checkpoint folder as float32 (numpy).

    Rotary positions turn pairs of numbers in q and k: transformers pairs number i of a head with i + half, llama.cpp's pairs are neighbours.
    """
    tensor = files.read_tensor(checkpoint, name).float().numpy()
    if ".q_proj." in name or ".k_proj." in name:
        heads = read_json(checkpoint, "config.json")["num_attention_heads"]
        tensor = tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _blocks(tensor, kind, importance=None):
    """``tensor`` (float32) as the array of bytes or numbers that the file holds."""
    import gguf

    if kind.name in ("F32", "F16"):
        return tensor.astype(kind.name.replace("F", "float"))
    return gguf.quants.quantize(tensor, kind) if kind.name == "BF16" else quantise(tensor, kind.name, importance)


def reader(path):
    """Return the package gguf's reader of a GGUF file, which has its ``tensors``. Raises CheckpointError if the file is damaged."""
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise CheckpointError(f"{path} is no complete GGUF file ({(str(error) or type(error).__name__).splitlines()[0]}): write or fetch it again.") from None


@lru_cache(maxsize=1)
def _ggml():
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):  # the wheel for Windows
        raise CheckpointError("llama.cpp's package for this system cannot quantise: take a ready GGUF file, type F16 or BF16, or work in WSL.")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


def load(path, threads=None, context=None, **settings):
    """Load a GGUF file on the CPU and return the xllamacpp.Server that answers for it (``server.listening_address``: on 127.0.0.1).

    threads: by default what choose.threads says of the file's sizes. context: tokens, by default the model's own. settings: more of
    xllamacpp.CommonParams. Raises CheckpointError if the file is missing or damaged.
    """
    import xllamacpp

    if not Path(path).is_file():
        raise CheckpointError(f"There is no file {path}: write it with llamacpp.write, or fetch it.")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = _threads(path) if threads is None else threads
    chosen = {"n_ctx": context or 0, "n_gpu_layers": 0, "fit_params": False, "ui": False, "verbosity": -1, "warmup": False}
    for name, value in (chosen | settings).items():
        setattr(parameters, name, value)
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError:
        taken = f", and that port {settings['port']} is free" if "port" in settings else ""
        raise CheckpointError(f"llama.cpp cannot load {path}: check that it is a complete GGUF file of a model that fits into the memory{taken}.") from None


def _threads(path):
    """As many threads as the course chooses for the sizes in the head of the GGUF file ``path``."""
    sizes = []
    with contextlib.suppress(CheckpointError, KeyError):  # llama.cpp says what it cannot read, and may know newer types
        fields = reader(path).fields
        kind = fields["general.architecture"].contents()
        sizes = [fields[f"{kind}.{name}"].contents() for name in ("embedding_length", "feed_forward_length", "block_count")]
    return choose.threads_of(*sizes)


def answer(server, ids, new_tokens, arrived=lambda text: None, **options):
    """Decode ``new_tokens`` tokens greedily after the prompt ``ids`` (list of int) and return (new ids, the chunks that came with them).

    arrived: called with the text of each new token. No end of text, no use of an earlier prompt's cache. options: more of llama.cpp's request,
    e.g. n_probs. Raises PromptError if llama.cpp refuses the request.
    """
    chunks = []

    def receive(chunk):
        if "error" not in chunk and chunk["choices"][0]["finish_reason"] is None:
            arrived(chunk["choices"][0]["text"])
        chunks.append(chunk)

    request = GREEDY | {"prompt": ids, "max_tokens": new_tokens, "stream": True, "verbose": True, "return_tokens": True}
    server.handle_completions(request | options, receive)
    if refused := [chunk["error"]["message"] for chunk in chunks if "error" in chunk]:
        raise PromptError(f"llama.cpp refused the request: {refused[0]}. Take a shorter prompt or fewer tokens, or other options.")
    return [token for chunk in chunks for token in chunk["__verbose"]["tokens"]], chunks


def work(job):
    """Measure a GGUF file in this process, which timed.apart started; return what that reads. job: path, threads, new_tokens (by default PROMPT's).

    Besides, engine_tpot_s: a token by llama.cpp's own clock, the median of the last calls.
    """
    own, new_tokens = [], job.get("new_tokens", NEW_TOKENS)

    def begin():
        server = load(job["path"], job["threads"], context=256)

        def decode(count, arrived):
            new, chunks = answer(server, ids, count, arrived)
            own.append(chunks[-1]["timings"]["predicted_per_token_ms"] / 1000)
            return new, own[-1] * (len(new) - 1)

        ids = tokenise(server, PROMPT)
        return decode, ids, lambda new: detokenise(server, new)

    found = timed.work("xllamacpp", begin, job["threads"], new_tokens)
    return found | {"more": found["more"] | {"engine_tpot_s": median(own[-REPEATS:])}}


def log_probabilities(server, ids, vocabulary):
    """Return the log-probabilities (numpy, float64, shape (vocabulary,)) of the token after ``ids``: the logits less one constant."""
    import numpy as np

    _, chunks = answer(server, ids, 1, n_probs=vocabulary, ignore_eos=False)
    found = np.full(vocabulary, np.nan)
    for entry in chunks[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def tokenise(server, text):
    """Return the token ids (list of int) of ``text`` by the file's own tokeniser, begin-of-sequence first."""
    return _ask(server, "tokenize", content=text, add_special=True)["tokens"]


def detokenise(server, ids):
    """Return the text of ``ids``."""
    return _ask(server, "detokenize", tokens=ids)["content"]


def _ask(server, path, **content):
    """The answer of one of the server's HTTP addresses, on this machine."""
    request = Request(f"{server.listening_address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)
