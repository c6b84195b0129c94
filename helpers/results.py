"""What do the benchmark's rows say together? Rounds pooled, a table, the article's settings picked out."""

from dataclasses import asdict
from statistics import median

from helpers.article import PROMPT
from helpers.timing import Call, iqr
from helpers.words import seconds


def pool(rows):
    """Return {(step's key, title, prompt tokens, batch, whether it is the article's prompt): one dict} of ``rows``, with the warm calls of all rounds together.

    Each is its newest row with the first call's figures (wall_s, …) as medians of the rounds, and the warm ones (warm_wall_s, warm_ttft_s,
    tpot_s, …) as medians of all warm calls; floor_tpot_s is at the best bandwidth of the rounds, over_floor is TPOT / floor.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["variant"] or row["step"], row["title"], row["prompt_tokens"], row["batch"], row["prompt"] == PROMPT), []).append(row)
    pooled = {}
    for key, group in groups.items():
        calls = [Call(**call) for row in group for call in row["warm"]]
        tpot = median(call.tpot for call in calls) if group[-1]["new_tokens"] > 1 else None
        floor = min(row["floor_tpot_s"] for row in group)
        pooled[key] = group[-1] | {name: median(row[name] for row in group) for name in ("wall_s", "ttft_s", "user_s", "sys_s", "cpu_total_s", "load_s")} | {
            "warm": [asdict(call) for call in calls],
            "warm_wall_s": median(call.wall for call in calls),
            "warm_wall_iqr_s": iqr([call.wall for call in calls]),
            "warm_ttft_s": median(call.ttft for call in calls),
            "warm_cpu_total_s": median(call.cpu_total for call in calls),
            "tpot_s": tpot,
            "decode_tokens_per_s": group[-1]["batch"] / tpot if tpot else None,
            "floor_tpot_s": floor,
            "over_floor": tpot / floor if tpot else None,
            "rounds": len(group),
        }  # fmt: skip
    return pooled


def table(rows):
    """Return a table (pandas.DataFrame) of benchmark ``rows``, one line for each step, prompt length and batch, rounds pooled."""
    import pandas as pd

    lines = [
        {
            "step": row["title"],
            "prompt": row["prompt_tokens"],
            "batch": row["batch"],
            "load": seconds(row["load_s"]),
            "first call": seconds(row["wall_s"]),
            "warm call": seconds(row["warm_wall_s"]),
            "TTFT": seconds(row["warm_ttft_s"]),
            "TPOT": seconds(row["tpot_s"]),
            "tokens/s": "-" if row["tpot_s"] is None else f"{row['decode_tokens_per_s']:,.1f}",
            "floor": seconds(row["floor_tpot_s"]),
            "TPOT / floor": "-" if row["tpot_s"] is None else f"{row['over_floor']:.1f}",
            "peak memory": f"{row['peak_generating_bytes'] / 1e9:.2f} GB",
            "kernel": row["layer_class"],
        }
        for row in pool(rows).values()
    ]
    return pd.DataFrame(lines).set_index("step") if lines else pd.DataFrame()


def by_step(rows):
    """Return {step's key as text: pooled row} of benchmark ``rows`` measured with the article's prompt and batch 1, in their order."""
    pooled = pool([row for row in rows if row["prompt"] == PROMPT and row["batch"] == 1])
    return {str(row["variant"] or row["step"]): row for row in pooled.values()}
