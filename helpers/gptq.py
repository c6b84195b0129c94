"""How is a whole model quantised, layer by layer? The walk through its blocks and the packing; the algorithm itself is built in notebook 10."""

import contextlib

from helpers.article import ROOT

BATCH = 16  # windows at a time
TOGETHER = (  # the linear layers of a block in the order in which they work; those in one bracket read the same inputs
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
)  # fmt: skip


class _Enough(Exception):
    """What was looked for is there: the rest of the pass need not be computed."""


def calibration_text():
    """Return the course's calibration text as a list of lines (str); the embedded models were trained on it, and on much more."""
    return (ROOT / "data" / "text" / "calibration.txt").read_text(encoding="utf-8").splitlines()


def windows(tokenizer, lines, count=32):
    """Return token ids, shape (``count``, 128): ``lines``, each with its begin-of-sequence, joined and cut. Fewer if the text is too short."""
    from data.build.train import pack as cut

    return cut([tokenizer(line).input_ids for line in lines])[:count]


def walk(model, ids, look, choose):
    """Replace the weight of each linear layer of each block by ``choose(name, weight, look(inputs))``, in place, and return ``model``.

    ids: the calibration windows, shape (windows, tokens). inputs: what the layer reads, shape (windows x tokens, in features), when all
    layers before it, in its own block too, have their new weights already: what GPTQ's authors and gptqmodel call "true sequential".
    ``look`` is called once for layers that read the same.
    """
    import torch

    with torch.no_grad():
        calls = [_caught(model.model.layers[0], lambda: model(part, use_cache=False)) for part in ids.to(model.device).split(BATCH)]  # noqa: B023
        hidden, others = [args[0] for args, _ in calls], [other for _, other in calls]
        for number, block in enumerate(model.model.layers):
            for names in TOGETHER:
                layer = block.get_submodule(names[0])
                read = [_caught(layer, lambda: block(states, **other))[0][0] for states, other in zip(hidden, others)]  # noqa: B023
                seen = look(torch.cat([part.flatten(0, -2) for part in read]))
                for name in names:
                    weight = block.get_submodule(name).weight
                    with _one_thread():
                        weight.copy_(choose(f"model.layers.{number}.{name}", weight, seen))
            hidden = [block(states, **other) for states, other in zip(hidden, others)]
            hidden = [states[0] if isinstance(states, tuple) else states for states in hidden]  # older transformers return a tuple
    return model


@contextlib.contextmanager
def _one_thread():
    """GPTQ makes thousands of small steps: several threads would wait for each other at each of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _caught(layer, call):
    """The (arguments, keyword arguments) with which ``call()`` first calls ``layer``; what comes after is not computed."""
    caught = []

    def hook(_, args, kwargs):
        caught.append((args, kwargs))
        raise _Enough

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        call()
    except _Enough:
        pass
    finally:
        handle.remove()
    return caught[0]


def pack(codes, bits):
    """Pack integers below 2^``bits``, shape (n, columns), into int32, shape (n x bits / 32, columns). n: a multiple of 32.

    Each column is one stream of bits, the first integer's lowest bit first: GPTQ's layout, see notebook 03. For 3 bits, 32 integers share
    three int32 and some lie across two of them.
    """
    import torch

    codes = codes.to(torch.int32)
    stream = codes[:, None, :] >> torch.arange(bits, device=codes.device)[:, None] & 1  # (n, bits, columns)
    words = stream.reshape(-1, 32, codes.shape[1]) << torch.arange(32, device=codes.device)[:, None]
    return words.sum(1, dtype=torch.int32)


def unpack(packed, bits):
    """Return what ``pack`` was given, as int32, shape (n, columns)."""
    import torch

    stream = packed[:, None, :] >> torch.arange(32, device=packed.device)[:, None] & 1
    parts = stream.reshape(-1, bits, packed.shape[1]) << torch.arange(bits, device=packed.device)[:, None]
    return parts.sum(1, dtype=torch.int32)


def layout(codes, scales, groups, bits):
    """Return {name: tensor} of a linear layer as a GPTQ checkpoint (layout v1, symmetric) stores it.

    codes: integers, shape (out, in). scales: (out, number of groups). groups: the group of each input, shape (in,).
    """
    import torch

    zeros = torch.full_like(scales, 2 ** (bits - 1) - 1)  # v1 stores zero points minus 1
    return {
        "qweight": pack(codes.T, bits),
        "qzeros": pack(zeros, bits).T.contiguous(),
        "scales": scales.T.half().contiguous(),
        "g_idx": groups.to(torch.int32),
    }


def tensor_bytes(tensors):
    """Bytes of the tensors in a dict."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
