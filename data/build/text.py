"""The training text: short English documents about an invented world.

The text is written by a seeded generator, so the same seed always gives the
same text.  Every possible sentence belongs to one split, chosen by a checksum
of the sentence: about one in nine is held out.  The held-out documents are
made of held-out sentences only, so no sentence is in both splits.
"""

import random
import re
import zlib

from .wordings import HOBBY_FACTS, HOBBY_OPENINGS, PERSON_FACTS, SCENES, TOWN_FACTS
from .world import build_world

HELD_OUT_ONE_IN = 9
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_PAST = {
    "make": "made",
    "grow": "grew",
    "knit": "knitted",
    "catch": "caught",
    "take": "took",
    "bind": "bound",
    "keep": "kept",
    "weave": "wove",
    "sew": "sewed",
    "write": "wrote",
    "study": "studied",
    "fly": "flew",
    "swim": "swam",
    "run": "ran",
    "sing": "sang",
    "forge": "forged",
    "blow": "blew",
    "cut": "cut",
    "set": "set",
    "draw": "drew",
    "read": "read",
    "shoot": "shot",
    "build": "built",
    "row": "rowed",
    "ski": "skied",
    "carry": "carried",
}
_GERUND = {"knit": "knitting", "swim": "swimming", "run": "running", "cut": "cutting", "set": "setting", "dye": "dyeing", "ski": "skiing"}


def past(verb):
    """'carve wood' -> 'carved wood'."""
    first, _, rest = verb.partition(" ")
    word = _PAST.get(first) or (first + "d" if first.endswith("e") else first + "ed")
    return f"{word} {rest}".strip()


def gerund(verb):
    """'carve wood' -> 'carving wood'."""
    first, _, rest = verb.partition(" ")
    word = _GERUND.get(first) or (first[:-1] + "ing" if first.endswith("e") else first + "ing")
    return f"{word} {rest}".strip()


def capital(text):
    return text[:1].upper() + text[1:]


def hobby_fields(hobby):
    return {
        "hobby": hobby.name,
        "Hobby": capital(hobby.name),
        "verb": hobby.verb,
        "past": past(hobby.verb),
        "gerund": gerund(hobby.verb),
        "tool": hobby.tool,
        "Tool": capital(hobby.tool),
        "material": hobby.material,
        "some_material": "some " + hobby.material,
        "place": hobby.place,
        "Place": capital(hobby.place),
        "season": hobby.season,
        "Season": capital(hobby.season),
        "result": hobby.result,
    }


def town_fields(town):
    return {
        "town": town.name,
        "river": town.river,
        "River": capital(town.river),
        "dish": town.dish,
        "weather": town.weather,
        "sight": town.sight,
        "goods": town.goods,
        "day": town.day,
    }


def person_fields(person):
    he, his = ("she", "her") if person.female else ("he", "his")
    return {
        **town_fields(person.town),
        **hobby_fields(person.hobby),
        "first": person.first,
        "job": person.job,
        "instrument": person.instrument,
        "food": person.food,
        "animal": person.animal,
        "pet": person.pet,
        "colour": person.colour,
        "vehicle": person.vehicle,
        "friend": person.friend,
        "he": he,
        "He": capital(he),
        "his": his,
        "His": capital(his),
    }


def write_sentence(rng, wording, fields):
    """One sentence from a wording: draw the choices, fill the fields, correct a/an and the capital."""
    while _CHOICE.search(wording):
        wording = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), wording, count=1)
    sentence = wording.format(**fields)
    sentence = re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!seful|ni))", r"\1n ", sentence)
    return capital(sentence)


def is_held_out(sentence, seed):
    return zlib.crc32(f"{seed}:{sentence}".encode()) % HELD_OUT_ONE_IN == 0


