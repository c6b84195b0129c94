"""Run by test_benchmark.py in an environment that has optimum-benchmark: its tracker and ours on the same calls of generate.

Prints one line of JSON: for each call [their prefill, our TTFT, their decode, our decode], in seconds.
"""

import json
import sys
from pathlib import Path

import transformers

transformers.SpecialTokensMixin = transformers.PreTrainedTokenizerBase  # gone in transformers 5; optimum-benchmark 0.6.0 imports its name only
from optimum_benchmark.trackers.latency import PerTokenLatencySessionTrackerLogitsProcessor as Tracker  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import loading, timing
from helpers.models import choose  # noqa: E402

model, tokenizer = loading.load(choose.get_step(2, tier="embedded"))
generate, pairs = model.generate, []
theirs = Tracker(device=model.device.type, backend="pytorch")


def tracked(*arguments, logits_processor, **options):
    with theirs.track():
        return generate(*arguments, logits_processor=[*logits_processor, theirs], **options)


model.generate = tracked
for number in range(6):
    with theirs.session():
        theirs.per_token_events.clear()
        call, _ = timing.generate_once(model, tokenizer, new_tokens=100)
        row = [theirs.get_prefill_latency().mean, call.ttft, theirs.get_decode_latency().mean, call.decode]
    if number:  # the first one is cold
        pairs.append(row)
print(json.dumps(pairs))
