"""May I read this repository of the Hugging Face Hub? The token's place, gated repositories, and why the Hub said no.

The token itself is never returned, printed or written by this module: the library finds it where it lies. What is
fetched is announced, resumable and verified; what goes wrong is one sentence, and nothing complete is lost. First used in notebook 00.
"""

import contextlib
import hashlib
import html
import os
import re
import sys
import time
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from helpers import errors, machine
from helpers.errors import CheckpointError, NotEnoughMemoryError
from helpers.machine import network
from helpers.models import files

MIRRORS = {f"meta-llama/Llama-2-{size}-hf": f"NousResearch/Llama-2-{size}-hf" for size in ("7b", "13b")}  # ungated, with the same weights
SAMPLE = 8_000_000  # bytes fetched to measure the network's speed
TRIES, TIMEOUT, LONGEST_WAIT = 3, 5, 30  # TIMEOUT and LONGEST_WAIT in seconds
NETWORK = {"TransportError", "NetworkError", "ConnectionError", "TimeoutError", "TimeoutException", "gaierror", "ProtocolError"}  # classes' names
WITHOUT = "or set TIER=embedded to go on without the Hub"
_place = {}


def token_place():
    """Say where a token was found ("the environment variable HF_TOKEN", …), or return None if there is none.

    Order: environment; Kaggle's secret, which is put there, because the library does not know it; the saved login; Colab's secret.
    """
    from huggingface_hub import constants, get_token

    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return _place.get("kaggle", "the environment variable HF_TOKEN")
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        try:
            from kaggle_secrets import UserSecretsClient

            os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")
            _place["kaggle"] = "Kaggle's secret HF_TOKEN"
            return _place["kaggle"]
        except Exception:  # no such secret, not attached to this notebook, no internet: Kaggle raises several kinds
            pass
    with contextlib.suppress(OSError):  # HF_HOME lies below a file, or may not be read: what is fetched says so
        if get_token():
            return "the login saved on this disk" if os.path.isfile(constants.HF_TOKEN_PATH) else "Colab's secret HF_TOKEN"
    return None


def ask_for_token():
    """Show a field for a token; its Enter key or a button logs in (huggingface_hub.login checks and saves the token). Waits for nothing."""
    import ipywidgets
    from huggingface_hub import constants, login
    from IPython.display import display

    field = ipywidgets.Password(placeholder="hf_…", description="Token:")
    button, answer = ipywidgets.Button(description="Log in"), ipywidgets.HTML()

    def log_in(_):
        token, field.value = field.value.strip(), ""
        try:
            login(token=token)
            constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = False  # an earlier token may have been ignored
            whether.cache_clear()
            said = "Logged in: run this notebook's cells again."
        except Exception as error:
            own = isinstance(error, ValueError) and not isinstance(error, UnicodeError)  # the library's own words; they do not repeat the token
            said = f"Not logged in: {error if own else why(error, 'your account') + '.'}"
        answer.value = html.escape(said, quote=False)

    button.on_click(log_in)
    field.on_submit(log_in)  # the Enter key; leaving the field must not log in, which is what observing its value would do
    display(ipywidgets.VBox([ipywidgets.HBox([field, button]), answer]))


@lru_cache
def whether(repository, revision="main"):
    """Return (repository or its ungated mirror, sentence). The sentence is empty where the repository itself can be read.

    With HUB_STRICT=1 in the environment, or a pinned revision, there is no mirror. A token that is not valid closes open repositories too: it
    is ignored then. Where the Hub does not answer, the cache will do. Raises CheckpointError where nothing can be read.
    """
    from huggingface_hub import constants

    token = token_place()  # asked first: it puts Kaggle's secret where the library finds it
    reason, status = refusal(repository, revision)
    if not reason:
        return repository, ""
    if status is None or status == 429 or status >= 500:
        for name in filter(None, (repository, MIRRORS.get(repository))):
            if cached_path(name, "config.json", revision):
                return name, f"{name} comes from the cache on this disk ({reason})."
    if status == 401 and token:
        constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True  # what the library's variable of that name does at start
        print("The token is ignored until this kernel is restarted.", file=sys.stderr)
        if not refusal(repository, revision)[0]:
            return repository, f"No token was sent for {repository}, which needs none: {reason}."
    strict = os.environ.get("HUB_STRICT", "0") not in ("", "0")
    if status not in (401, 403, 404) or repository not in MIRRORS or strict or revision != "main":
        because = " HUB_STRICT is set, so no mirror takes its place." if strict and repository in MIRRORS else ""
        raise CheckpointError(f"{repository} cannot be read: {reason}.{because} Then try again, {WITHOUT}.")
    mirror = MIRRORS[repository]
    return mirror, f"{mirror} instead of {repository}, because {reason}. The same weights, and Meta's licence applies to them too."


