"""Every sentence that the helpers raise says what happened, and then what to do next. All of them are read from the source."""

import ast
import re
from itertools import product

import pytest

from helpers import ROOT, errors

CLASSES = {"CourseError"} | {
    node.name
    for path in (ROOT / "helpers").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef) and {getattr(base, "id", "") for base in node.bases} & set(dir(errors)) & {n for n in dir(errors) if n.endswith("Error")}
}
ADVICE = (
    "accept|add|ask|build|call|check|choose|close|copy|correct|cut|delete|export|fetch|forbid|free|give|go on|install|keep|leave|let|load|log in|look|make|measure|"
    "name|open|pass|pick|put|quantise|read|release|remove|restart|run|score|set|shorten|start|take|try|unset|update|upgrade|use|wait|write"
)
NEXT = re.compile(
    rf"(?:[:;,.(] |… ?|\b(?:or|and|then|so) )(?:(?:or|and|then|so|to|please|first|in \w+|elsewhere|meanwhile|on \w+) )*(?:{ADVICE})\b", re.IGNORECASE
)
HERE = {  # where the sentence comes from, of those that stand elsewhere: "module:function" that raises
    "clients:measure": "clients:_why, above", "process:_answer": "what the process itself raised, with its class",
}  # fmt: skip
TOLD = {
    "otherwise",
    "told",
    "wrong",
}  # names of what other sentences are filled in with: those of errors.disk_trouble, machine.network, hub.why, ledger.refusal, which have tests, and advice that a caller gives


def texts(node, names):
    """All texts that an expression can make, "…" for what is filled in; [] if it is no text. names: {name: expressions that the function gives to it}."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [""] if not node.values else ["".join(parts) for parts in product(*(texts(part, names) or ["…"] for part in node.values))]
    if isinstance(node, ast.FormattedValue):
        return texts(node.value, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return ["".join(parts) for parts in product(texts(node.left, names), texts(node.right, names))]
    if isinstance(node, ast.IfExp):
        branches = [texts(branch, names) for branch in (node.body, node.orelse) if names.get(getattr(branch, "id", ""), 1)]  # not the name's own old value
        return sum(branches, []) if all(branches) else []
    if isinstance(node, ast.Name) and node.id in TOLD or isinstance(node, ast.Call) and getattr(node.func, "id", "") == "why":
        return ["that is what happened: check it"]
    if isinstance(node, ast.Name):
        found = [texts(value, names | {node.id: ()}) for value in names.get(node.id, ())]
        return sum(found, []) if all(found) else []
    return []


def sentences():
    """(where, text or None) of each CourseError that is raised or made, and of each sentence that a function named _why returns, in all its alternatives."""
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        module = path.parent.name if path.name == "__init__.py" else path.stem
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            names = {}
            for node in (*tree.body, *ast.walk(function)):  # what the module names, and the function
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    names.setdefault(node.targets[0].id, []).append(node.value)
            for node in ast.walk(function):
                where = f"{module}:{function.name}:{getattr(node, 'lineno', '')}"
                if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in CLASSES and node.args:
                    yield from ((where, text) for text in texts(node.args[0], names) or [None])
                elif isinstance(node, ast.Return) and function.name == "_why" and isinstance(node.value, ast.JoinedStr):
                    yield from ((where, text) for text in texts(node.value, names))


FOUND = sorted(set(sentences()), key=str)


def test_there_are_as_many_as_there_were():
    assert len(FOUND) > 90 and {"DiskError", "ServerError", "EndpointError", "ProcessError", "EstimateError", "KernelError"} <= CLASSES


@pytest.mark.parametrize("where, text", [pytest.param(*each, id=each[0]) for each in FOUND])
def test_it_says_what_happened_and_what_to_do_next(where, text):
    if text is None:
        assert where.rsplit(":", 1)[0] in HERE, f"{where}: write the sentence there, or say in HERE where it stands"
        return
    advice = NEXT.search(text)
    assert advice, f"{where} gives no advice: {text}"
    assert len(re.findall(r"\w+|…", text[: advice.start()])) >= 3, f"{where} does not say what happened: {text}"
    assert "\n" not in text and text.endswith((".", "…", "check it")), f"{where} is no sentence: {text}"


@pytest.mark.parametrize(
    "text, advises", [("The prompt is empty: give one.", True), ("The engine returned 3 tokens: the timing would be wrong.", False), ("The server died. Start it again.", True),
                      ("… is no port, or leave it out.", True), ("Check it.", False)],
)  # fmt: skip
def test_the_check_can_tell(text, advises):
    advice = NEXT.search(text)
    assert bool(advice and len(re.findall(r"\w+|…", text[: advice.start()])) >= 3) == advises
