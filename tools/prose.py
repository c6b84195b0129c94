"""How hard is the English? ``python -m tools.prose [name …]``, or ``make prose``: a report on the notebooks' text, with no limit and no failure.

For each notebook: words, mean and longest sentence, the sentences of more than 30 words with the number of their cell, and the words that are rare
in English (fewer than one in a million by wordfreq, which counts books, news, subtitles and the web) and are not explained in the glossary.
"""

import json
import re
import sys
from collections import Counter

from tools import ROOT

LONG, RARE = 30, 3.0  # words of a sentence; Zipf's scale: 3 is once in a million words
NOT_PROSE = re.compile(r"```.*?```|<!-- navigation.*?<!-- /navigation -->|<!--.*?-->|`[^`]*`|<[^>]*>|https?://\S+|^\|?[-| :]+\|$|^    .*$", re.S | re.M)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def sentences(markdown):
    """The sentences of a cell, in plain words. Headings, list items and cells of tables are sentences of their own."""
    text = LINK.sub(r"\1", NOT_PROSE.sub(lambda found: "CODE" if found[0].startswith("`") and not found[0].startswith("```") else "\n\n", markdown))
    text = re.sub(r"^\s*(?:#+|[-*]|\d+\.)\s+", "\n\n", text, flags=re.M).replace("|", "\n\n")
    blocks = (" ".join(block.replace("*", "").split()) for block in re.split(r"\n\s*\n", text))
    return [one.strip() for block in blocks for one in re.split(r"(?<=[.!?])[\")]?\s+(?=[A-Z\"(])", block) if words(one)]


def words(sentence):
    return re.findall(r"[A-Za-z]+(?:['’-][A-Za-z]+)*", sentence.replace("CODE", ""))


def known():
    """Words of the glossary, in small letters: their meaning is one click away."""
    return set(
        re.findall(r"[a-z]+", " ".join(re.findall(r"^- \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), flags=re.M)).lower())
    )


def report(path, rarity, explained):
    """The report on one notebook, lines of text. rarity: a function that gives a word's place on Zipf's scale."""
    cells = enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"])
    found = [(number, one) for number, cell in cells if cell["cell_type"] == "markdown" for one in sentences("".join(cell["source"]))]
    lengths = [len(words(one)) for _, one in found]
    whole = [(number, one, length) for (number, one), length in zip(found, lengths) if length > 3]  # not headings and cells of one word
    long = sorted((one for one in whole if one[2] > LONG), key=lambda one: -one[2])
    mean = sum(length for *_, length in whole) / max(len(whole), 1)
    said = Counter(re.sub(r"['’]s$", "", word) for _, one in found for word in words(one))
    said = {word: n for word, n in said.items() if word.islower() and len(word) > 3}  # a name has a capital
    rare = {word: n for word, n in said.items() if not {word, word.removesuffix("s")} & explained and rarity(word) < RARE}
    lines = [
        f"{path.stem}: {sum(lengths):,} words; a sentence has {mean:.1f} words on average, the longest {max(lengths, default=0)}; {len(long)} have more than {LONG}"
    ]
    lines += [f"  cell {number}, {length} words: {one}" for number, one, length in long]
    return lines + [f"  rare: {', '.join(f'{w} ({n})' if n > 1 else w for w, n in sorted(rare.items(), key=lambda pair: (-pair[1], pair[0])))}"]


def main(names):
    """Print the report on the notebooks whose file names begin with one of ``names`` (all without any); return the exit status."""
    try:
        from wordfreq import zipf_frequency
    except ImportError:
        print("The package wordfreq is missing: run make prose, or pip install -r requirements/prose.txt.", file=sys.stderr)
        return 2
    explained = known()
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if not names or path.name.startswith(tuple(names)):
            print("\n".join(report(path, lambda word: zipf_frequency(word, "en"), explained)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