def refusal(repository, revision="main"):
    """Return (why ``repository`` cannot be read with the token that is there, HTTP status), or ("", None) if it can."""

    def ask():
        from huggingface_hub import get_hf_file_metadata, hf_hub_url  # a wrong setting stops it here already

        patiently(lambda: get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=TIMEOUT))

    return _trouble(ask, repository)


def silence(repository):
    """Return why the Hub does not answer for the open ``repository``, or "" if it does. No token is sent."""

    def ask():
        from huggingface_hub import HfApi

        HfApi(token=False).model_info(repository, timeout=TIMEOUT)

    return _trouble(ask, repository)[0]


def _trouble(action, repository):
    """(why ``action()`` failed, HTTP status), or ("", None)."""
    try:
        action()
        return "", None
    except Exception as error:
        return why(error, repository), status_of(error)


def speed(repository, file):
    """Bytes a second from the Hub, measured on the first 8 MB of ``file`` or one second of it; None if nothing came."""
    from huggingface_hub import get_session, hf_hub_url

    count, headers = 0, {"Range": f"bytes=0-{SAMPLE - 1}"}
    try:
        with get_session().stream("GET", hf_hub_url(repository, file), headers=headers, timeout=3, follow_redirects=True) as answer:
            started = time.perf_counter()
            for chunk in answer.iter_raw() if answer.status_code < 400 else ():  # as it comes
                count += len(chunk)
                if time.perf_counter() - started > 1 or count >= SAMPLE:
                    break
        return count / max(time.perf_counter() - started, 1e-6) if count else None
    except Exception:
        return None


def patiently(action):
    """Return ``action()``, tried again, TRIES times in all, where the Hub is busy, has a passing problem or cuts the connection."""
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except Exception as error:
            status, names = status_of(error), errors.kinds(error)
            passing = status is not None and (status == 429 or status >= 500) or {"RemoteProtocolError", "ReadError"} & names
            if not passing or attempt == TRIES:
                raise
            asked = _answer(error).headers.get("Retry-After", "") if status else ""
            time.sleep(min(int(asked), LONGEST_WAIT) if asked.isdecimal() else attempt)


