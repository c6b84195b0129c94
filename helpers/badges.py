"""Write what every notebook has in common, from one place: badges, links, set-up cell and metadata.

``make badges REPOSITORY=owner/name`` publishes the course under another address: it changes REPOSITORY below, then rewrites the
notebooks and the README. Run again, it changes no byte.
"""

import re
import sys

from helpers import ROOT

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
SETUP = """\
import os, sys  # set-up, the same in every notebook: fetches the course if this notebook was opened alone, and adds what is missing
course = next((d for d in ("..", ".", "course") if os.path.isfile(f"{d}/helpers/setup.py")), "course")
if not os.path.isfile(f"{course}/helpers/setup.py")%s
sys.path.insert(0, os.path.abspath(course)); from helpers import setup; setup.prepare()"""
FETCH = """\
 and os.system(f"git -c core.askPass=true clone --quiet --depth 1 https://github.com/%s {course}"):
    sys.exit("The course could not be fetched from https://github.com/%s: check that git is installed and the network is up (on Kaggle: Settings > Turn on internet), delete a folder course/ that is left over, and run this cell again.")"""
NO_ADDRESS = """\
:
    sys.exit("This notebook was opened alone, and the address of its course is not set yet: get the whole course and open this notebook in its folder notebooks/ (its owner sets the address with: make badges REPOSITORY=owner/name).")"""


def setup_cell(repository):
    """Return the source of the first code cell of every notebook. It needs nothing but Python, and git if it must fetch the course."""
    return SETUP % (NO_ADDRESS if repository == UNSET else FETCH % (repository, repository))


def title(notebook):
    """Title of a notebook: its first line, e.g. "01 · Llama-2 7B in 8 bits"."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def dress(notebook, name, previous, following, repository):
    """Write badges, links, set-up cell and metadata into ``notebook``. previous, following: (file name, title), or None at the ends."""

    def links(neighbour):
        file, text = neighbour
        return f"[{text}]({file}) ([in Colab]({COLAB.format(repository=repository, branch=BRANCH, name=file)}))"

    colab, kaggle = (url.format(repository=repository, branch=BRANCH, name=name) for url in (COLAB, KAGGLE))
    badges = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )
    ways = [f"**{word}:** {links(n)}" for word, n in (("Previous", previous), ("Next", following)) if n]
    first, last = notebook.cells[0], notebook.cells[-1]
    heading, _, rest = _without_block(first.source).partition("\n")
    first.source = f"{heading}\n\n{START}\n{badges}\n\n{' · '.join(ways)}\n{END}\n\n{rest.strip()}"
    last.source = f"{_without_block(last.source).strip()}\n\n{START}\n{' · '.join(reversed(ways))}\n{END}"
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = setup_cell(repository)
    notebook.metadata = METADATA


def _without_block(source):
    return re.sub(rf"{re.escape(START)}.*?{re.escape(END)}", "", source, flags=re.S)


def main(repository, root=ROOT):
    """Set the course's address to ``repository`` ("owner/name") in every notebook, in the README and in this module; return the exit status."""
    import nbformat

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository or ""):
        print(f"{repository!r} is no repository: write make badges REPOSITORY=owner/name.", file=sys.stderr)
        return 2
    this = root / "helpers" / "badges.py"
    source = this.read_text(encoding="utf-8")
    before = re.search(r'^REPOSITORY = "([^"]+)"', source, flags=re.M).group(1)
    _write(this, source.replace(f'REPOSITORY = "{before}"', f'REPOSITORY = "{repository}"', 1))
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    names = [None, *((path.name, title(notebook)) for path, notebook in zip(paths, notebooks)), None]
    for place, (path, notebook) in enumerate(zip(paths, notebooks)):
        dress(notebook, path.name, names[place], names[place + 2], repository)
        _write(path, nbformat.writes(notebook) + "\n")
    readme = root / "README.md"
    address = re.compile(rf"(github(?:\.com)?/){re.escape(before)}(?=[/\s)])")
    _write(readme, address.sub(rf"\g<1>{repository}", readme.read_text(encoding="utf-8")))
    print(f"{len(paths)} notebooks and the README now belong to github.com/{repository}.")
    return 0


def _write(path, text):
    """Write ``text`` unless the file says so already."""
    if path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY))
