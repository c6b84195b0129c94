"""Data of the course: checkpoints, text, and the program that builds them (data.build)."""
