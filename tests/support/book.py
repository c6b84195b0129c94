"""The functions that a notebook defines, for tests of what stands in its cells."""

import ast
import json
import time

import torch

from helpers import ROOT


def functions(number, without=(), **others):
    """{name: function or class} of all that notebook ``number`` defines, but for ``without``; nothing else of it runs. others: names that they use."""
    names = {"torch": torch, "time": time} | others
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for node in ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in without:
                exec(compile(ast.Module([node], []), path.stem, "exec"), names)
    return names


def cells(number, id):
    """The source of notebook ``number``'s code cells whose id begins with ``id``, in their order."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code" and cell["id"].startswith(id)]
