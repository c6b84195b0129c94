"""Outlier channels, as in large language models, without any change to what a model computes.

In language models of several billion parameters a few channels carry values
many times larger than the rest, and these make low-bit quantisation hard.
Models as small as ours do not form them by themselves.  So, after training, a
few channels are made larger by a power of two and the weights that read them
smaller by the same factor.  A power of two changes only exponents: the logits
stay the same to the last bit, in bf16 as well.  Only the quantisation
methods notice.
"""

import torch

FACTOR = 16.0  # a power of two
SHARE = 1 / 16  # of the channels


def add_outlier_channels(model, seed, factor=FACTOR):
    """Scale a seeded choice of channels in every layer, in place; returns the model. 1 / FACTOR takes the same channels back, exactly.

    Four places feed linears: the two norms (their weights are scaled), the
    values (rows of v_proj) and the up projection (rows of up_proj).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for source, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (attention.v_proj, (attention.o_proj,)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
                (mlp.up_proj, (mlp.down_proj,)),
            ):
                width = source.weight.shape[0]
                chosen = torch.randperm(width, generator=generator)[: max(1, int(width * SHARE))]
                source.weight[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
    return model
