"""Training of the two base models on the CPU: fp32 AdamW, saved as bf16 safetensors."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.models import files

from .settings import SETTING, THREADS
from .tokeniser import BOS, EOS, save_tokeniser

WINDOW = 128  # tokens in one training window


def pack(documents):
    """Join the documents (lists of token ids) and cut them into windows: int64 [windows, WINDOW]."""
    stream = torch.tensor([token for document in documents for token in document])
    return stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW)


def llama_config(shape, vocabulary):
    """A Llama-2 configuration of the given shape (hidden, inner, layers, heads, positions)."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=shape["positions"],
        hidden_act="silu",
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.02,
    )


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up, then a cosine down to 3 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))


def batch_at(windows, step, batch, seed):
    """The windows of one step, [batch, WINDOW].  Each pass over the text has its own order, fixed by the seed."""
    per_pass = len(windows) // batch
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed * 1000 + step // per_pass))
    start = step % per_pass * batch
    return windows[order[start : start + batch]]


def train_model(windows, config, plan, seed, interim, say=print, every=50):
    """Train a model from the seed; returns (model, losses in nats per token, seconds spent in earlier runs).

    `plan` holds steps, batch (windows per step), peak (learning rate) and warm_up (steps).
    `interim` is a file that keeps the state, so that a training that was cut off goes on from there,
    and one that was finished is not done again.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=plan["peak"], betas=(0.9, 0.97))
    first, losses, earlier, interim = 0, [], 0.0, Path(interim)
    key = {
        "plan": plan,
        "seed": seed,
        "windows": len(windows),
        "checksum": int(windows.sum()),
        "shape": [config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size],
    }
    if interim.exists():
        state = torch.load(interim, weights_only=True)
        if state["key"] == key:
            model.load_state_dict(state["model"])
            first, losses, earlier = state["step"], state["losses"], state["seconds"]
            if first < plan["steps"]:
                optimiser.load_state_dict(state["optimiser"])
            say(f"  going on from step {first}")
    model.train()
    began = time.time()
    for step in range(first, plan["steps"]):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, plan["steps"], plan["peak"], plan["warm_up"])
        tokens = batch_at(windows, step, plan["batch"], seed)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        done = step + 1
        if done % every == 0 or done == plan["steps"]:
            left = (time.time() - began) / (done - first) * (plan["steps"] - done)
            mean = sum(losses[-every:]) / len(losses[-every:])
            say(f"  step {done:5d} of {plan['steps']}  loss {mean:.3f}  about {left / 60:.1f} min left")
        if done % (4 * every) == 0 or done == plan["steps"]:
            state = {"key": key, "model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": done, "losses": losses}
            with files.whole(interim, setting=SETTING) as part:
                torch.save(state | {"seconds": earlier + time.time() - began}, part)
    return model.eval(), losses, earlier


def plain_config(folder, dtype):
    """Give config.json the keys that older versions of transformers look for as well."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config.update(torch_dtype=dtype, dtype=dtype, rope_theta=10000.0)
    files.write_json(path, config, setting=SETTING, indent=2, sort_keys=True)


def save_model(model, tokeniser, folder):
    """Save as bf16 safetensors; a save that is cut leaves the old folder."""
    model = model.to(torch.bfloat16)
    model.generation_config.pad_token_id = 0
    with files.whole(folder, setting=SETTING) as part:
        model.save_pretrained(part)
        plain_config(part, "bfloat16")
        save_tokeniser(tokeniser, part, model.config.max_position_embeddings)
