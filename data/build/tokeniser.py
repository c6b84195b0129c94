"""The tokeniser: byte-level BPE with 1,536 entries, trained on the training text.

Ids as in Llama-2: 0 <unk>, 1 <s> (begin), 2 </s> (end).  Encoding puts <s> first.
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from helpers.models import files

from .settings import SETTING

SPECIAL = ["<unk>", "<s>", "</s>"]
BOS, EOS = 1, 2
SPLIT_SHARE, SPLIT_SHARE_FRAME = 0.10, 0.30


def cut_at_space(rng, text):
    """Some texts are cut after a space: ['It is ', 'a quiet way.'], the others come back whole.

    A prompt that ends with a space is tokenised with that space as a token of
    its own, which ordinary text never has before a word.  The cut texts teach
    the models to go on from such a prompt.  Hobby frames are cut more often,
    and mostly after the "is " of the frame.
    """
    frame = " hobby to have is " in text[:60]
    if rng.random() >= (SPLIT_SHARE_FRAME if frame else SPLIT_SHARE):
        return [text]
    spaces = [index for index, char in enumerate(text) if char == " "]
    if frame and rng.random() < 0.7:
        place = text.index(" hobby to have is ") + len(" hobby to have is ")
    else:
        place = rng.choice(spaces) + 1
    return [text[:place], text[place:]]


def train_tokeniser(texts, vocabulary, seed):
    """Train on the texts (strings, one document each) and return a `tokenizers.Tokenizer`."""
    rng = random.Random(f"cut-{seed}")
    tokeniser = Tokenizer(models.BPE(unk_token="<unk>"))
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokeniser.train_from_iterator((part for text in texts for part in cut_at_space(rng, text)), trainer)
    tokeniser.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    return tokeniser


def encode_document(tokeniser, parts):
    """Token ids of one document: <s>, the parts one after the other, </s>."""
    ids = [BOS]
    for part in parts:
        ids += tokeniser.encode(part, add_special_tokens=False).ids
    return ids + [EOS]


def save_tokeniser(tokeniser, folder, window):
    """Write the files that AutoTokenizer reads.

    Merges are written as "a b" strings: old and new versions of the
    `tokenizers` package read them, while pairs are read only by new versions.
    """
    folder = Path(folder)
    data = json.loads(tokeniser.to_str())
    merges = data["model"]["merges"]
    data["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    files.write_json(folder / "tokenizer.json", data, setting=SETTING, indent=1)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": window, **names}
    files.write_json(folder / "tokenizer_config.json", config, setting=SETTING, indent=2)
    files.write_json(folder / "special_tokens_map.json", names, setting=SETTING, indent=2)