def why(error, repository):
    """Say in a clause why the Hub, the network, a variable or the disk stopped ``error``, and what to do: whatever the library raises."""
    if wrong := network.unreadable():
        return wrong
    names, answer = errors.kinds(error), _answer(error)
    said = " ".join(str(getattr(link, "server_message", None) or link) for link in errors.chain(error))
    status, wait = (None, None) if answer is None else (answer.status_code, answer.headers.get("Retry-After"))
    token, gated = token_place() if status == 401 else None, "GatedRepoError" in names
    place = next((link.filename for link in errors.chain(error) if getattr(link, "filename", None)), "")
    disk = "" if status else errors.disk_trouble(error, _variable(place))
    invalid = "Invalid credentials" in said or "Invalid user token" in said or token
    unresolved = any(words in said for words in ("resolve", "Name or service", "getaddrinfo", "name resolution"))
    reasons = (  # the first that is true
        ("HFValidationError" in names, "that is no name of a repository: write owner/name"),
        ("Illegal header value" in said or "UnicodeEncodeError" in names, f"your token ({token_place() or 'the one given'}) has a line break or another sign that no token has: copy it again"),
        (variable := "" if status else network.trouble(error), variable),
        (status == 401 and invalid, f"your token ({token or 'the one given'}) is not valid: make a new one on https://huggingface.co/settings/tokens"),
        (gated and status == 401, f"it asks for a licence and you have no token: accept the licence on https://huggingface.co/{repository}, make a read token"
                                  " on https://huggingface.co/settings/tokens and log in with it in notebook 00"),
        (gated and "await" in said, "your request for access is still being reviewed: wait for the e-mail (minutes to two days)"),
        (gated and "rejected" in said, "your request for access was rejected by its owners"),
        (gated, f"its licence is not accepted yet: accept it on https://huggingface.co/{repository} with the account of your token"),
        ("RevisionNotFoundError" in names, "it has no such revision: check the branch or commit"),
        ("RepositoryNotFoundError" in names, "it does not exist, or it is private: check the name"),
        (status == 404, "it lacks a file that this step needs"),
        (status == 403, "your token may not read it: give the token the right to read gated repositories"),
        (status == 429, f"the Hub asks you to wait{f' {wait} seconds' if wait else ''} (HTTP 429, too many requests)"),
        (status and status >= 500, f"the Hub has a problem of its own (HTTP {status}): wait some minutes"),
        (status, f"the Hub refused it (HTTP {status})"),
        (disk, f"the cache cannot be used, {disk} and restart the kernel"),
        ("Consistency check failed" in said, "a file arrived with a wrong length and was thrown away"),
        (unresolved, f"the name of the Hub cannot be resolved (DNS): {network.advice()}"),
        ({"TimeoutException", "TimeoutError"} & names, f"the Hub does not answer in time: {network.advice()}"),
        (NETWORK & names or "sending request" in said or "CAS service" in said, f"the Hub cannot be reached ({type(errors.chain(error)[-1]).__name__}): {network.advice()}"),
        (True, f"the Hub's library failed ({type(error).__name__}: {_secretly(error)}): run pip install --upgrade huggingface_hub and restart the kernel"),
    )  # fmt: skip
    return next(reason for holds, reason in reasons if holds)


