"""Builds everything in data/ from the seed:  python -m data.build  (see data/README.md)."""

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # Threads that wait must sleep, not spin: when other programs use the cores as well, spinning
    # threads make everything several times slower.  This has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars; the build prints its own lines

from helpers.models import files

from .settings import FULL, MINIATURE, SETTING


def build(out, settings, say=print):
    """Write text, checkpoints, quality.json and README.md below `out`; returns the measured qualities."""
    from .quantise import make_gptq, quiet_libraries

    with contextlib.redirect_stderr(io.StringIO()):  # imports of optional parts complain at length
        quiet_libraries()
        import bitsandbytes  # noqa: F401
        import gptqmodel  # noqa: F401
    quiet_libraries()
    from .card import quality_record, write_card, write_quality
    from .corpus import make_text, training_windows
    from .evaluate import evaluate_model, missed_targets
    from .outliers import add_outlier_channels
    from .train import llama_config, save_model, train_model

    began, out = time.time(), Path(out)
    work, checkpoints = out / ".work", out / "checkpoints"
    files.write(work / ".gitignore", "*\n", SETTING)

    def stage(name):
        say(f"[{(time.time() - began) / 60:5.1f} min] {name}")

    stage("writing the text and training the tokeniser")
    train, heldout, calibration = make_text(out / "text", settings)
    tokeniser, windows, calibration_windows = training_windows(train, calibration, settings)
    say(f"  {len(train)} training documents, {windows.numel()} training tokens, {len(heldout)} held-out documents")
    losses, earlier = {}, 0.0
    for name, model in settings.models.items():
        stage(f"training {name}")
        trained, losses[name], seconds = train_model(
            windows, llama_config(model.shape, settings.vocabulary), model.plan, settings.seed, work / f"{name}.pt", say
        )
        earlier += seconds
        trained = add_outlier_channels(trained, settings.seed)
        save_model(trained, tokeniser, checkpoints / name)
    for name in settings.models:
        stage(f"quantising {name} with GPTQ")
        difference = make_gptq(checkpoints / name, checkpoints / f"{name}-gptq", calibration_windows)
        say(f"  loaded again from the disk, the logits differ by {difference:.5f} at most")
    stage("measuring")
    lines = [" ".join(document) for document in heldout]
    models = {name: evaluate_model(checkpoints, name, lines, say) for name in settings.models}
    record = quality_record(models, settings, losses, earlier + time.time() - began)
    write_quality(record, out / "quality.json")
    write_card(record, out / "README.md")
    missed = missed_targets(models) if settings.has_targets else []
    if missed:
        raise SystemExit("The build missed its targets:\n  " + "\n  ".join(missed))
    shutil.rmtree(work)
    stage("done")
    return record


def main():
    parser = argparse.ArgumentParser(prog="python -m data.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent, help="default: data/")
    parser.add_argument("--miniature", action="store_true", help="a very small build that takes less than a minute")
    options = parser.parse_args()
    if options.miniature and options.out == parser.get_default("out"):
        sys.exit("--miniature needs --out DIR, because it would replace the real models")
    build(options.out, MINIATURE if options.miniature else FULL, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
