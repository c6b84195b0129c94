"""What the notebooks call: a module a question.

setup    are the packages here that the notebooks call?
machine  what machine is this?
fit      will each step run here?
access   may I read this repository of the Hub?
download  fetch a checkpoint: resumable, verified
hardware  how fast could a machine be at best?
steps    which model does a step load, and how large is it?
tiers    which checkpoints can this machine use?
synthetic  write full-size checkpoints with random weights
checks   can this checkpoint be loaded here?
loading  load a step's model, look into a layer, free the memory
timing   how long did ``generate`` take, and where did the time go?
words    say measured times in words
memory   how is memory freed, and who still holds a model?
ledger   what was measured so far?
article  what did the article measure and claim?
benchmark  measure steps in processes of their own, in turns
job      what does one process of the benchmark do?
profiling  what does one decode step spend its time on?
engines  how fast is the same model in another engine?
gguf_files  how does a checkpoint become a GGUF file, and what is in one?
llamacpp  how is a GGUF file run?
onnx_models  how does a checkpoint become an ONNX model, and how is it run?
isolated  how does a program of another time run today?
article_stack  how does the article's own stack do today?
serving  how does a model answer many readers?
clients  how fast does a server answer when many ask at once?
results  what do the benchmark's rows say together?
breakdown  where does the time go?
bandwidth  how fast can this machine read and multiply?
limits   how fast could a model decode at best?
published  how far from the limit are others?
calculator  the same with widgets
quality  what does a format cost in quality?
gptq  how is a whole model quantised, layer by layer?
quantise  how does a quantised model become a checkpoint that others can load?
differences  where does a format's output differ?
claims   which of the article's claims hold?
compare  what do the four steps show together?
plots    draw it, with the same facts as text

``import helpers`` stays light: torch and transformers are imported by the function that needs them.
"""
