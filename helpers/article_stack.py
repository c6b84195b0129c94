"""How does the article's own stack do today? auto-gptq with the transformers and torch of early 2024, in an environment of its own.

``environment`` and ``ask`` are called from today's Python; ``python -m helpers.article_stack JOB`` is run by the other one, where
``work`` measures with the same code as everywhere in this course, helpers.timing.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path

from helpers import checks, isolated, setup, steps, tiers, timing
from helpers.article import NEW_TOKENS, PROMPT, ROOT
from helpers.errors import CheckpointError, CourseError
from helpers.isolated import Environment

REQUIREMENTS = ROOT / "requirements" / "article-stack.txt"
DOWNLOAD, SIZE = 2.95e9, 5.5e9  # bytes, as measured on Linux in November 2026; most of it is CUDA, which comes with torch 2.2.1
ENGINE = "2024 stack"
NEWEST = (9, 0)  # compute capability of the newest GPU that auto-gptq 0.7.1 and torch 2.2.1 were built for


def environment():
    """The Environment of the article's stack: in the folder ARTICLE_STACK_DIR, by default ``.article-stack`` in the project."""
    folder = ROOT / (os.environ.get("ARTICLE_STACK_DIR") or ".article-stack")  # a relative path counts from the project
    return Environment(folder, REQUIREMENTS, "3.11", DOWNLOAD, SIZE)


def too_new(device=None):
    """Say in a sentence that the GPU is newer than the stack; "" if it is not, or is a CPU. device: as in loading.load."""
    import torch

    device = tiers.get_device(device)
    found = (0, 0) if device == "cpu" else torch.cuda.get_device_capability(device)
    if found <= NEWEST:
        return ""
    known, this = (".".join(map(str, version)) for version in (NEWEST, found))
    return f"This GPU (compute capability {this}) is newer than the libraries of 2024, which know none above {known}: the old stack is left out here."


def make_job(step, dtypes=("float16",), device=None):
    """Return the job (a dict that JSON can hold) of loading ``step``'s GPTQ checkpoint in each of ``dtypes``, one after the other.

    device: as in loading.load. Raises CheckpointError or NotEnoughMemoryError, as loading.load does, before anything large is fetched.
    """
    from helpers import download

    device = tiers.get_device(device)
    checks.check_memory(step.bytes, device)
    if not step.is_folder:
        download.fetch(step)
    folder = step.checkpoint if step.is_folder else str(download.config(step.checkpoint, step.revision))
    check(folder)
    return {"folder": folder, "device": device, "dtypes": list(dtypes), "prompt": PROMPT, "new_tokens": NEW_TOKENS}


def ask(environment, job):
    """Have ``job`` (see ``make_job``) done by the stack in ``environment`` and return its answer.

    Keys: python (its version), device (in words), versions ({package: version}), runs ({dtype: run}). A run: timing (Timing), kernel
    (class name with its module), weight_bytes_loaded, empty_biases (how many tensors the file lacks), not_finite (how many numbers in
    their place were no finite ones), logits (list for each position of prompt and answer, the last token left out; float32), operations
    (see profiling.decode_step; on a CPU only, None on a GPU).
    Raises what Environment.call raises.
    """
    answer = environment.call("helpers.article_stack", job)
    for run in answer["runs"].values():
        parts = run["timing"]
        calls = {"cold": timing.Call(**parts["cold"]), "warm": [timing.Call(**call) for call in parts["warm"]]}
        run["timing"] = timing.Timing(**parts | calls)
    return answer


def make_row(step, answer, dtype="float16"):
    """Return the ledger row of the run in ``dtype`` of ``answer`` (from ``ask``), with that environment's Python and versions."""
    from helpers import engines

    run = answer["runs"][dtype]
    return engines.make_row(
        ENGINE, "GPTQ", run["timing"], step, format="gptq", weight_bytes=step.bytes, read_bytes=step.shape.read_bytes("gptq"), packages=(),
        kernel=run["kernel"], dtype=dtype, checkpoint=Path(step.checkpoint).name if step.is_folder else step.checkpoint,
        device=answer["device"], python=answer["python"], versions=answer["versions"], weight_bytes_loaded=run["weight_bytes_loaded"],
    )  # fmt: skip


