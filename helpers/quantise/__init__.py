"""How does a quantised model become a checkpoint that others can load?

Calibration text, packing, saving, publishing. The algorithm, the walk through a model and its card are built in notebook 10. First used in
notebook 10.
"""

import contextlib
import json
from pathlib import Path

from helpers import ROOT, ledger, limits, loading
from helpers.errors import CheckpointError, CourseError
from helpers.models import files, hub

TOGETHER = (  # the linear layers of a block in the order in which they work; those in one bracket read the same inputs
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
)  # fmt: skip


class _Enough(Exception):
    """What was looked for is there: the rest of the pass need not be computed."""


def calibration_text():
    """Return the course's calibration text as a list of lines (str)."""
    return (ROOT / "data" / "text" / "calibration.txt").read_text(encoding="utf-8").splitlines()


def windows(tokenizer, lines, count=32):
    """Return token ids, shape (``count``, 128): ``lines``, each with its begin-of-sequence, joined and cut. Fewer if the text is too short."""
    from data.build.train import pack as cut

    return cut([tokenizer(line).input_ids for line in lines])[:count]


def caught(layer, call):
    """Return the (arguments, keyword arguments) with which ``call()`` first calls ``layer``; what comes after is not computed."""
    found = []

    def hook(_, args, kwargs):
        found.append((args, kwargs))
        raise _Enough

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    with contextlib.suppress(_Enough):
        try:
            call()
        finally:
            handle.remove()
    return found[0]


def pack(codes, bits):
    """Pack integers below 2^``bits``, shape (n, columns), into int32, shape (n x bits / 32, columns). n: a multiple of 32.

    Each column is one stream of bits, the first integer's lowest bit first: GPTQ's layout, see notebook 03.
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


class UploadError(CourseError, OSError):
    """An upload to the Hub that could not be made; what is on this disk stays."""


def rate(device, dtype):
    """Return the operations a second that ``device`` reaches in the types that GPTQ computes in (see limits.flops)."""
    import torch

    return max(limits.flops(device, each) for each in ({dtype} if device == "cpu" else {dtype, torch.float16}))


def record(step, result, model):
    """Append the row of the reader's own checkpoint (``step``), measured as the Timing ``result``, to the ledger, and return it."""
    row = ledger.make_row(step, result, model)
    ledger.append(row)
    return row


def save(model, tokenizer, folder):
    """Write a model that was quantised by GPTQConfig, with its configurations and tokeniser, as ``folder``, in place of an older one.

    In layout v1, which all GPTQ programs read (gptqmodel keeps v2 in memory, where zero points are one higher); what is not quantised in
    float16; without the calibration text. Raises CheckpointError if the model is not one, and DiskError.
    """
    from safetensors.torch import save_file

    if not hasattr(getattr(model, "hf_quantizer", None), "optimum_quantizer"):
        raise CheckpointError("This model was not quantised by GPTQConfig in this notebook: quantise it first, then save it.")
    quantizer = model.hf_quantizer.optimum_quantizer
    settings = {key: value for key, value in quantizer.to_dict().items() if value is not None and key not in ("dataset", "format")}
    settings["checkpoint_format"] = "gptq"
    state, tensors = model.state_dict(), {}
    for name in sorted(state.keys() - model.all_tied_weights_keys.keys()):  # of one table that is the head too, one name
        tensor = state[name]
        if name.endswith(".qweight") and 32 * len(tensor) != quantizer.bits * len(state[name.replace("qweight", "g_idx")]):
            raise CheckpointError(f"gptqmodel has put {name} into an order of its kernel: quantise the model again, with backend='torch' in GPTQConfig.")
        if name.endswith(".qzeros"):
            tensor = pack(unpack(tensor.T, quantizer.bits) - 1, quantizer.bits).T
        tensors[name] = (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
    with files.whole(Path(folder)) as part, loading.quiet():
        part.mkdir()
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})  # save_pretrained would take the tensors from the model
        for each in (model.config, model.generation_config, tokenizer):
            each.save_pretrained(part)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config |= {"dtype": "float16", "torch_dtype": "float16", "quantization_config": settings}  # older programs ask for torch_dtype
        for name, content in (("config.json", config), ("quantize_config.json", settings)):
            files.write_json(part / name, content, indent=2, sort_keys=True)


def publish(folder, repository, yes=False):
    """Upload the checkpoint ``folder`` to the reader's own, private repository of the Hub, and return its address; None if nothing was sent.

    repository: "owner/name", or None: nothing happens. yes: without it, what would be sent is printed. A repository that is not private is left
    alone. Raises UploadError; an upload is one commit.
    """
    if repository is None:
        print("Nothing was uploaded: my_repository is None.")
        return None
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if not yes:
        print(f"{len(files)} files of {folder.name} ({size / 1e6:,.1f} MB) would go to https://huggingface.co/{repository}, private:", *(f.name for f in files))
        print("Nothing was uploaded yet: set upload_it = True and run this cell again.")
        return None
    stays = f"{folder.name} stays on this disk as it is"
    if not hub.token_place():
        raise UploadError(
            f"{repository} was not uploaded, because there is no token: make one that may write on https://huggingface.co/settings/tokens and"
            f" log in with it in notebook 00; {stays}."
        )
    from huggingface_hub import HfApi

    api, told = HfApi(), ""
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        if not api.model_info(made.repo_id).private:
            told = "it exists already and is public: choose another name"
        else:
            print(f"Uploading {len(files)} files, {size / 1e6:,.1f} MB, to {made.repo_id} (private).", flush=True)
            return api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="GPTQ checkpoint with its model card").commit_url
    except Exception as error:
        told = _why_not(error, repository)
    raise UploadError(f"{repository} was not uploaded: {told}; {stays}.")


def _why_not(error, repository):
    """Say in a clause why the Hub did not take an upload."""
    if hub.status_of(error) == 403:
        return "your token may not write there: make one with the right to write on https://huggingface.co/settings/tokens"
    return hub.why(error, repository)