class Writer:
    """Writes the documents of one split; a document is a list of sentences."""

    def __init__(self, seed, split):
        self.seed, self.held_out = seed, split == "heldout"
        self.world = build_world(seed)
        self.rng = random.Random(f"text-{seed}-{split}")

    def say(self, wordings, fields, tries=60):
        """A sentence of this split from one of the wordings, or None where none was found."""
        for _ in range(tries):
            sentence = write_sentence(self.rng, self.rng.choice(wordings), fields)
            if is_held_out(sentence, self.seed) == self.held_out:
                return sentence
        return None

    def facts(self, table, keys, fields):
        return [self.say(table[key], fields) for key in keys]

    def hobby_document(self):
        rng = self.rng
        hobby, town = rng.choice(self.world.hobbies), rng.choice(self.world.towns)
        fields = {**hobby_fields(hobby), **{"town": town.name}}
        opening = self.say(HOBBY_OPENINGS, fields)
        others = rng.sample([key for key in HOBBY_FACTS if key != "way"], rng.randint(2, 3))
        keys = ["way"] + others if rng.random() < 0.7 else others
        return [opening] + self.facts(HOBBY_FACTS, keys, fields)

    def person_document(self):
        """Some facts about one person; the full name comes first, then mostly the first name or he/she."""
        rng, person = self.rng, self.rng.choice(self.world.people)
        fields, full = person_fields(person), f"{person.first} {person.last}"
        keys = rng.sample(list(PERSON_FACTS), rng.randint(4, 6))
        sentences = []
        for key in keys:
            wordings = PERSON_FACTS[key]
            if not sentences:
                wordings = [wording for wording in wordings if "{name}" in wording]
            short = person.first if rng.random() < 0.5 else capital(fields["he"])
            sentences.append(self.say(wordings if not sentences else self._avoid_lower(wordings, short), {**fields, "name": full if not sentences else short}))
            if sentences[-1] is None:
                return None
        return sentences

    @staticmethod
    def _avoid_lower(wordings, short):
        """A pronoun fits only where the name begins the sentence."""
        if short not in ("He", "She"):
            return wordings
        return [wording for wording in wordings if wording.startswith("{name} ") or "{name}" not in wording]

    def town_document(self):
        rng, town = self.rng, self.rng.choice(self.world.towns)
        fields = town_fields(town)
        keys = rng.sample([key for key in TOWN_FACTS if key != "people"], rng.randint(2, 4))
        sentences = self.facts(TOWN_FACTS, keys, fields)
        locals_ = [person for person in self.world.people if person.town is town]
        if locals_ and rng.random() < 0.6:
            person = rng.choice(locals_)
            more = {"person": f"{person.first} {person.last}", "phobby": person.hobby.name, "pjob": person.job, "pinstrument": person.instrument}
            sentences.append(self.say(TOWN_FACTS["people"], {**fields, **more}))
        return sentences

    def scene_document(self):
        rng, person = self.rng, self.rng.choice(self.world.people)
        fields = person_fields(person)
        wordings = [wording for wording in PERSON_FACTS[rng.choice(["town", "job", "hobby"])] if "{name}" in wording]
        first = self.say(wordings, {**fields, "name": f"{person.first} {person.last}"})
        keys = [rng.choice(list(SCENES)) for _ in range(rng.randint(2, 4))]
        return first and [first] + self.facts(SCENES, keys, fields)

    def document(self):
        kinds = [self.hobby_document, self.person_document, self.town_document, self.scene_document]
        while True:
            sentences = self.rng.choices(kinds, [26, 50, 14, 10])[0]() or []
            sentences = list(dict.fromkeys(sentence for sentence in sentences if sentence))
            if len(sentences) >= 2:
                return sentences


def write_documents(seed, split, count):
    """`count` documents of a split ('train' or 'heldout'), each a list of sentences."""
    writer = Writer(seed, split)
    return [writer.document() for _ in range(count)]


def split_sentences(document_text):
    """The sentences of a document written on one line."""
    return re.split(r"(?<=\.) ", document_text.strip())


def assert_disjoint(train, heldout):
    """Fail where a sentence is in both splits (documents are lists of sentences)."""
    shared = {s for d in train for s in d} & {s for d in heldout for s in d}
    if shared:
        raise AssertionError(f"{len(shared)} sentences are in both splits, for example: {sorted(shared)[0]}")