def _variable(path):
    """The environment variable that decides where the Hub's library has ``path``."""
    given = {name: os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH")}
    return next((name for name, place in given.items() if place and str(path).startswith(os.path.expanduser(place))), "HF_HOME")


def _secretly(error):
    """The first line of what ``error`` says, shortened, without a token."""
    return re.sub(r"(hf_|Bearer )[^\s'\"]+", r"\1…", (str(error).strip() or "no reason given").splitlines()[0])[:150].rstrip(".")


def named(text):
    """(name of a repository, its revision or None) that the reader's ``text`` gives: "owner/name", or an address of the Hub. Raises CheckpointError."""
    text = given = str(text).strip()
    revision = None
    if address := re.match(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/)(.*)", text):
        parts = re.sub(r"[?#].*", "", address[1]).strip("/").split("/")
        if parts[0] in ("datasets", "spaces", "collections", "papers", "docs"):
            raise CheckpointError(f"{given} is no model ({parts[0]}): give the name of a repository with a model, as owner/name.")
        text = "/".join(parts[:2]).removesuffix(".git")
        revision = parts[3] if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve", "commit") else None
    text = text.rstrip("/")
    if branch := re.fullmatch(r"([\w.-]+/[\w.-]+)[:@]([^\s:@]+)", text):
        raise CheckpointError(f"{given!r} names a branch as well: give checkpoint={branch[1]!r} and revision={branch[2]!r}.")
    if "://" in text or text.count("/") > 1 or "\\" in text or re.match("[A-Za-z]:", text):
        raise CheckpointError(f"There is no folder {given!r}, and a repository of the Hub has another name: check the path, or write owner/name.")
    if not re.fullmatch(r"(?!.*(--|\.\.))(\w[\w.-]*/)?\w[\w.-]{0,95}(?<![.-])(?<!\.git)", text, flags=re.ASCII):
        raise CheckpointError(f"{given!r} is neither a folder here nor a name that a repository of the Hub can have: check it, or write owner/name.")
    return text, revision


def _answer(error):
    """The HTTP response behind ``error``, or None if there was no answer."""
    answers = (getattr(link, "response", None) for link in errors.chain(error))
    return next((answer for answer in answers if answer is not None), None)


def status_of(error):
    """HTTP status behind ``error``, or None if there was no answer."""
    answer = _answer(error)
    return None if answer is None else answer.status_code


def cached_path(repository, file, revision):
    """Path of a repository's file in the cache on this disk, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, revision=revision)
    return path if isinstance(path, str) else None  # it has a mark of its own for files that are known not to exist


WANTED = ("config.json", "generation_config.json", "*token*", "*.safetensors", "*.safetensors.index.json", "quantize_config.json")


def fetch(step):
    """Bring the files of ``step`` (from the Hub) into the library's cache, unless a complete copy is there.

    Complete files stay when a later one fails. With hf_xet, the library fetches and verifies; without it, files go on where an interrupted run
    left them, and their SHA-256 is compared. Raises CheckpointError, or NotEnoughMemoryError before the first byte if the disk is too full.
    """
    repository = step.checkpoint
    if path := cached_path(repository, "config.json", step.revision):
        with contextlib.suppress(CheckpointError):
            files.check_folder(Path(path).parent, step.format)
            return
    _bring(repository, step.revision, WANTED, "*.safetensors", "no safetensors files, and the course reads no other kind")


def fetch_file(repository, name, revision="main"):
    """Return the path of one file of a repository, fetched like ``fetch`` does unless it is in the cache. Raises what ``fetch`` raises."""
    path = cached_path(repository, name, revision)
    if path is None:
        _bring(repository, revision, (name,), name, f"no file {name}")
        path = cached_path(repository, name, revision)
    return Path(path)


def names(repository, revision="main"):
    """Return the names of all files in a repository (list of str). Raises CheckpointError."""
    from huggingface_hub import HfApi

    return [f.rfilename for f in _try(lambda: HfApi().model_info(repository, revision=revision, timeout=2 * TIMEOUT), repository).siblings]


def _bring(repository, revision, wanted, needed, lacking):
    """Bring the files that match ``wanted`` (patterns) into the cache. needed: a pattern of which there must be one; lacking: words for none."""
    from huggingface_hub import HfApi, constants

    about = _try(lambda: HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=2 * TIMEOUT), repository)
    files = [f for f in about.siblings if any(fnmatch(f.rfilename, pattern) for pattern in wanted)]
    if not any(fnmatch(f.rfilename, needed) for f in files):
        raise CheckpointError(f"{repository} has {lacking}: choose another repository.")
    missing = [f for f in files if cached_path(repository, f.rfilename, about.sha) is None]
    need, cache = sum(f.size or 0 for f in missing), Path(constants.HF_HUB_CACHE)
    free = machine.disk(cache)
    if need > free:
        raise NotEnoughMemoryError(
            f"{repository} still needs {need / 1e9:.1f} GB and the disk of {cache} has {free / 1e9:.1f} GB free: make room, or set"
            f" {_variable(cache)} to a folder on another disk and restart the kernel."
        )
    if need > 1e6:
        print(f"Fetching {repository}: {need / 1e9:.2f} GB in {len(missing)} files (of {len(files)}) to {cache}.", flush=True)
    done = len(files) - len(missing)
    try:
        for file in missing:
            _try(lambda file=file: _fetch_file(repository, file, about.sha, revision), repository, f" ({done} of {len(files)} files are here and stay)")
            done += 1
    except KeyboardInterrupt:
        raise CheckpointError(f"Interrupted: {done} of {len(files)} files are here and stay. Run the cell again to go on.") from None


def config(repository, revision="main"):
    """Return the folder of the repository's config.json, fetched if it is not in the cache. Raises CheckpointError."""
    from huggingface_hub import hf_hub_download

    path = cached_path(repository, "config.json", revision)
    return Path(path or _try(lambda: hf_hub_download(repository, "config.json", revision=revision), repository)).parent


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
        with open(part, "rb") as written:
            arrived = hashlib.file_digest(written, "sha256").hexdigest()
        if arrived != file.lfs.sha256:
            part.unlink()
            raise CheckpointError(f"{file.rfilename} of {repository} arrived damaged and was thrown away: run the cell again to fetch it anew.")
        part.replace(blobs / file.lfs.sha256)
    hf_hub_download(repository, file.rfilename, revision=revision)


def _try(action, repository, state=""):
    """Return ``action()``, tried again where the problem may pass. Raises CheckpointError, a sentence."""
    try:
        return patiently(action)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{repository} cannot be fetched: {why(error, repository)}{state}. Then run the cell again, {WITHOUT}.") from None
