"""Is this fit to commit? ``python -m tools.check [name …]`` runs the checks named (all without a name), ``--fix`` mends what can be mended.

lint      ruff's rules, for modules and for the notebooks' code (pyproject.toml)
format    ruff's layout, for both
outputs   no notebook holds outputs or counts of executions
badges    badges, links and set-up cells are those that make badges writes
versions  pre-commit uses the versions of requirements/check.txt
"""

import re
import subprocess
import sys

from helpers.models import files
from tools import ROOT, badges

FIX = "make format mends what can be mended (without make: python -m tools.check --fix)."


def program(*command):
    """Run a Python program on the course; what it says goes to the terminal. Returns whether it was content."""
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode == 0


def lint(fix):
    return program("ruff", "check", "--quiet", *(["--fix"] if fix else ["--output-format", "concise"]))


def format(fix):
    return program("ruff", "format", "--quiet", *([] if fix else ["--check", "--output-format", "concise"]))


def outputs(fix):
    notebooks = [str(path) for path in sorted((ROOT / "notebooks").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    return program("nbstripout", "--keep-id", *([] if fix else ["--verify"]), *notebooks)


def badges_(fix):
    if fix:
        return badges.main(badges.REPOSITORY) == 0
    stale = badges.stale()
    for path in stale:
        print(f"{path.relative_to(ROOT)}: not as make badges writes it")
    return not stale


def versions(fix):
    """Those of .pre-commit-config.yaml follow requirements/check.txt."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements" / "check.txt").read_text(encoding="utf-8"), flags=re.M))
    path = ROOT / ".pre-commit-config.yaml"
    before = path.read_text(encoding="utf-8")
    text = re.sub(r"\b([\w-]+)==[\w.]+", lambda found: f"{found[1]}=={pins.get(found[1], '?')}", before)
    if fix and text != before:
        files.write(path, text)
    elif text != before:
        print(f"{path.name}: other versions than in requirements/check.txt")
    return fix or text == before


CHECKS = {"lint": lint, "format": format, "outputs": outputs, "badges": badges_, "versions": versions}


def main(arguments):
    """Run the checks; return the exit status."""
    fix, names = "--fix" in arguments, [name for name in arguments if name != "--fix"]
    if unknown := set(names) - set(CHECKS):
        print(f"No check is called {' or '.join(sorted(unknown))}: choose from {', '.join(CHECKS)}.", file=sys.stderr)
        return 2
    failed = []
    for name in names or CHECKS:
        good = CHECKS[name](fix)
        print(f"{name:10}{'ok' if good else 'FAILED'}", flush=True)
        failed += [] if good else [name]
    if failed:
        print(f"{', '.join(failed)}: see above. {'' if fix else FIX}".rstrip(), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
