"""The house of helpers/: arrows go one way, rooms stay small, nothing stands unused, and each name is where its docstring says."""

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import lru_cache
from types import ModuleType

import pytest

from helpers import ROOT

HOUSE = ROOT / "helpers"
TABLE = (  # a row may import those above it: "." is the package itself
    ".", "errors", "machine.network", "machine.share", "machine", "process", "setup", "models.catalogue", "models.sizes", "models.files", "models.hub", "models.synthetic", "models.choose", "exercises.predictions", "exercises", "kernels",
    "loading.memory", "loading.library", "loading", "machine.speed", "timing", "ledger.rows", "ledger", "plots", "limits", "quality", "quantise", "benchmark.profile", "benchmark.job", "benchmark",
    "engines.timed", "quantise.formats", "engines.llamacpp", "engines.native", "engines.onnx_models", "engines.old_stack", "engines.clients", "engines.serving", "engines.advice", "article", "article.published",
    "article.breakdown", "article.compare", "article.claims",
)  # fmt: skip
FOLDERS = {"models", "engines"}  # packages that hold rooms and no code
NAMES, LONGEST = 17, 380  # the seventeenth: exercises, for what is asked of the reader and not of the machine
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def module_of(path):
    """The name of a file of helpers/ as TABLE has it."""
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix("__init__").rstrip(".") or "."


PATHS = {module_of(path): path for path in sorted(HOUSE.rglob("*.py"))}


def imported(tree, package=""):
    """Modules of helpers (names as in TABLE) that ``tree`` imports, wherever the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "no relative imports"
            asked = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        for name in asked:
            if name.startswith("helpers."):
                found |= {name.removeprefix("helpers.")} & (set(PATHS) - FOLDERS)
    return found


EXERCISES = sorted((ROOT / "notebooks" / "exercises").glob("[0-9][0-9]_*.ipynb"))


def cells(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@lru_cache
def code(number):
    """(source, modules of helpers that it imports) of notebook ``number`` and its exercises; answers (%%exercise) left out."""
    found = [cell for path in (*NOTEBOOKS, *EXERCISES) if path.name.startswith(number) for cell in cells(path)]
    source = "\n".join(cell for cell in found if not cell.startswith("%%"))
    tree = compile(source, number, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return source, imported(tree)


@lru_cache
def needs(module):
    """The modules that ``module`` imports, itself left out (its own commands and parts name it)."""
    return imported(ast.parse(PATHS[module].read_text(encoding="utf-8"))) - {module}


@lru_cache
def reachable(module):
    """``module`` and all that it needs, and that those need. (It ends, because the arrows go one way.)"""
    return {module}.union(*map(reachable, needs(module)))


def test_the_table_is_complete():
    assert set(TABLE) | FOLDERS == set(PATHS)
    for folder in FOLDERS:
        assert len(ast.parse(PATHS[folder].read_text(encoding="utf-8")).body) == 1, f"helpers/{folder}/__init__.py is for a docstring"


@pytest.mark.parametrize("module", TABLE)
def test_imports_go_one_way(module):
    """At the top of a file and inside of functions."""
    wrong = needs(module) - set(TABLE[: TABLE.index(module)])
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, which stands below it"


def test_few_names_and_none_too_long():
    names = {module.split(".")[0] for module in PATHS if module != "."}
    assert len(names) <= NAMES, sorted(names)
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in PATHS.items()}
    assert max(lengths.values()) <= LONGEST, max(lengths, key=lengths.get)


def test_no_module_is_used_by_nothing():
    used = set().union(*(code(path.name[:2])[1] for path in NOTEBOOKS), *map(needs, PATHS))
    assert set(TABLE) - used - {"."} == set()


@pytest.mark.parametrize("module", [name for name in TABLE if name != "."])
def test_first_used_where_it_says(module):
    """The notebook imports the module, or one that imports it; and no earlier notebook imports it itself."""
    said = re.search(r"First\s+used\s+in\s+notebook\s+(\d\d)", ast.get_docstring(ast.parse(PATHS[module].read_text(encoding="utf-8"))) or "")
    assert said, f"the docstring of {module} does not say where it is first used"
    number = said[1]
    assert module in set().union(*map(reachable, code(number)[1])), f"notebook {number} does not use {module}"
    earlier = [path.name for path in NOTEBOOKS if path.name[:2] < number and module in code(path.name[:2])[1]]
    assert not earlier, f"{module} is used in {earlier[0]} before"


def test_functions_that_name_their_notebook_are_used_there():
    for module, path in PATHS.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for number in re.findall(r"First\s+used\s+in\s+notebook\s+(\d\d)", ast.get_docstring(node) or ""):
                    assert re.search(rf"\b{node.name}\b", code(number)[0]), f"{module}.{node.name} is not in notebook {number}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_at_most_six_names(path):
    """In one cell, after the set-up; the import line tells what the notebook is about."""
    wanted = r"^from helpers(?:\.[\w.]+)? import ([^\n#]+)"
    with_imports = [cell for cell in cells(path)[1:] if re.search(wanted, cell, flags=re.M) or re.search(r"^import helpers", cell, flags=re.M)]
    assert len(with_imports) == 1, "the imports of helpers stand in one cell"
    names = {name.strip() for line in re.findall(wanted, with_imports[0], flags=re.M) for name in line.split(",")}
    assert 1 <= len(names) <= 6, sorted(names)
    source = "\n".join(cells(path)[1:])
    assert all(len(re.findall(rf"\b{name}\b", source)) > 1 for name in names), "a name that is imported and not used"


def test_helpers_import_without_torch():
    """All of them, one after the other, in a process of its own."""
    modules = [f"helpers.{module}" for module in TABLE if module != "."]
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-500:]


@pytest.mark.parametrize("path", sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "data").rglob("*.py"), *NOTEBOOKS]), ids=lambda path: path.stem)
def test_what_programs_take_from_the_house_is_there(path):
    """Every name that tools/, data/ and notebooks read from helpers exists: no test runs all of these programs to their end."""
    text = code(path.name[:2])[0] if path in NOTEBOOKS else path.read_text(encoding="utf-8")
    tree, rooms = compile(text, path.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            module = importlib.import_module(node.module)
            for alias in node.names:
                thing = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                if isinstance(thing, ModuleType):
                    rooms[alias.asname or alias.name] = thing
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            assert hasattr(rooms[node.value.id], node.attr), f"{path.name}:{node.lineno} {node.value.id}.{node.attr}"
