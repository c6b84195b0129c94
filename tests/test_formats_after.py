"""Formats after the article, as notebook 16 builds them: perplexity and KL divergence against a second calculation of everything.

That one is numpy and loops: a Llama, roundings and unpackings that share no line with the notebook, helpers or transformers.
"""

import copy
import math

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.book import functions

from helpers import quality, timing
from helpers.engines import llamacpp
from helpers.errors import CheckpointError, UnknownFormatError
from helpers.models import catalogue, choose
from helpers.quantise import formats

SMALL = catalogue.CHECKPOINTS / "small"
LAYERS, HEADS, EACH = 4, 4, 64
FIRST = "model.layers.0.self_attn.q_proj"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
WHICH = ("as shipped", "without outliers")


@pytest.fixture(scope="module")
def book():
    """What notebook 16 defines, with the variables that its functions read."""
    step = choose.get_step(2, tier="embedded")
    model, tokenizer = formats.load(step.checkpoint)
    encoded = quality.encode(tokenizer, quality.lines())
    models = {WHICH[0]: model, WHICH[1]: formats.without_outliers(model)}
    used = {
        "copy": copy,
        "formats": formats,
        "llamacpp": llamacpp,
        "quality": quality,
        "timing": timing,
        "math": math,
        "np": np,
        "gguf": gguf,
        "step": step,
        "models": models,
    }
    used |= {"tokenizer": tokenizer, "found": {}, "METHODS": {}, "ALPHAS": [n / 20 for n in range(20)], "encoded": encoded}
    used |= {"inputs": {which: formats.inputs(each, tokenizer) for which, each in models.items()}}
    used["texts"] = dict.fromkeys(models, (encoded, quality.keep(model, encoded)))
    from transformers import AttentionInterface, AttentionMaskInterface

    return functions("16", AttentionInterface=AttentionInterface, AttentionMaskInterface=AttentionMaskInterface, **used)


