"""The class wall: any number of ledgers on one page. ``python -m tools.wall FOLDER [--hide-names]``, or ``make wall CLASS=FOLDER``.

FOLDER holds what was handed in: files, folders and zip archives, each with a ledger.jsonl. The page is wall.html in the results folder, one file
that needs no server; wall.md says the same in words. What cannot be read is named there.
"""
