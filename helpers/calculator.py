"""A calculator with widgets: what will fit, and how fast can it be? All it does is call ``helpers.limits.estimate``."""

import html

from helpers import limits
from helpers.errors import CourseError
from helpers.steps import FORMATS


def calculator(efficiency=None, machine=None):
    """Return the calculator, an ipywidgets.VBox (ipywidgets 7 and 8): five controls, and the result below them as text.

    efficiency: what limits.efficiencies returned, or None. machine: a machine that is added to those of data/hardware.json, e.g. this one.
    The last child is the result (ipywidgets.HTML); a value that makes no sense is answered there with one sentence.
    """
    import ipywidgets

    models, machines = limits.models(), ({machine["name"]: machine} if machine else {}) | limits.machines()
    layout = {"style": {"description_width": "6em"}, "layout": {"width": "36em"}}
    controls = {
        "shape": ipywidgets.Dropdown(options=list(models), description="model", **layout),
        "format": ipywidgets.Dropdown(options=[(name, key) for key, name in FORMATS.items()], value="gptq", description="format", **layout),
        "context": ipywidgets.IntText(value=512, description="context", **layout),
        "batch": ipywidgets.IntText(value=1, description="batch", **layout),
        "machine": ipywidgets.Dropdown(options=list(machines), value="NVIDIA T4 (free Colab, Kaggle)", description="machine", **layout),
    }
    result = ipywidgets.HTML()

    def show(_=None):
        chosen = {name: control.value for name, control in controls.items()}
        share, row = (efficiency or {}).get(chosen["format"], (None, None))
        chosen |= {"shape": models[chosen["shape"]], "machine": machines[chosen["machine"]]}
        try:
            text = str(limits.estimate(**chosen, efficiency=share)) + (f"\nfrom      {limits.where(row)}" if row else "")
        except CourseError as error:
            text = str(error)
        result.value = f"<pre>{html.escape(text)}</pre>"

    for control in controls.values():
        control.observe(show, names="value")
    show()
    return ipywidgets.VBox([*controls.values(), result])
