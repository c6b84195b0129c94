"""Write what every notebook has in common, from one place: badges, links, set-up cell and metadata.

``make badges`` publishes the course under the address that git knows as origin, ``make badges REPOSITORY=owner/name`` under another one:
it changes REPOSITORY below, then rewrites the notebooks and the pages that name the address. Run again, it changes no byte.
"""

import re
import subprocess
import sys

from helpers.models import files
from tools import ROOT

REPOSITORY = "OWNER/NAME"  # of the course on GitHub; OWNER/NAME: not published yet
UNSET = "OWNER/NAME"
BRANCH = "main"
COLAB = "https://colab.research.google.com/github/{repository}/blob/{branch}/notebooks/{name}"
KAGGLE = "https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/{branch}/notebooks/{name}"
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kaggle": {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": True, "language": "python", "sourceType": "notebook"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
START, END = "<!-- navigation: make badges writes it -->", "<!-- /navigation -->"

PAGES = ("README.md", "CONTRIBUTING.md", "CITATION.cff", "docs/**/*.md", ".github/ISSUE_TEMPLATE/*.yml")  # beside the notebooks, these name the address
ORIGIN = re.compile(  # https://github.com/owner/name, git@github.com:owner/name.git, ssh://git@github.com/owner/name.git
    r"(?:(?:https?|git)://(?:[^/@]*@)?(?:www\.)?github\.com/|ssh://(?:[^/@]*@)?(?:ssh\.)?github\.com(?::\d+)?/|(?:[^/@]*@)?github\.com:/?)"
    r"([\w.-]+/[\w.-]+?)(?:\.git)?/?",
    re.IGNORECASE,
)

# The cell keeps its layout where ruff would make it twice as long: readers scroll past it in every notebook.
SETUP = """\
REPOSITORY = "%(repository)s"%(field)s
import os, %(re)ssys  # set-up, the same in every notebook: fetches the course if this notebook was opened alone, and adds what is missing

course = next((d for d in ("..", ".", "course") if os.path.isfile(f"{d}/helpers/setup.py")), "course")
if not os.path.isfile(f"{course}/helpers/setup.py"):
%(ask)s    if os.system(f"git -c core.askPass=true clone --quiet --depth 1 https://github.com/{REPOSITORY} {course}"):
        sys.exit(f"The course could not be fetched from https://github.com/{REPOSITORY}: check that git is installed and the network is up (on Kaggle: Settings > Turn on internet), delete a folder course/ that is left over, and run this cell again.")  # fmt: skip
sys.path.insert(0, os.path.abspath(course)); from helpers import setup; setup.prepare()  # fmt: skip"""
FIELD = '  # @param {type:"string"}'  # Colab draws a form field for it
ASK = r"""    REPOSITORY = "/".join(re.findall(r"[\w.-]+", REPOSITORY.split("github.com")[-1])[:2])  # also of a pasted https://github.com/owner/name
    REPOSITORY or sys.exit("This notebook was opened alone, and it does not know where its course is: paste the course's address on GitHub, owner/name, into the field REPOSITORY (outside Colab: between the quotes in the first line of this cell) and run the cell again.")  # fmt: skip
"""


def setup_cell(repository):
    """Return the source of the first code cell of every notebook. It needs nothing but Python, and git if it must fetch the course."""
    if repository == UNSET:
        return SETUP % {"repository": "", "field": FIELD, "re": "re, ", "ask": ASK}
    return SETUP % {"repository": repository, "field": "", "re": "", "ask": ""}


