"""pytest --nbmake notebooks leaves these out: tests/test_exercises.py runs all their cells in one process, in seconds."""

collect_ignore_glob = ["*.ipynb"]
