"""Fetch a checkpoint from the Hub: announced, resumable, verified; what goes wrong is one sentence, and nothing complete is lost."""

import hashlib
from fnmatch import fnmatch
from pathlib import Path

from helpers import access, checks, machine
from helpers.errors import CheckpointError, NotEnoughMemoryError

WANTED = ("config.json", "generation_config.json", "*token*", "*.safetensors", "*.safetensors.index.json", "quantize_config.json")


def fetch(step):
    """Bring the files of ``step`` (from the Hub) into the library's cache, unless a complete copy is there.

    Files that are complete stay when a later one fails. With hf_xet, the library fetches and verifies; without it (not installed, or
    HF_HUB_DISABLE_XET=1) files go on where an interrupted run left them, and their SHA-256 is compared with the Hub's.
    Raises CheckpointError, or NotEnoughMemoryError before the first byte if the disk has too little room.
    """
    repository = step.checkpoint
    if cached(repository, step.revision, step.format):
        return
    _bring(repository, step.revision, WANTED, "*.safetensors", "no safetensors files, and the course reads no other kind")


def fetch_file(repository, name, revision="main"):
    """Return the path of one file of a repository, fetched like ``fetch`` does unless it is in the cache. Raises what ``fetch`` raises."""
    path = access.cached_path(repository, name, revision)
    if path is None:
        _bring(repository, revision, (name,), name, f"no file {name}")
        path = access.cached_path(repository, name, revision)
    return Path(path)


def _bring(repository, revision, wanted, needed, lacking):
    """Bring the files that match ``wanted`` (patterns) into the cache. needed: a pattern of which there must be one; lacking: words for none."""
    from huggingface_hub import HfApi, constants

    about = _try(lambda: HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=2 * access.TIMEOUT), repository)
    files = [f for f in about.siblings if any(fnmatch(f.rfilename, pattern) for pattern in wanted)]
    if not any(fnmatch(f.rfilename, needed) for f in files):
        raise CheckpointError(f"{repository} has {lacking}: choose another repository.")
    missing = [f for f in files if access.cached_path(repository, f.rfilename, about.sha) is None]
    need, cache = sum(f.size or 0 for f in missing), Path(constants.HF_HUB_CACHE)
    free = machine.disk(cache)
    if need > free:
        raise NotEnoughMemoryError(
            f"{repository} still needs {need / 1e9:.1f} GB and the disk of {cache} has {free / 1e9:.1f} GB free: make room, or set"
            " HF_HOME to a folder on another disk and restart the kernel."
        )
    if need > 1e6:
        print(f"Fetching {repository}: {need / 1e9:.2f} GB in {len(missing)} files (of {len(files)}) to {cache}.", flush=True)
    done = len(files) - len(missing)
    try:
        for file in missing:
            _try(lambda: _fetch_file(repository, file, about.sha, revision), repository, f" ({done} of {len(files)} files are here and stay)")
            done += 1
    except KeyboardInterrupt:
        raise CheckpointError(f"Interrupted: {done} of {len(files)} files are here and stay. Run the cell again to go on.") from None


def config(repository, revision="main"):
    """Return the folder of the repository's config.json, fetched if it is not in the cache. Raises CheckpointError."""
    from huggingface_hub import hf_hub_download

    path = access.cached_path(repository, "config.json", revision)
    return Path(path or _try(lambda: hf_hub_download(repository, "config.json", revision=revision), repository)).parent


def cached(repository, revision, format):
    """Whether a complete checkpoint in ``format`` is in the cache (its headers say so; the weights are not read)."""
    path = access.cached_path(repository, "config.json", revision)
    if path is None:
        return False
    try:
        checks.check_folder(Path(path).parent, format)
        return True
    except CheckpointError:
        return False


def _fetch_file(repository, file, commit, revision):
    """Bring one file into the cache."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get, is_xet_available, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    if file.lfs is not None and (constants.HF_HUB_DISABLE_XET or not is_xet_available()):
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        part = blobs / f"{file.lfs.sha256}.part"
        with open(part, "ab") as target:
            url = hf_hub_url(repository, file.rfilename, revision=commit)
            http_get(url, target, resume_size=target.tell(), headers=build_hf_headers(), expected_size=file.lfs.size, displayed_filename=file.rfilename)
        if _sha256(part) != file.lfs.sha256:
            part.unlink()
            raise CheckpointError(f"{file.rfilename} of {repository} arrived damaged and was thrown away: run the cell again to fetch it anew.")
        part.replace(blobs / file.lfs.sha256)
    hf_hub_download(repository, file.rfilename, revision=revision)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _try(action, repository, state=""):
    """Return ``action()``, tried again where the problem may pass. Raises CheckpointError, a sentence."""
    try:
        return access.patiently(action)
    except (CheckpointError, *access.OUR_MISTAKES):
        raise
    except Exception as error:
        raise CheckpointError(f"{repository} cannot be fetched: {access.why(error, repository)}{state}. Then run the cell again, {access.WITHOUT}.") from None
