"""From the settings to files and tensors: text/heldout.txt, text/calibration.txt, tokeniser, training windows."""

import random

from helpers.models import files

from .settings import SETTING
from .text import assert_disjoint, write_documents
from .tokeniser import cut_at_space, encode_document, train_tokeniser
from .train import pack

TOKENISER_DOCUMENTS = 12000  # enough to learn the merges


def make_documents(settings):
    """(training, held-out) documents for the settings, each a list of sentences; the splits share no sentence."""
    train = write_documents(settings.seed, "train", settings.train_documents)
    heldout = write_documents(settings.seed, "heldout", settings.heldout_documents)
    assert_disjoint(train, heldout)
    return train, heldout


def make_text(folder, settings):
    """Write the two text files, one document a line; returns (training, held-out, calibration) documents."""
    train, heldout = make_documents(settings)
    calibration = train[: settings.calibration_documents]
    for name, documents in (("heldout", heldout), ("calibration", calibration)):
        lines = "".join(" ".join(document) + "\n" for document in documents)
        files.write(folder / f"{name}.txt", lines, SETTING)
    return train, heldout, calibration


def training_windows(train, calibration, settings):
    """(tokeniser, training windows, calibration windows); windows are int64 [count, 128].

    Some training documents are cut at a space (see `cut_at_space`); calibration documents are whole.
    """
    texts = [" ".join(document) for document in train]
    tokeniser = train_tokeniser(texts[:TOKENISER_DOCUMENTS], settings.vocabulary, settings.seed)
    rng = random.Random(f"encode-{settings.seed}")
    windows = pack([encode_document(tokeniser, cut_at_space(rng, text)) for text in texts])
    whole = pack([encode_document(tokeniser, [" ".join(document)]) for document in calibration])
    return tokeniser, windows, whole
