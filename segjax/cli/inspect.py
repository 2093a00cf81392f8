"""`segjax inspect`: audits a data set and draws training crops."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segjax import objectives
from segjax.checks import UserError, writing
from segjax.cli.config_flags import define_config
from segjax.data import agreement, audit, class_weights
from segjax.data.loader import Loading
from segjax.data.pipeline import train_batches
from segjax.report import instances, pictures
from segjax.spec import Preprocess
from segjax.train.components import open_source, task_spec
from segjax.train.step import augment_colour


def define_flags(values: flags.FlagValues) -> None:
    """Defines the verb's flags."""
    define_config(values)
    text = "Name of a split in the source; default: the training split, compared with the test split."
    flags.DEFINE_string("split", None, text, flag_values=values)
    flags.DEFINE_string("output", "inspect", "Folder for contact_sheet.png.", flag_values=values)
    flags.DEFINE_integer("limit", None, "Samples to read, spread evenly; default: all.", 1, flag_values=values)
    flags.DEFINE_integer("pictures", 8, "Training crops on the contact sheet.", 1, flag_values=values)


def main(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the verb; returns the audit, the class weights that follow from it, and what is wrong with the data."""
    config = values.config
    split = values.split or config.splits.train
    source = open_source(config, split)
    found = audit.audit(source, values.limit)
    weights = _weights(found) if any(found.pixels) else {}
    _print(found, weights)
    audits, problems = {split: found}, []
    if values.split is None and (other := config.splits.test) != split:
        try:
            test = agreement.match(open_source(config, other), source.spec, f"split {other!r}", f"split {split!r}")
            audits[other] = audit.audit(test, values.limit)
            _print_errors(audits[other])
        except UserError as error:
            problems.append(str(error))
    problems += audit.problems(audits, values.limit is None)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sheet = pathlib.Path(values.output) / "contact_sheet.png"
    with writing(f"The output folder {values.output}"):
        try:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(config, source, values.pictures).save(sheet)
            print(f"Contact sheet of training crops: {sheet}", file=sys.stderr)
        except UserError as error:
            print(f"No contact sheet: {error}", file=sys.stderr)
    for name, each in audits.items():
        verdict = f"{len(each.errors)} invalid samples" if each.errors else "no errors"
        print(f"Split {name!r}: {verdict}. Other splits: --split NAME.", file=sys.stderr)
    ok = not problems and not any(each.errors for each in audits.values())
    others = {name: each.as_dict() for name, each in audits.items() if name != split}
    more = {"split": split, "ok": ok, "problems": problems, "class_weights": weights, "compared": others}
    return found.as_dict() | more


def contact_sheet(config: Any, source: Any, count: int) -> Image.Image:
    """Draws training crops as the network gets them, each next to its label, below the legend."""
    preprocess = Preprocess(**config.preprocess)
    objective = objectives.create(spec=task_spec(config, source.spec), **config.objective)
    limit = objective.max_objects if objective.needs_instances else 0
    settings = {**config.data, "batch_size": count}
    batches = train_batches(source, preprocess, Loading(**config.loading), config.seed, (0, 1), limit, **settings)
    (batch,) = batches.batches(0, 1)
    image, position = jnp.asarray(batch["image"]), jnp.asarray(batch["position"])
    images = np.asarray(augment_colour(image, position, config.seed, dict(config.augment), preprocess.window))
    images = images.round().astype(image.dtype) if image.dtype != np.float32 else images
    objects, targets = batch.get("instance", [None] * count), {}
    if "instance" in batch and objective.targets:
        targets = objective.targets(jnp.asarray(batch["label"]), jnp.asarray(batch["instance"]))
        targets = {name: np.asarray(targets[name]) for name in ("centre", "offset") if name in targets}
    side = preprocess.context
    rows = [pictures.legend(source.spec)]
    for i, (image, label, instance) in enumerate(zip(images, batch["label"], objects, strict=True)):
        image = image[side : image.shape[0] - side, side : image.shape[1] - side]
        image = pictures.to_display(image, preprocess.window)
        captions = [source.name(int(batch["index"][i])), "label", "both"]
        parts = [
            np.broadcast_to(image, (*image.shape[:2], 3)),
            pictures.colourise(label, source.spec, instance),
            pictures.overlay(image, label, source.spec, instance=instance),
        ]
        if "centre" in targets:
            captions.append("centres")
            parts.append(instances.overlay_heatmap(image, targets["centre"][i]))
        if "offset" in targets:
            captions.append("offsets")
            parts.append(instances.colour_offsets(targets["offset"][i], instance > 0))
        rows.append(pictures.panels(parts, captions))
    return _stacked(rows)


def _stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Stacks pictures of any sizes."""
    gap = 6
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + gap for r in rows) - gap), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _weights(found: audit.Audit) -> dict[str, list[float]]:
    """Computes the class weights by each rule."""
    weights = {
        "median_frequency": class_weights.median_frequency(found.pixels, found.image_pixels),
        "inverse": class_weights.inverse_frequency(found.pixels),
        "effective_number": class_weights.effective_number(found.pixels),
    }
    return {name: [round(float(w), 4) for w in value] for name, value in weights.items()}


def _print(found: audit.Audit, weights: dict[str, list[float]]) -> None:
    """Prints the audit to stderr."""
    console = Console(stderr=True)
    rules = [name.replace("_", " ") for name in weights]
    counted = ["images"] if found.objects is None else ["images", "objects"]
    table = Table("class", "pixels", "share", *counted, *rules, title=f"{found.samples} samples")
    for k, name in enumerate(found.classes):
        share = found.pixels[k] / max(found.labelled, 1)
        counts = [f"{getattr(found, what)[k]:,}" for what in counted]
        table.add_row(
            Text(name), f"{found.pixels[k]:,}", f"{share:.2%}", *counts, *(f"{w[k]:g}" for w in weights.values())
        )
    console.print(table)
    sizes = ", ".join(f"{size} ({count})" for size, count in list(found.sizes.items())[:8])
    console.print(f"sizes: {sizes}{' …' if len(found.sizes) > 8 else ''}", highlight=False)
    console.print(f"unlabelled: {found.ignored_share:.2%} of the pixels", highlight=False)
    if found.objects is not None:
        console.print(f"objects per image: {found.most_objects} at most", highlight=False)
    if found.ids:
        listed = ", ".join(f"{value}: {count:,}" for value, count in sorted(found.ids.items())[:40])
        console.print(f"raw ids: {listed}{' …' if len(found.ids) > 40 else ''}", highlight=False)
        if set(found.ids) == {0, 255} and min(found.images) == 0:
            console.print('The masks hold only 0 and 255: map both, as in source.ids = {"0": "a", "255": "b"}.')
    for fact, values in found.facts.items():
        counted = ", ".join(f"{value:.40} ({count})" for value, count in list(values.items())[:8])
        console.print(f"{fact}: {counted}", highlight=False, markup=False, soft_wrap=True)
    _print_errors(found)


def _print_errors(found: audit.Audit) -> None:
    """Prints the errors of invalid samples to stderr."""
    console = Console(stderr=True)
    for kind, errors in (
        ("unreadable", found.unreadable),
        ("mismatched", found.mismatched),
        ("invalid", found.invalid),
    ):
        for error in list(errors.values())[:20]:
            console.print(f"{kind}: {error}", highlight=False, markup=False, soft_wrap=True)
        if len(errors) > 20:
            console.print(f"{kind}: and {len(errors) - 20} more", highlight=False)
