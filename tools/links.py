"""Does every link lead somewhere? ``python -m tools.links`` asks the network; the tests call what needs none.

Looked at: the pages (README, docs/, CONTRIBUTING and others), the notebooks, and the sources named in helpers/ and data/. A site that
answers programs with a refusal (401, 403, 405, 429, 999) or has trouble of its own (5xx) is named and does not count as an error.
"""

import html
import json
import re
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from tools import ROOT, badges

PAGES = ("*.md", "docs/**/*.md", "data/**/*.md", ".github/**/*.md", "notebooks/**/*.ipynb")
SOURCES = ("CITATION.cff", ".github/**/*.yml", "helpers/**/*.py", "data/*.json")
WEB = re.compile(r"https?://[^\s\"'<>`{}\\|\])]+(?:\([^\s\"'<>`{}\\|()]*\)[^\s\"'<>`{}\\|\])]*)*")
LOCAL = re.compile(r"https?://(?:[^/.]+(?:[:/]|$)|127\.|0\.0\.0\.0|[^/]*example\.|[^/]*:\d+)")  # of this machine, or an example
REFUSED = {401, 403, 405, 429, 999}


def files(patterns):
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if ".ipynb_checkpoints" not in path.parts]


def text(path):
    """What a reader sees of a page: of a notebook its cells, one after the other."""
    content = path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(content)["cells"]) if path.suffix == ".ipynb" else content


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(path):
    """Links of a page into the course that lead nowhere, a sentence each."""
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = path.parent / file if file else path
        if not there.exists():
            problems.append(f"{path.relative_to(ROOT)} links to {target}, which is not there")
        elif anchor and there.suffix == ".md" and anchor not in anchors(text(there)):
            problems.append(f"{path.relative_to(ROOT)} links to {target}, and no heading is called so")
    return problems


def targets():
    """Names of the targets of the Makefile."""
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def commands(path):
    """What a page tells its reader to call: {"make run", "python -m tools.run", …}, as far as it stands in code."""
    code = " \n".join(re.findall(r"```.*?```|`[^`\n]+`", text(path), flags=re.S))
    return {f"make {name}" for name in re.findall(r"\bmake ([a-z][\w-]*)", code)} | set(re.findall(r"python -m (?:tools|helpers)\.[\w.]+", code))


def addresses():
    """{address on the web: the files that name it}, without those of this course while it has none."""
    found = {}
    for path in files(PAGES + SOURCES):
        for address in WEB.findall(text(path)):
            address = html.unescape(address.rstrip(".,;:!?*_")).partition("#")[0]
            if not LOCAL.match(address) and badges.UNSET not in address and "owner/name" not in address:
                found.setdefault(address, set()).add(str(path.relative_to(ROOT)))
    return found


def ask(address, patience=20):
    """Return (status or None, what was said) of one address; asked up to three times."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)", "Accept": "*/*"})
    said = ""
    for attempt in range(3):
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return error.code, str(error.reason)
            said = f"{error.code} {error.reason}"
        except (OSError, ValueError) as error:
            said = str(getattr(error, "reason", error))
        time.sleep(2 * attempt)
    return (int(said[:3]) if said[:3].isdecimal() else None), said


def main():
    """Print what leads nowhere; return the exit status: 1 if something does, 2 if no address answered at all."""
    problems = [problem for path in files(PAGES) for problem in broken(path)]
    found = addresses()
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(ask, found)))
    if found and all(status is None for status, _ in answers.values()):
        print("\n".join(problems + [f"None of {len(found)} addresses answered ({next(iter(answers.values()))[1]}): is there a network?"]), file=sys.stderr)
        return 2
    for address, (status, said) in answers.items():
        where = f"{address} ({', '.join(sorted(found[address]))})"
        if status in REFUSED or (status or 0) >= 500:
            print(f"not told: {where}: {said or status}")
        elif status is None or status >= 400:
            problems.append(f"{where}: {said or status}")
    print("\n".join(problems) or f"{len(found)} addresses and all links inside of the course lead somewhere.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
