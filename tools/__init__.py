"""What writes, runs and checks the course: one program a question, each of them a make target too.

run        execute the notebooks in order                                  make run
kernel     the kernels that run starts: copies of a process that has imported the libraries
badges     write what every notebook has in common                         make badges
exercises  write the exercise notebooks from their one source              make exercises
check      lint, formatting, saved outputs, badges: is it fit to commit?   make check
links      does every link lead somewhere?                                 make links
platforms  what do Colab and Kaggle have installed today?                  make platforms
replica    do the notebooks run with these packages?                       make replica
static     does every name exist that the course calls of its libraries?   make static
t4         does what a T4 would compile compile?                           make t4
gpu        what can only a machine with a CUDA GPU tell?                    make gpu
picture    draw the README's picture from recorded rows                    make picture
book       the course as a site to read                                    make book
prose      how long are the sentences, which words are rare?               make prose
wall       what do all ledgers of a class say together?                make wall
plans      what is said and run, minute by minute, and how long did it take?
slides     a deck of each notebook                                         make slides
stick      the course for a room without a network                         make stick
before     what is to be done before a workshop, and what is done?         make before
grade      mark what a class handed in
real_model one real model out of PyPI through all formats, to be recorded
stopwatch  how long do the commands above take, and how much memory?

The notebooks import ``helpers`` and never ``tools``, but for the teachers' own (notebooks/teaching). badges, check, exercises, links and
platforms need no more than requirements/check.txt, so that they answer within seconds on a machine without torch.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
