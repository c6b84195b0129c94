"""All numbers of the build in one place: the full build, and a miniature of it for the tests."""

from dataclasses import dataclass

SEED = 2024
SETTING = "--out"  # what a sentence about a full disk tells the reader to set
THREADS = 2  # fixed, and not the course's choose.threads: with another number, sums are added in another order, and the models differ in their last bits


@dataclass(frozen=True)
class Model:
    shape: dict  # hidden, inner, layers, heads, positions
    plan: dict  # steps, batch (windows of 128 tokens per step), peak (learning rate), warm_up (steps)


@dataclass(frozen=True)
class Settings:
    seed: int
    vocabulary: int
    train_documents: int
    heldout_documents: int
    calibration_documents: int
    models: dict
    has_targets: bool


FULL = Settings(
    seed=SEED,
    vocabulary=1536,
    train_documents=42000,
    heldout_documents=200,
    calibration_documents=300,
    models={
        "small": Model({"hidden": 256, "inner": 768, "layers": 4, "heads": 4, "positions": 256}, {"steps": 1200, "batch": 8, "peak": 2.5e-3, "warm_up": 100}),
        "large": Model({"hidden": 384, "inner": 1024, "layers": 4, "heads": 6, "positions": 256}, {"steps": 1800, "batch": 8, "peak": 2e-3, "warm_up": 100}),
    },
    has_targets=True,
)

MINIATURE = Settings(
    seed=SEED,
    vocabulary=512,
    train_documents=1200,
    heldout_documents=24,
    calibration_documents=40,
    models={
        "small": Model({"hidden": 128, "inner": 128, "layers": 1, "heads": 2, "positions": 256}, {"steps": 30, "batch": 8, "peak": 4e-3, "warm_up": 5}),
        "large": Model({"hidden": 128, "inner": 256, "layers": 2, "heads": 2, "positions": 256}, {"steps": 30, "batch": 8, "peak": 4e-3, "warm_up": 5}),
    },
    has_targets=False,
)
