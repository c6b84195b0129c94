"""Look up everything that the course calls of torch, transformers and their neighbours in the versions that are installed: ``python -m tools.static``.

A branch for GPUs runs on no test machine without one, and a name that an old torch lacks would be found by a learner. So each name that
helpers/ and the notebooks read of these libraries must exist, and each keyword must be one that the function takes, where Python can tell.
"""

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "huggingface_hub")


def main():
    """The command; return the exit status."""
    from helpers import kernels

    kernels.library()  # quietly, before anything else imports it
    problems, names = [], 0
    for path, source in sources():
        found, count = check(source, path.relative_to(ROOT))
        problems += found
        names += count
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in ("torch", "transformers"))
    print("\n".join(problems) or f"All {names} names that the course reads of its libraries exist in {versions}.")
    return int(bool(problems))


def sources():
    """(path, Python source) of each module of helpers/ and each notebook."""
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def check(source, where):
    """([sentence], how many names were looked up) for one source text."""
    tree, problems, count = ast.parse(source), [], 0
    known = imported(tree, where, problems)
    for node in ast.walk(tree):
        chain = name_of(node) if isinstance(node, (ast.Attribute, ast.Call)) else None
        if not chain or chain[0] not in known:
            continue
        count += 1
        thing, lacking = look_up(known[chain[0]], chain[1:])
        if lacking:
            problems.append(f"{where}:{node.lineno} {'.'.join(chain)}: there is no {lacking}")
        elif isinstance(node, ast.Call):
            problems += [f"{where}:{node.lineno} {'.'.join(chain)}() takes no {keyword}" for keyword in not_taken(thing, node)]
    return problems, count


def imported(tree, where, problems):
    """{name in this source: the library's module or object}; what cannot be imported goes into ``problems``."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] in LIBRARIES and (module := load(each.name, where, node, problems)):
                    known[each.asname or each.name.split(".")[0]] = module if each.asname else sys.modules[each.name.split(".")[0]]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in LIBRARIES:
            module = load(node.module, where, node, problems)
            for each in node.names if module else ():
                try:
                    known[each.asname or each.name] = getattr(module, each.name)
                except AttributeError:
                    known[each.asname or each.name] = load(f"{node.module}.{each.name}", where, node, problems)
    return known


def load(name, where, node, problems):
    """The module ``name``, or None and a sentence in ``problems``."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        problems.append(f"{where}:{node.lineno} import {name}: {error}")
        return None


def name_of(node):
    """["torch", "cuda", "synchronize"] for such an expression, or for a call of it; None for others."""
    node, parts = node.func if isinstance(node, ast.Call) else node, []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else None


def look_up(thing, parts):
    """(object, "") that ``parts`` lead to from ``thing``, or (None, the part that is not there)."""
    for part in parts:
        try:
            thing = getattr(thing, part)
        except AttributeError:
            return None, part
    return thing, ""


def not_taken(thing, call):
    """The keywords of ``call`` that ``thing`` does not take, as far as its signature tells."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []
    return [keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg not in {parameter.name for parameter in parameters}]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
