"""Say measured times in words."""


def seconds(value):
    """Write a time with three significant digits and a fitting unit, e.g. "16.4 s", "351 ms", "85.2 µs"."""
    if not value:
        return "-" if value is None else "0 s"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= factor or unit == "µs":
            scaled = value / factor
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            return f"{scaled:.{digits}f} {unit}"


def explain(call):
    """Say in words what user, sys, total and wall of ``call`` mean: who worked, and who waited."""
    ratio = call.cpu_total / call.wall
    lines = [
        f"The clock on the wall ran for {seconds(call.wall)}; the processor worked {seconds(call.cpu_total)} for this notebook:",
        f"{seconds(call.user)} in the program and its libraries (user), {seconds(call.sys)} in the operating system (sys).",
    ]
    if ratio > 1.1:
        lines.append(f"CPU total / wall = {ratio:.2f}: more than 1, so several threads worked at the same time.")
    elif ratio < 0.9:
        lines.append(f"CPU total / wall = {ratio:.2f}: below 1, so for at least {seconds(call.wall - call.cpu_total)} nothing here worked:"
                     " it waited for a GPU, a disk, or a processor that others used.")
    else:
        lines.append(f"CPU total / wall = {ratio:.2f}: about 1, as much work as one core does in that time."
                     " (While it waits for a GPU, the driver may keep a core busy, so waiting can hide in this number.)")
    return "\n".join(lines)


def score(prediction, call):
    """Say in a sentence how far the reader's ``prediction`` of the wall time (seconds, or None) was from ``call``."""
    if prediction is None or prediction <= 0:
        return f"It took {seconds(call.wall)}. (You made no prediction.)"
    return f"You said {seconds(prediction)}, it took {seconds(call.wall)}: {closeness(prediction, call.wall, 'long', 'short')}."


def closeness(prediction, actual, above, below):
    """Say how near ``prediction`` is to ``actual``, e.g. "well predicted" or "2.0 times too long". above, below: the words for too much, too little."""
    ratio = prediction / actual
    if 0.8 <= ratio <= 1.25:
        return "well predicted"
    return f"{ratio:.1f} times too {above}" if ratio > 1 else f"{1 / ratio:.1f} times too {below}"
