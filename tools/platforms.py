"""Fetch what Colab and Kaggle have installed today, one list each for ``make replica``: ``python -m tools.platforms [colab] [kaggle]``.

Colab publishes what ``pip freeze`` prints in its GPU image, and the image's Python version (github.com/googlecolab/backend-info).
Kaggle publishes no such list. Its image is built on one of Colab's (github.com/Kaggle/docker-python, Dockerfile.tmpl): the list is that of
Colab at the date of that image. What Kaggle installs on top of it is not pinned there, and not in the list; tools/replica.py adds two packages.

The first line of a list names the Python version and where the list is from; replica reads it.
"""

import json
import os
import re
import sys
import urllib.request

from helpers.models import files
from tools import ROOT

FOLDER = ROOT / "platforms"
COLAB = "googlecolab/backend-info"
LIST, SYSTEM = "pip-freeze.gpu.txt", "os-info-gpu.txt"
KAGGLE = "https://raw.githubusercontent.com/Kaggle/docker-python/main/Dockerfile.tmpl"
BASE = re.compile(r"^FROM \S*colab\S*/runtime:\S*_(\d{4})(\d\d)(\d\d)-", flags=re.M)


class PlatformError(Exception):
    """A platform's list could not be made; the text says why."""


def fetch(url):
    """Return the text at ``url``. Raises PlatformError."""
    headers = {"User-Agent": "course"}
    if url.startswith("https://api.github.com/") and (token := os.environ.get("GITHUB_TOKEN")):  # without it, 60 requests an hour
        headers["Authorization"] = f"Bearer {token}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.read().decode("utf-8")
    except (OSError, ValueError) as error:
        raise PlatformError(f"{url} could not be fetched: {error}") from error


def raw(name, commit="main"):
    return fetch(f"https://raw.githubusercontent.com/{COLAB}/{commit}/{name}")


def colab(commit="main"):
    """Return (Python version, list) of Colab's GPU image as it was at ``commit``."""
    found = re.search(r"^Python (\d+\.\d+)", raw(SYSTEM, commit), flags=re.M)
    if not found:
        raise PlatformError(f"{SYSTEM} of {COLAB} names no Python version.")
    return found.group(1), raw(LIST, commit)


def kaggle():
    """Return (Python version, list) of the Colab image on which Kaggle's GPU image is built."""
    found = BASE.search(fetch(KAGGLE))
    if not found:
        raise PlatformError(f"{KAGGLE} names no Colab image any more: what is Kaggle's image built on?")
    date = "-".join(found.groups())
    commits = json.loads(fetch(f"https://api.github.com/repos/{COLAB}/commits?path={LIST}&until={date}T23:59:59Z&per_page=1"))
    if not commits:
        raise PlatformError(f"{COLAB} has no list of {date} or before.")
    return colab(commits[0]["sha"])


def main(names=(), folder=FOLDER):
    """Write colab.txt and kaggle.txt (or only those of ``names``) into ``folder``; return how many could not be made."""
    failed = 0
    for name in names or ("colab", "kaggle"):
        try:
            python, text = {"colab": colab, "kaggle": kaggle}[name]()
        except PlatformError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        files.write(folder / f"{name}.txt", f"# Python {python}\n{text}")
        print(f"{folder / name}.txt: Python {python}, {sum('==' in line for line in text.splitlines())} packages with a version")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
