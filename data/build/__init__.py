"""Builds the small models of the course from a seed: run `python -m data.build` from the repository root."""