@pytest.fixture(scope="module")
def plain(book):
    """{which: {name: array}}: the two models' tensors, and under "reference" the log-probabilities of the unquantised one."""
    found = {which: {name: t.double().numpy() for name, t in model.state_dict().items()} for which, model in book["models"].items()}
    found["reference"] = [log_softmax(llama(found[WHICH[0]], ids)) for ids in book["encoded"]]
    return found


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x):
    """Rotary positions, (tokens, heads, each)."""
    angle = np.arange(len(x))[:, None] / 10000 ** (np.arange(EACH // 2) / (EACH // 2))
    cos, sin, half = np.cos(angle)[:, None], np.sin(angle)[:, None], EACH // 2
    return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def llama(w, ids, linear=None, cache=lambda x: x):
    """Logits, (tokens, vocabulary). linear(name, x, W): the product of a linear layer; cache: what becomes of keys and values. float64."""
    linear = linear or (lambda name, x, W: x @ W.T)
    x = w["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        p = f"model.layers.{n}."

        def product(name, x):
            return linear(p + name, x, w[f"{p}{name}.weight"])  # noqa: B023

        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (product(f"self_attn.{name}_proj", h).reshape(len(ids), HEADS, EACH) for name in "qkv")
        q, k, v = turned(q), cache(turned(k)), cache(v)
        scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(EACH)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(len(ids), -1)
        x = x + product("self_attn.o_proj", mixed)
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = product("mlp.gate_proj", h)
        x = x + product("mlp.down_proj", gate / (1 + np.exp(-gate)) * product("mlp.up_proj", h))
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def figures(w, book, plain, **how):
    """(perplexity, mean KL divergence) by hand."""
    losses, kl = [], []
    for ids, p in zip(book["encoded"], plain["reference"]):
        q = log_softmax(llama(w, ids, **how))
        losses += [-q[place, token] for place, token in enumerate(ids[1:])]
        kl += list((np.exp(p) * (p - q)).sum(-1)[:-1])
    return math.exp(np.mean(losses)), np.mean(kl)


def changed(w, quantiser):
    """``w`` with each linear layer's matrix as ``quantiser`` leaves it."""
    return {name: quantiser(name.removesuffix(".weight"), W) if "_proj" in name else W for name, W in w.items()}


# Where inputs are rounded too, sums of 32 and of 64 bits let some fall to the other side. Over all the text that levels out to less than 1 % (on an
# Intel Xeon; over an eighth of it to 2.4 %); which ones fall depends on the processor.
ACTIVATIONS = 0.02


def same(theirs, ours, tolerance=0.01):
    """Perplexity and KL divergence agree."""
    assert abs(theirs["perplexity"] / ours[0] - 1) < min(tolerance, 0.01), (theirs["perplexity"], ours[0])
    assert abs(theirs["kl_mean"] / ours[1] - 1) < tolerance, (theirs["kl_mean"], ours[1])


def tried(book, which, method):
    """The figures of a method, by the notebook's own try_out; the model's linear layers have got no smaller in it."""
    book["METHODS"]["method"] = method
    book["try_out"]("method", which)
    return book["found"]["method", which]


def blocks(W, size, function):
    """``W`` with ``function`` done to the pieces of ``size`` neighbours of a row: an array (pieces, size)."""
    return function(np.asarray(W, np.float32).reshape(-1, size)).reshape(W.shape)


def top(x):
    return np.abs(x).max(-1, keepdims=True)


def sixteen(x):
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = np.maximum((high - low) / 15, 1e-5).astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    return (np.clip(np.rint(x / scale) + zero, 0, 15) - zero) * scale


def nearest(x, points):
    """The nearest of the ``points`` (all that are not negative, ascending) to each number; of two equally near ones the one with the even place."""
    points = np.asarray(points, np.float64)
    found = np.clip(np.searchsorted(points, np.abs(x)), 1, len(points) - 1)
    below, above = np.abs(x) - points[found - 1], points[found] - np.abs(x)
    return np.sign(x) * points[np.where((above < below) | ((above == below) & (found % 2 == 0)), found, found - 1)]


def minifloat(exponents, mantissas, count):
    """The first ``count`` numbers of a float, from its definition."""
    bias = 2 ** (exponents - 1) - 1
    step = [math.ldexp(n, 1 - bias - mantissas) for n in range(2**mantissas)]
    while len(step) < count:
        exponent = len(step) // 2**mantissas - bias
        step += [math.ldexp(2**mantissas + n, exponent - mantissas) for n in range(2**mantissas)]
    return step[:count]


E4M3, E5M2 = minifloat(4, 3, 127), minifloat(5, 2, 124)


def by_row(x, points):
    x = np.asarray(x, np.float32)  # scales and quotients have 32 bits: what lies between two numbers falls to the same side
    scale = top(x) / np.float32(points[-1])
    return nearest(x / scale, points) * scale


def microscaled(x):
    scale = 2.0 ** (np.floor(np.log2(top(x).astype(np.float64))) - 2)
    return nearest(x / scale, E2M1) * scale


def nv(W):
    whole = np.abs(W).max() / np.float32(448 * 6)

    def each(x):
        scale = np.maximum(nearest(top(x) / np.float32(6) / whole, E4M3), 2**-9) * whole
        return nearest(x / scale, E2M1) * scale

    return blocks(W, 16, each)


WEIGHTS = {  # name: (the notebook's quantiser, ours)
    "rounding": (lambda b: b["weights_only"](b["rounded"]), lambda W: blocks(W, 128, sixteen)),
    "int8": (lambda b: b["weights_only"](b["eight_bits"]), lambda W: blocks(W, W.shape[1], lambda x: by_row(x, range(128)))),
    "e4m3": (lambda b: b["fp8"](b["torch"].float8_e4m3fn), lambda W: blocks(W, W.shape[1], lambda x: by_row(x, E4M3))),
    "e5m2": (lambda b: b["fp8"](b["torch"].float8_e5m2), lambda W: blocks(W, W.shape[1], lambda x: by_row(x, E5M2))),
    "MXFP4": (lambda b: b["weights_only"](b["mxfp4"]), lambda W: blocks(W, 32, microscaled)),
    "NVFP4": (lambda b: b["weights_only"](b["nvfp4"]), nv),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, which, book, plain):
    method, ours = WEIGHTS[name]
    same(tried(book, which, method(book)), figures(changed(plain[which], lambda _, W: ours(W)), book, plain))


def test_the_numpy_llama_is_the_model(book, plain):
    figure, kl = figures(plain[WHICH[0]], book, plain)
    theirs, _ = quality.score(*[book["texts"][WHICH[0]][1]] * 2)
    assert kl == 0 and abs(theirs["perplexity"] / figure - 1) < 1e-5
    assert figures(plain[WHICH[1]], book, plain)[1] < 1e-10


def rounded_inputs(x, largest):
    x = np.asarray(x, np.float32)
    scale = top(x) / np.float32(largest)
    return np.rint(x / scale).astype(np.float64), scale.astype(np.float64)


def integers(bits, inputs=lambda name, x: x, weights=lambda name, W: W):
    """The product of a linear layer from integers of ``bits`` bits on both sides."""
    largest, known = 2 ** (bits - 1) - 1, {}

    def linear(name, x, W):
        a, first = rounded_inputs(inputs(name, x), largest)
        known[name] = known.get(name) or rounded_inputs(weights(name, W), largest)
        b, second = known[name]
        return a @ b.T * first * second.T

    return linear


def largest_inputs(w, book):
    """{name: largest input of each channel} over the notebook's 16 windows."""
    seen = {}

    def linear(name, x, W):
        seen[name] = np.maximum(seen.get(name, 0), np.abs(x).max(0))
        return x @ W.T

    for ids in formats.windows(book["tokenizer"], formats.calibration_text(), 16).tolist():
        llama(w, ids, linear)
    return seen


def hadamard(n, block=256):
    rows = [[(-1) ** (i & j).bit_count() if i // block == j // block else 0 for j in range(n)] for i in range(n)]
    return np.array(rows) / math.sqrt(block)


@pytest.mark.parametrize("which", WHICH)
def test_both_sides_in_integers(which, book, plain):
    w = plain[which]
    same(tried(book, which, book["both"]()), figures(w, book, plain, linear=integers(8)), ACTIVATIONS)
    turns = {n: hadamard(n) for n in (256, 768)}
    by_turns = integers(4, *2 * [lambda name, x: x @ turns[x.shape[1]]])
    same(tried(book, which, book["both"](4, turned=True)), figures(w, book, plain, linear=by_turns), ACTIVATIONS)


@pytest.mark.parametrize("which", WHICH)
def test_smoothing(which, book, plain):
    """Here nothing is folded into the layer before: inputs are divided where they are read."""
    w, seen = plain[which], largest_inputs(plain[which], book)
    together = {name: name for name in seen}
    for n in range(LAYERS):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            together |= {f"model.layers.{n}.{name}": [f"model.layers.{n}.{each}" for each in group] for name in group}

    def scale(name):
        names = together[name] if isinstance(together[name], list) else [name]
        return np.sqrt(seen[name] / np.abs(np.concatenate([w[f"{each}.weight"] for each in names])).max(0))

    scales = {name: scale(name) for name in seen}
    # v's and up's rows are smaller by what o and down multiply; rows have scales of their own, so that changes nothing
    ours = integers(8, lambda name, x: x / scales[name], lambda name, W: W * scales[name])
    same(tried(book, which, book["both"](prepare=book["smooth"])), figures(w, book, plain, linear=ours), ACTIVATIONS)


@pytest.mark.parametrize("which", WHICH)
def test_fp8_on_both_sides(which, book, plain):
    w = changed(plain[which], lambda _, W: by_row(W, E4M3))
    ours = figures(w, book, plain, linear=lambda _, x, W: by_row(x, E4M3) @ W.T)
    same(tried(book, which, book["both"](kind=book["torch"].float8_e4m3fn)), ours, ACTIVATIONS)


def cache_8(x):
    scale = top(x) / 127
    return np.rint(x / scale) * scale.astype(np.float16).astype(np.float64)


def cache_4(x):
    scale = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1) / -8
    return (np.clip(np.floor(x / scale + 8.5), 0, 15) - 8) * scale.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_0 rotated"])
def test_cache(name, which, book, plain):
    kind, H = {"q8_0": cache_8, "q4_0": cache_4, "q4_0 rotated": cache_4}[name], hadamard(EACH, EACH) if "rotated" in name else np.eye(EACH)

    def cache(x):
        return kind((x @ H).reshape(len(x), HEADS, 2, 32)).reshape(x.shape) @ H.T

    turn = book["torch"].tensor(H).float()
    theirs = book[name.split()[0]]
    same(
        tried(book, which, book["cached"](name.replace(" ", "_"), lambda x: theirs(x @ turn) @ turn.T)),
        figures(plain[which], book, plain, cache=cache),
        ACTIVATIONS,
    )


def q4_k(data, columns):
    """Blocks of Q4_K unpacked, bit by bit (ggml-quants.c, dequantize_row_q4_K)."""
    out = []
    for block in data.reshape(-1, 144):
        d, low = (float(block[at : at + 2].copy().view(np.float16)[0]) for at in (0, 2))
        packed, nibbles = [int(b) for b in block[4:16]], block[16:].astype(int)
        for part in range(8):
            if part < 4:
                scale, least = packed[part] & 63, packed[part + 4] & 63
            else:
                scale = packed[part + 4] & 15 | packed[part - 4] >> 6 << 4
                least = packed[part + 4] >> 4 | packed[part] >> 6 << 4
            chunk = nibbles[part // 2 * 32 : part // 2 * 32 + 32] >> 4 * (part % 2) & 15
            out.append(d * scale * chunk - low * least)
    return np.concatenate(out).reshape(-1, columns)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("with_matrix", [False, True])
def test_q4_k(with_matrix, which, book, plain):
    w, squares, tokens = plain[which], {}, 0

    def look(name, x, W):
        squares[name] = squares.get(name, 0) + (x * x).sum(0)
        return x @ W.T

    for ids in formats.windows(book["tokenizer"], formats.calibration_text(), 16).tolist():
        llama(w, ids, look)
        tokens += len(ids)
    counts = {name: book["importance"](X) for name, X in book["inputs"][which].items()}
    assert all(np.allclose(squares[name] / tokens, counts[name], rtol=1e-4) for name in squares)
    # llama.cpp tries many scales: from here on with the same numbers, because the last bit of one can decide between two that are as good
    ours = changed(w, lambda name, W: q4_k(llamacpp.quantise(W, "Q4_K", counts[name] if with_matrix else None), W.shape[1]))
    method = book["weights_only"](lambda W, X: book["q4_k"](W, book["importance"](X) if with_matrix else None))
    same(tried(book, which, method), figures(ours, book, plain))


def test_importance_counts_columns(plain):
    W = plain[WHICH[0]][f"{FIRST}.weight"]
    counts = np.ones(256, np.float32)
    counts[:8] = 1e4

    def wrong(importance):
        return np.square(q4_k(llamacpp.quantise(W, "Q4_K", importance), 256) - W)[:, :8].sum()

    assert wrong(counts) < 0.7 * wrong(None)
    with pytest.raises(UnknownFormatError, match="one number for each column"):
        llamacpp.quantise(W, "Q4_K", counts[:100])


def test_a_file_with_importance(book, tmp_path):
    """Same bytes as without, other integers; llama.cpp reads it."""
    matrix = {f"{name}.weight": book["importance"](X) for name, X in book["inputs"][WHICH[0]].items()}
    files = [llamacpp.write(SMALL, "Q4_K_M", tmp_path / f"{n}.gguf", each) for n, each in enumerate((None, matrix))]
    assert llamacpp.sizes(files[0]) == llamacpp.sizes(files[1])
    data = [{t.name: t.data.tobytes() for t in llamacpp.reader(file).tensors} for file in files]
    differ = {name for name in data[0] if data[0][name] != data[1][name]}
    assert "blk.0.attn_q.weight" in differ and not differ & {"token_embd.weight", "output.weight", "output_norm.weight"}


def unpacked(tensors, name):
    """The weights of an AWQ file's layer, number by number."""
    q, z, s = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    W = np.zeros((s.shape[1], len(q)))
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        codes, zeros = (each.view(np.uint32) >> np.uint32(4 * place) & np.uint32(15) for each in (q, z))
        for i in range(len(q)):
            W[output::8, i] = (codes[i].astype(float) - zeros[i // 128]) * s[i // 128, output::8].astype(float)
    return W


@pytest.fixture(scope="module")
def awq_folder(book, tmp_path_factory):
    import torch

    model, folder = copy.deepcopy(book["models"][WHICH[0]]), tmp_path_factory.mktemp("awq") / "small-awq"
    with torch.no_grad():
        book["scale_inputs"](model, book["inputs"][WHICH[0]])
        packed = {name: [part.flatten(1) for part in book["to_16_values"](layer.weight)] for name, layer in formats.linears(model).items()}
    return folder, formats.write_awq(model, packed, book["tokenizer"], folder)


def test_awq(book, plain, awq_folder):
    folder, size = awq_folder
    tensors = load_file(folder / "model.safetensors")
    assert size == sum(t.nbytes for t in tensors.values())
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    assert len(names) == 28
    w = {name: t.astype(np.float32) for name, t in tensors.items() if t.dtype == np.float16 and not name.endswith(".scales")}
    ours = figures(w | {f"{name}.weight": unpacked(tensors, name) for name in names}, book, plain)
    book["METHODS"]["rounding, 4 bits"] = book["weights_only"](book["rounded"])
    theirs = tried(book, WHICH[0], book["awq"])
    same(theirs, ours)
    assert theirs["bytes"] == size
    loaded, _ = formats.load(folder, book["torch"].bfloat16)
    assert type(loaded.get_submodule(FIRST)).__name__ in ("TorchAtenAwqLinear", "AwqTorchLinear")
    book["score"]("loaded", loaded, size)
    same(book["found"]["loaded", WHICH[0]], ours, 0.1)  # its activations are bfloat16


def test_awq_takes_the_best_exponent(book):
    """The error of the first layer's outputs by a plain product, for each exponent: the one that AWQ took has the smallest."""
    W, X = (t.detach().double().numpy() for t in (book["models"][WHICH[0]].get_submodule(FIRST).weight, book["inputs"][WHICH[0]][FIRST]))

    def error(alpha):
        s = np.abs(X).mean(0) ** alpha
        s /= math.sqrt(s.max() * s.min())
        return np.square(X @ (blocks((W * s).astype(np.float32), 128, sixteen) / s - W).T).sum() / np.square(X @ W.T).sum()

    import torch

    H = book["inputs"][WHICH[0]][FIRST].T @ book["inputs"][WHICH[0]][FIRST]
    theirs = [book["output_error"](torch.tensor(W).float(), H, book["scales_for"](torch.tensor(X).float(), alpha)) for alpha in (0, 0.25, 0.5, 0.75)]
    assert np.allclose(theirs, [error(alpha) for alpha in (0, 0.25, 0.5, 0.75)], rtol=0.01)


def halves(data):
    return np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)


def compressed_weight(tensors, name, preset):
    """The weights of a compressed-tensors file's layer."""
    if f"{name}.weight_packed" not in tensors:
        return tensors[f"{name}.weight"].astype(np.float64) * tensors[f"{name}.weight_scale"].astype(np.float64)
    codes = halves(tensors[f"{name}.weight_packed"])
    values = np.array([*E2M1, *(-each for each in E2M1)])[codes]
    scale = tensors[f"{name}.weight_scale"]
    scale = np.array([E4M3[each] for each in scale.flatten()]).reshape(scale.shape) if preset == "NVFP4A16" else 2.0 ** (scale.astype(float) - 127)
    scale = scale / tensors[f"{name}.weight_global_scale"] if preset == "NVFP4A16" else scale
    return values * np.repeat(scale, values.shape[1] // scale.shape[1], 1)


@pytest.mark.parametrize("preset", ["NVFP4A16", "MXFP4A16", "W8A8", "FP8_DYNAMIC"])
def test_compressed_tensors(preset, book, plain, tmp_path):
    import torch
    from safetensors.torch import load_file as load_torch

    pytest.importorskip("compressed_tensors")
    folder = tmp_path / preset
    size = formats.write_compressed(book["models"][WHICH[0]], book["tokenizer"], preset, folder)
    raw = load_torch(folder / "model.safetensors")
    assert size == sum(t.numel() * t.element_size() for t in raw.values())
    floats = {name: t for name, t in raw.items() if t.dtype == torch.float8_e4m3fn}
    codes = {name: t.view(torch.uint8).numpy() for name, t in floats.items()}
    tensors = {name: t.float().numpy() if t.is_floating_point() else t.numpy() for name, t in raw.items() if name not in floats}
    if preset == "FP8_DYNAMIC":
        tensors |= {name: np.array([*E4M3, 0.0, *(-each for each in E4M3), 0.0])[each] for name, each in codes.items()}
    else:
        tensors |= codes
    names = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    assert len(names) == 28
    w = plain[WHICH[0]] | {f"{name}.weight": compressed_weight(tensors, name, preset) for name in names}

    def linear(name, x, W):
        if preset == "W8A8":
            codes = rounded_inputs(x, 127.5)
            x = np.clip(codes[0], -128, 127) * codes[1]
        elif preset == "FP8_DYNAMIC":
            x = by_row(x, E4M3)
        return x @ W.T

    loaded = formats.decompressed(formats.load(folder)[0])
    book["score"](preset, loaded, size)
    same(book["found"][preset, WHICH[0]], figures(w, book, plain, linear=linear), ACTIVATIONS)


def test_numbers_and_their_rounding(book):
    import ml_dtypes
    import torch

    for exponents, mantissas, kind, finite in ((4, 3, ml_dtypes.float8_e4m3fn, 127), (5, 2, ml_dtypes.float8_e5m2, 124), (2, 1, ml_dtypes.float4_e2m1fn, 8)):
        theirs = np.arange(finite, dtype=np.uint8).view(kind).astype(np.float32)
        assert [book["number"](code, exponents, mantissas) for code in range(finite)] == theirs.tolist() == minifloat(exponents, mantissas, finite)
        x = np.random.default_rng(0).normal(0, theirs[-1] / 3, 20000).astype(np.float32)
        x = np.concatenate([x, theirs, -theirs, (theirs[1:] + theirs[:-1]) / 2, x * 1e-3, [0.0]]).astype(np.float32)
        x = np.clip(x, -theirs[-1], theirs[-1])
        ours = book["to_float"](torch.tensor(x), exponents, mantissas, float(theirs[-1])).numpy()
        assert np.array_equal(ours, x.astype(kind).astype(np.float32))


def test_the_outliers_are_gone_and_nothing_else(book):
    import torch

    ids = torch.tensor([book["encoded"][-1]])
    with torch.no_grad():
        one, other = (model(ids).logits for model in book["models"].values())
    assert one.equal(other)
    shipped, without = (book["inputs"][which][FIRST].abs().amax(0) for which in WHICH)
    ratio = shipped / without
    assert sorted(set(ratio.tolist())) == [1, 16] and (ratio == 16).sum() == 16


def test_context_from_which_a_cache_saves(book):
    """Counted up, token by token."""
    shape = catalogue.LLAMA_2["7B"]
    weights, token = 3_893_862_400 - 2 * 32000 * 4096, 524_288
    n = 0
    while n * token * (1 - 8.5 / 16) < 0.1 * (weights + n * token):
        n += 1
    assert n - 1 < book["saves_from"](shape, 8.5) <= n
    assert abs(book["as_large"](shape) - weights / token) < 1e-9


def test_what_becomes_of_a_comparison(book):
    judge = book["judge"]
    assert judge(3, 0.3) == judge(0.5, 2) == "THE ORDER TURNS" and judge(3, 4) == judge(0.3, 0.25) == "holds"
    assert judge(10, 1.2) == "holds, but by how much changes" and judge(1.05, 0.5) == "about equal on one of the two"


def test_bytes_of_torchao(book):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    model, _ = formats.load(SMALL, book["torch"].bfloat16, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))
    shape = choose.get_step(2, tier="embedded").shape
    least = shape.linear_parameters + 2 * shape.other_parameters
    rows = shape.num_hidden_layers * sum(m for _, m in shape.linears())
    assert 2 * rows <= formats.stored_bytes(model) - least <= 6 * rows  # a scale for each row, and little else


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError) as error:
        formats.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "What to do" in str(error.value)