def title(notebook):
    """Title of a notebook: its first line, e.g. "01 · Llama-2 7B in 8 bits"."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def button(colab):
    """The button that opens a notebook in Colab."""
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"


def badges(repository, name):
    """The two buttons that open the notebook ``name`` elsewhere, side by side."""
    colab, kaggle = (url.format(repository=repository, branch=BRANCH, name=name) for url in (COLAB, KAGGLE))
    return f"{button(colab)}\n[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"


def link(words, file, repository, name):
    """A link to the notebook ``file``, with one that opens it in Colab. name: the same, seen from notebooks/."""
    return f"[{words}]({file}) ([in Colab]({COLAB.format(repository=repository, branch=BRANCH, name=name)}))"


def dress(notebook, name, previous, following, repository, exercises=None):
    """Write badges, links, set-up cell and metadata into ``notebook``. previous, following, exercises: (file name, title), or None where there is none."""

    def links(neighbour):
        file, text = neighbour
        return link(text, file, repository, file)

    ways = [f"**{word}:** {links(n)}" for word, n in (("Previous", previous), ("Next", following)) if n]
    first, last = notebook.cells[0], notebook.cells[-1]
    heading, _, rest = _without_block(first.source).partition("\n")
    practice = f"**Exercises:** {links(exercises)}\n\n" if exercises else ""
    first.source = f"{heading}\n\n{START}\n{badges(repository, name)}\n\n{' · '.join(ways)}\n{END}\n\n{rest.strip()}"
    last.source = f"{_without_block(last.source).strip()}\n\n{START}\n{practice}{' · '.join(reversed(ways))}\n{END}"
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = setup_cell(repository)
    notebook.metadata = METADATA


def _without_block(source):
    return re.sub(rf"{re.escape(START)}.*?{re.escape(END)}", "", source, flags=re.S)


def beside(notebook, name, repository):
    """As ``dress``, for the notebooks of notebooks/teaching: they have no neighbours, stand one folder deeper, and need no GPU."""
    first = notebook.cells[0]
    heading, _, rest = _without_block(first.source).partition("\n")
    colab = COLAB.format(repository=repository, branch=BRANCH, name=f"teaching/{name}")
    first.source = f"{heading}\n\n{START}\n{button(colab)}\n{END}\n\n{rest.strip()}"
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = setup_cell(repository).replace('("..", ', '("../..", ', 1)
    notebook.metadata = {key: METADATA[key] for key in ("kernelspec", "language_info")} | {"colab": {"provenance": []}}


def origin(root=ROOT):
    """Address "owner/name" of the repository on GitHub from which ``root`` was cloned. Raises ValueError, a sentence, if there is none."""
    other = "write make badges REPOSITORY=owner/name."
    try:
        git = ["git", "-C", str(root)]
        inside = subprocess.run([*git, "rev-parse", "--show-prefix"], capture_output=True, text=True)
        done = subprocess.run([*git, "remote", "get-url", "origin"], capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"git is not installed, so the course's address is not known: {other}") from None
    if inside.returncode or inside.stdout.strip() or done.returncode:
        raise ValueError(f"This folder has no git remote called origin, so the course's address is not known: {other}")
    url = done.stdout.strip()
    if not (found := ORIGIN.fullmatch(url)):
        shown = re.sub(r"//[^/@]*@", "//", url)  # no password
        raise ValueError(f"origin is {shown}, and Colab and Kaggle open notebooks from GitHub only: push the course there, then {other}")
    return found.group(1)


def written(repository, root=ROOT):
    """Return {path: text} of every file that names the course's address, as it is with the address ``repository`` ("owner/name")."""
    import nbformat

    from tools import exercises  # late: it takes badges and set-up cell from here

    this = root / "tools" / "badges.py"
    source = this.read_text(encoding="utf-8")
    before = re.search(r'^REPOSITORY = "([^"]+)"', source, flags=re.M).group(1)
    texts = {this: source.replace(f'REPOSITORY = "{before}"', f'REPOSITORY = "{repository}"', 1)}
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    names = [None, *((path.name, title(notebook)) for path, notebook in zip(paths, notebooks)), None]
    practice = exercises.written(repository, root)
    for place, (path, notebook) in enumerate(zip(paths, notebooks)):
        asked = f"exercises/{exercises.name(path.name[:2])}", "check yourself, with hints and solutions"
        dress(notebook, path.name, names[place], names[place + 2], repository, asked if root / "notebooks" / asked[0] in practice else None)
        texts[path] = nbformat.writes(notebook) + "\n"
    texts |= practice
    address = re.compile(rf"((?:github(?:\.com)?|codespaces\.new)/){re.escape(before)}(?!\.?[\w-])")
    for page in sorted(page for pattern in PAGES for page in root.glob(pattern)):
        texts[page] = address.sub(rf"\g<1>{repository}", page.read_text(encoding="utf-8"))
    for path in sorted((root / "notebooks" / "teaching").glob("*.ipynb")):
        beside(notebook := nbformat.read(path, as_version=4), path.name, repository)
        texts[path] = nbformat.writes(notebook) + "\n"
    return texts


def write(texts):
    """Write ``texts`` ({path: text}), where a file is missing or another."""
    for path, text in texts.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write(path, text)


def stale(root=ROOT):
    """Paths of the files that make badges would change, were it run with the address that is set."""
    return [path for path, text in written(REPOSITORY, root).items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main(repository="", root=ROOT):
    """Set the course's address to ``repository`` ("owner/name"; without one, origin's) wherever it is named; return the exit status."""
    try:
        repository = repository or origin(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        print(f"{repository!r} is no repository: write make badges REPOSITORY=owner/name.", file=sys.stderr)
        return 2
    texts = written(repository, root)
    write(texts)
    print(f"{sum(path.suffix == '.ipynb' for path in texts)} notebooks and the pages beside them now belong to github.com/{repository}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
