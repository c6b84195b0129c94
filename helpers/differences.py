"""Where do two models begin to differ: in which block, and at which token?"""


def block_outputs(model, encoded):
    """Return the output of each block (list of tensors (tokens, hidden size), host, the model's type) for every token after the first.

    The first token is left out: it is the same in every text, and in large models its values are many times larger than all others.
    """
    import torch

    kept = [[] for _ in model.model.layers]

    def hook(n):
        return lambda layer, inputs, output: kept[n].append((output[0] if isinstance(output, tuple) else output)[0, 1:].cpu())

    handles = [layer.register_forward_hook(hook(n)) for n, layer in enumerate(model.model.layers)]
    try:
        for row in encoded:  # one text at a time: no padding
            with torch.no_grad():
                model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in kept]


def relative_errors(outputs, reference):
    """Return for each block the mean over tokens of |output - reference| / |reference| (Euclidean norms), from ``block_outputs``."""
    pairs = ((ours.float(), theirs.float()) for ours, theirs in zip(outputs, reference))
    return [((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).mean().item() for ours, theirs in pairs]


def mark(tokenizer, ids, reference):
    """Return (text of ``ids`` with the first token that differs from ``reference`` in ⟦ ⟧, its place from 0); place None if all agree."""
    text = tokenizer.decode(ids)
    place = next((n for n, (ours, theirs) in enumerate(zip(ids, reference)) if ours != theirs), None)
    if place is None:
        return text, None
    start, end = (len(tokenizer.decode(ids[:n])) for n in (place, place + 1))
    return f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}", place
