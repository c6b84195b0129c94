"""What cells printed, made readable on a page: progress as one line, controls as what they showed, no folder of this machine. For tools.book."""

import html
import json
import re
import tempfile
from pathlib import Path

from helpers import setup
from tools import ROOT

WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"^(.*?):?\s+\d+%\|(?:[^|]*\|)?\s*(\S+/\S+)\s\[([\d:]+)")  # what tqdm writes; as a widget without the bar, and with other spaces
CLOCK = re.compile(r"^(.*): ()((?:\d+:)?\d\d:\d\d)$")  # what a wait writes
UNIT = re.compile(r"(?<=\d) (?=(?:[mµn]?s|[kMGT]?B|GB/s)\b|%)")  # the space between a number and its unit


def readable(notebook):
    """Make the outputs of ``notebook`` readable on a page: progress as one line each, controls as what they showed, no folder of this machine."""
    models = notebook["metadata"].pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook["cells"]:
        lines, kept = [], []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if output["output_type"] == "stream" and output["name"] == "stderr":
                lines += ["".join(output["text"])]
            elif WIDGET in data:
                text, shown = controls(data[WIDGET]["model_id"], models)
                lines += [f"\n{text}\n"] if text else []
                kept += [{"output_type": "display_data", "metadata": {}, "data": {"text/html": shown}}] if shown else []
            else:
                if "text/html" in data:
                    table = re.sub(r"<style scoped>.*?</style>", "", "".join(data["text/html"]), flags=re.S)
                    data["text/html"] = UNIT.sub("&nbsp;", table)
                kept.append(output)
        if text := progress("".join(lines)):
            kept.insert(0, {"output_type": "stream", "name": "stderr", "text": text})
        if "outputs" in cell:
            cell["outputs"] = kept
        if words := [said for output in kept if (said := output.get("metadata", {}).get("image/png", {}).get("alt"))]:
            cell["metadata"]["mystnb"] = {"image": {"alt": " | ".join(words)}}  # of a cell; none shows two pictures
    return json.loads(without_folders(json.dumps(notebook, ensure_ascii=False)))


def progress(text):
    """What a terminal would show at the end of ``text``, a bar as one line: "Loading weights: 39/39 in 00:01"."""
    lines = []  # (what, how far, seconds, the line)
    for line in TERMINAL.sub("", text).split("\n"):
        line = next((part.rstrip() for part in reversed(line.split("\r")) if part.strip()), "")
        if found := BAR.match(line) or CLOCK.match(line):
            what, done, clock = found.groups()
            seconds = sum(int(part) * 60**n for n, part in enumerate(reversed(clock.split(":"))))
            same = [n for n, one in enumerate(lines) if one[0] == what]
            line = f"{what}: {done} in {clock}" if done else f"{what}: {clock}"
            if same and lines[same[-1]][1] <= seconds:  # the same bar, further on
                lines[same[-1]] = (what, seconds, line)
            else:
                lines.append((what, seconds, line))
        elif line:
            lines.append((None, 0, line))
    return "\n".join(line for *_, line in lines)


def controls(name, models):
    """(progress as text, the rest as HTML) of the widget ``name`` as it was when the notebook ended; models: {name: its state}."""
    if name not in models:  # it was taken away again
        return "", ""
    rows = list(_shown(models[name], models))
    plain = "|".join(html.unescape(re.sub("<[^>]*>", "", value)) for _, value in rows).replace("\u2007", " ")  # tqdm's widgets have a space of their own
    if BAR.match(plain):  # a bar's words stand before and behind it
        return plain, ""
    table = "".join(f"<tr><th>{html.escape(label)}</th><td>{value}</td></tr>" for label, value in rows if label)
    table = f"<p>In a running notebook these are controls. They stood at:</p><table><tbody>{table}</tbody></table>" if table else ""
    return "", table + "".join(value for label, value in rows if not label)


def _shown(model, models):
    """(label, value as HTML) of each widget that ``model`` holds; a label is empty for words that stand alone."""
    state, kind = model["state"], model["model_name"]
    if "children" in state:
        for child in state["children"]:
            yield from _shown(models[child.removeprefix("IPY_MODEL_")], models)
    elif kind in ("HTMLModel", "HTMLMathModel"):
        yield state.get("description") or "", state.get("value") or ""
    elif "_options_labels" in state:
        labels, chosen = state["_options_labels"], state.get("index")
        yield state.get("description") or "choice", html.escape(labels[chosen] if isinstance(chosen, int) else "one of: " + "; ".join(labels))
    elif kind not in ("ButtonModel", "FloatProgressModel", "IntProgressModel"):
        yield state.get("description") or "", html.escape(str(state.get("value", "")))


def without_folders(text):
    """``text`` without the folders of this machine: what lies in the course is named from there."""
    known = {str(setup.results_dir()): "results", str(ROOT): ".", str(Path.home()): "~", tempfile.gettempdir(): "/tmp"}
    for folder, name in sorted(known.items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"{re.escape(folder)}(?![\w-])", name, text) if len(folder) > 1 else text
    return text
