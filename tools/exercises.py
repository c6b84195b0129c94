"""Write the exercise notebooks from their one source, ``notebooks/exercises/source/NN.md``: ``python -m tools.exercises``.

notebooks/exercises/NN_exercises.ipynb            the learner's: each exercise as a stub, hint and solution folded; make badges and make check look after it too
notebooks/exercises/solutions/NN_solutions.ipynb  the instructor's: solved, with typical wrong answers and what is said to them; not kept in git
"""

import sys

from helpers import exercises
from tools import ROOT, badges

METADATA = {key: value for key, value in badges.METADATA.items() if key != "accelerator"} | {  # no GPU preselected: no exercise needs one
    "colab": {"provenance": []},
    "kaggle": badges.METADATA["kaggle"] | {"accelerator": "none", "isGpuEnabled": False},
}
HOW = """\
Each exercise is one cell that begins with `%%exercise`. Replace every `...` by code of your own and run the cell: it says whether the answer is right, and if not, what is wrong with it. An exercise that you leave alone does not stop the notebook. Hints and solutions unfold with a click, or with the Enter key."""
ABOVE = '("../..", ".", "course")'  # where the course is, seen from notebooks/exercises


def name(number):
    return f"{number}_exercises.ipynb"


def folded(summary, text):
    """Text that unfolds: in Jupyter, Colab, Kaggle and on GitHub."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def fenced(code):
    return f"```python\n{code}\n```"


def link(words, file, repository):
    """A link to another notebook, with one that opens it in Colab. file: seen from notebooks/exercises."""
    there = file.removeprefix("../") if file.startswith("../") else f"exercises/{file}"
    return badges.link(words, file, repository, there)


def cells(sheet, solved):
    """Yield (kind, id, source) of each cell between the set-up cell and the last one."""
    yield "code", "begin", f'from helpers import exercises\n\nexercises.begin("{sheet.number}")'
    for place, code in enumerate(sheet.given):
        yield "code", f"given-{place}", code
    for one in sheet.exercises.values():
        yield "markdown", f"{one.name}-task", f"## {one.number}. {one.title} ({one.level})\n\n{one.task}\n\n{folded('Hint', one.hint)}"
        for place, code in enumerate(one.given):
            yield "code", f"{one.name}-given-{place}", code
        yield "code", f"{one.name}-answer", f"%%exercise {one.name}\n{one.solution if solved else one.stub}"
        if solved:
            lines = [f"**{mistake}**: the check says “… {said} …”\n\n{fenced(code)}" for mistake, said, code in one.wrong]
            yield "markdown", f"{one.name}-wrong", "Typical wrong answers:\n\n" + "\n\n".join(lines)
        else:
            yield "markdown", f"{one.name}-solution", folded("Solution", f"{fenced(one.solution)}\n\n{one.right}")
    choices = "\n".join(f"{n}. {text}" for n, (text, *_) in enumerate(sheet.answers, 1))
    meanings = "\n".join(f"{n}. {'**Right.**' if right else 'No.'} {why}" for n, (_, right, why) in enumerate(sheet.answers, 1))
    buttons = "(By keyboard, in JupyterLab: run the cell with Ctrl and Enter, Tab goes to the answers, Space chooses one. No buttons below? `exercises.question(1)` says what answer 1 means.)"
    yield "markdown", "question", f"## A question, without code\n\n{sheet.question}\n\n{choices}\n\n{buttons}\n\n{folded('What each answer means', meanings)}"
    yield "code", "question-answers", "exercises.question()"
    yield "markdown", "summary", "## How far are you?"
    yield "code", "summary-table", "exercises.summary()"


def notebook(sheet, main, neighbours, repository, solved=False):
    """The notebook of ``sheet``. main: (file name, title) of the notebook whose exercises they are, None where there is none yet. neighbours: (word, sheet)."""
    from nbformat import v4

    ways = [f"**Notebook:** {link(main[1], f'../{main[0]}', repository)}"] if main else []
    ways += [f"**{word}:** {link(other.title, name(other.number), repository)}" for word, other in neighbours]
    around = f"{badges.START}\n{{}}{' · '.join(ways)}\n{badges.END}"
    if solved:  # not on GitHub: no address
        head = f"# {sheet.title}: solutions\n\nFor teachers. What learners get is in `{name(sheet.number)}`.\n\n{sheet.intro}"
    else:
        head = f"# {sheet.title}\n\n{around.format(badges.badges(repository, f'exercises/{name(sheet.number)}') + chr(10) * 2)}\n\n{sheet.intro}\n\n{HOW}"
    setup = badges.setup_cell(repository).replace('("..", ".", "course")', ABOVE.replace("../..", "../../..") if solved else ABOVE)
    parts = [("markdown", "head", head), ("code", "setup", setup), *cells(sheet, solved), *([] if solved else [("markdown", "end", around.format(""))])]
    made = [(v4.new_code_cell if kind == "code" else v4.new_markdown_cell)(source, id=id) for kind, id, source in parts]
    return v4.new_notebook(cells=made, metadata=METADATA)


def written(repository, root=ROOT, solved=False):
    """Return {path: text} of the learner's exercise notebooks, or of the instructor's, with the address ``repository``."""
    import nbformat

    folder = root / "notebooks" / "exercises"
    sheets = [exercises.read(path.stem, path.parent) for path in sorted((folder / "source").glob("[0-9][0-9].md"))]
    found = {}
    for place, sheet in enumerate(sheets):
        main = next(((path.name, badges.title(nbformat.read(path, as_version=4))) for path in (root / "notebooks").glob(f"{sheet.number}_*.ipynb")), None)
        neighbours = [*zip(["Previous exercises"], sheets[max(0, place - 1) : place]), *zip(["Next exercises"], sheets[place + 1 : place + 2])]
        path = folder / "solutions" / f"{sheet.number}_solutions.ipynb" if solved else folder / name(sheet.number)
        found[path] = nbformat.writes(notebook(sheet, main, neighbours, repository, solved)) + "\n"
    return found


def main():
    """Write all of them; return the exit status."""
    texts = written(badges.REPOSITORY) | written(badges.REPOSITORY, solved=True)
    badges.write(texts)
    print(f"{len(texts) // 2} notebooks with exercises in notebooks/exercises, solved ones in notebooks/exercises/solutions.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
