"""How is a GGUF file run? llama.cpp within this process, through the wheel of xllamacpp."""

import json
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

from helpers.errors import CheckpointError, PromptError

PACKAGES = ("xllamacpp", "gguf")


def load(path, threads=None, context=None, **settings):
    """Load a GGUF file on the CPU and return the xllamacpp.Server that answers for it (``server.listening_address``: on 127.0.0.1).

    threads: by default as many as torch uses. context: tokens, by default the model's own. settings: more fields of
    xllamacpp.CommonParams, e.g. n_parallel. Raises CheckpointError if the file is missing or damaged.
    """
    import xllamacpp

    if not Path(path).is_file():
        raise CheckpointError(f"There is no file {path}: write it with gguf_files.write, or fetch it.")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    chosen = {"n_ctx": context or 0, "n_gpu_layers": 0, "fit_params": False, "ui": False, "verbosity": -1, "warmup": False}
    for name, value in (chosen | settings).items():
        setattr(parameters, name, value)
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError:
        taken = f", and that port {settings['port']} is free" if "port" in settings else ""
        raise CheckpointError(f"llama.cpp cannot load {path}: check that it is a complete GGUF file of a model that fits into the memory{taken}.") from None


def answer(server, ids, new_tokens, arrived=lambda text: None, **options):
    """Decode ``new_tokens`` tokens greedily after the prompt ``ids`` (list of int) and return (new ids, the chunks that came with them).

    arrived: called with the text of each new token as it comes. No end of text (as ``min_new_tokens`` in transformers), no use of an earlier
    prompt's cache. options: more of llama.cpp's request, e.g. n_probs. Raises PromptError if llama.cpp refuses the request.
    """
    chunks = []

    def receive(chunk):
        if "error" not in chunk and chunk["choices"][0]["finish_reason"] is None:
            arrived(chunk["choices"][0]["text"])
        chunks.append(chunk)

    request = {
        "prompt": ids, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True,
        "verbose": True, "return_tokens": True,
    }  # fmt: skip
    server.handle_completions(request | options, receive)
    refused = [chunk["error"]["message"] for chunk in chunks if "error" in chunk]
    if refused:
        raise PromptError(f"llama.cpp refused the request: {refused[0]}.")
    return [token for chunk in chunks for token in chunk["__verbose"]["tokens"]], chunks


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
    with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:  # never through a proxy
        return json.load(answer)
