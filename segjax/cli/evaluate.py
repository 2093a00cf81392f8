"""`segjax evaluate`: evaluates a workdir's checkpoint, or predictions in files."""

import sys
from typing import Any

import jax
from absl import flags

from segjax import report
from segjax.cli.config_flags import define_cache, define_config
from segjax.cli.hosts import define_hosts, join_hosts
from segjax.metrics import coco_numbers
from segjax.train import compilation
from segjax.train.evaluate_predictions import evaluate_predictions
from segjax.train.restore import evaluate_workdir
from segjax.train.workdir import read_config


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    flags.DEFINE_string("workdir", None, "Folder of a run; or --predictions.", flag_values=values)
    flags.DEFINE_string("split", None, "Name of a split in the source; default: the test split.", flag_values=values)
    text = "Score files, not a checkpoint: a folder of masks, or COCO's panoptic or results JSON."
    flags.DEFINE_string("predictions", None, text, flag_values=values)
    text = "Values of those masks: class indices, or the data set's own."
    flags.DEFINE_enum("predictions_ids", "classes", ["classes", "source"], text, flag_values=values)
    define_config(values)
    define_cache(values)
    define_hosts(values)


def main(values: flags.FlagValues) -> dict[str, Any] | None:
    """Runs the verb; returns the metrics, None on all hosts but the first."""
    if values.predictions is not None:
        return _score_files(values)
    if values.workdir is None:
        raise flags.Error("segjax evaluate needs --workdir, or --predictions with --workdir or --config")
    join_hosts(values)
    compilation.enable_compilation_cache(values.cache, values.workdir)
    summary = evaluate_workdir(values.workdir, values.split, values.config)
    report.print_table(summary)
    return summary if jax.process_index() == 0 else None


def _score_files(values):
    """Scores files on this host alone."""
    config, trained = values.config, None
    if values.workdir is not None:
        config, trained = read_config(values.workdir, config)
    elif config is None:
        raise flags.Error("segjax evaluate --predictions needs --config or --workdir")
    ids = values.predictions_ids
    summary = evaluate_predictions(values.predictions, config, values.split, ids=ids, trained=trained)
    report.print_table(summary)
    if "max_detections" in summary:  # COCO's limit: the numbers are pycocotools'
        for kind, prefix in (("masks", ""), ("boxes", "box_")):
            print(f"{kind}:", *coco_numbers.as_printed(summary, prefix), sep="\n", file=sys.stderr)
    return summary
