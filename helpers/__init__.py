"""What the notebooks call, in seventeen rooms. Each may use those above it, none below; a test holds that.

errors     sentences that say what happened and what to do next
machine/   what is this machine, how much memory is free, how busy is it? (share: limits of a container or a job. speed: how fast does it read and compute?)
process    call a function in a process of its own
setup      is everything here that the notebooks call?
models/    catalogue: which model does a step load, how large is it? files: is it complete, read and written whole? hub: may I have it?
           synthetic: write one with random weights. choose: what decides the tier, what can this machine load?
exercises/ what is asked of the reader, and how good was the answer? (predictions: how near did they come?)
kernels    where is a GPTQ kernel chosen, and is it ready?
loading/   load a step's model, look into a layer, free the memory (memory: who still holds it? library: what is said where a library fails)
timing     how long did ``generate`` take, when did each token come, where did the time go, and how is it said?
ledger     what was measured so far? What cannot be is refused
plots      draw it, with the same facts as text
limits     how fast could it be at best: this machine, data sheets, the floor of a token
quality    what does a format cost in quality?
quantise   how is a quantised checkpoint packed, saved, published?
benchmark/ a fair comparison: steps in turns, each in a process of its own (job: what that one does)
engines/   and elsewhere? timed: any engine, beside the steps. llamacpp, onnx_models: make a file for it, run it. native: llama.cpp built for this
           processor. old_stack: the article's libraries. serving: a server of one's own. clients: many readers at once
article/   what did it claim, does it hold? compare: the four steps. breakdown: where the time goes. published: what others measured. claims: evidence

``import helpers`` stays light: torch and transformers are imported by the function that needs them.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the course's folder