def check(folder):
    """Raise CheckpointError unless ``folder`` holds a GPTQ checkpoint that auto-gptq reads rightly."""
    checks.check_folder(folder, "gptq")
    if steps.read_json(folder, "config.json")["quantization_config"].get("checkpoint_format") == "gptq_v2":
        raise CheckpointError(f"{folder} is in GPTQ's second file format, and auto-gptq would read every zero point wrong by one: choose another.")


def load(folder, device, dtype):
    """Load a GPTQ checkpoint as the article did and return (model, tokenizer, names of tensors that the file lacks)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    arguments = {"torch_dtype": getattr(torch, dtype), "device_map": 0}
    if device == "cpu":  # ExLlama's kernels are for GPUs
        arguments = arguments | {"device_map": "cpu", "quantization_config": GPTQConfig(bits=4, use_exllama=False)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **arguments)
    return model, tokenizer, found["missing_keys"]


def work(job):
    """Do ``job`` (see ``make_job``) in this process and return the answer as ``ask`` describes it, with JSON's types only."""
    import platform

    check(job["folder"])
    return {
        "runs": {dtype: _measure(job, dtype) for dtype in job["dtypes"]},
        "python": platform.python_version(),
        "device": tiers.device_name(job["device"]),
        "versions": {name: setup.installed(name) for name in setup.pins(REQUIREMENTS)},
    }


def _measure(job, dtype):
    import torch

    from helpers import loading, memory, profiling

    with loading.quiet():
        model, tokenizer, missing = load(job["folder"], job["device"], dtype)
    not_finite = fill_biases(model, missing)
    cold = timing.generate_once(model, tokenizer, job["prompt"], job["new_tokens"])
    result = timing.measure(model, tokenizer, job["prompt"], job["new_tokens"], cold)
    ids = torch.cat([timing.tokenise(model, tokenizer, job["prompt"])[0].cpu(), torch.tensor(result.token_ids)])
    with torch.no_grad():
        logits = model(ids[None, :-1].to(model.device)).logits[0].float().cpu()
    if not logits.isfinite().all():
        raise CourseError(f"The model's output in {dtype} is not finite, so nothing measured on it counts.")
    kernel = type(model.model.layers[0].self_attn.q_proj)
    # on a GPU torch 2.2's profiler calls its figures by other names than today's
    operations = profiling.decode_step(model, ids[None].to(model.device)) if job["device"] == "cpu" else None
    found = {
        "timing": asdict(result), "kernel": f"{kernel.__module__}.{kernel.__name__}", "weight_bytes_loaded": loading.weight_bytes(model),
        "empty_biases": len(missing), "not_finite": not_finite, "logits": logits.tolist(), "operations": operations,
    }  # fmt: skip
    del model
    memory.free_caches()
    return found


def fill_biases(model, missing):
    """Set the bias vectors named in ``missing`` to zero and return how many of their numbers were not finite before.

    The optimum of early 2024 gives every quantised layer a bias. If the checkpoint has none, it holds whatever lay in the memory before
    (mended in optimum 1.20, https://github.com/huggingface/optimum/pull/1827). Raises CheckpointError if anything else is missing.
    """
    if others := [name for name in missing if not name.endswith(".bias")]:
        raise CheckpointError(f"The checkpoint lacks {len(others)} tensors, {others[0]} for one: fetch or build it again.")
    biases = [model.get_buffer(name) for name in missing]
    count = sum((~bias.isfinite()).sum().item() for bias in biases)
    for bias in biases:
        bias.zero_()
    return count


if __name__ == "__main__":
    isolated.reply(work, sys.argv[1])
