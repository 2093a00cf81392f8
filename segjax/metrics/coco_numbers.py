"""COCO's twelve numbers of masks or boxes, computed by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.rle import coco_tools

# The names of the twelve numbers that pycocotools prints, in its order.
NUMBERS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def as_coco(images: Sequence[Any], things: Sequence[int]) -> Any:
    """Converts the objects of some images to pycocotools' COCO.

    Args:
        images: `metrics.instance.Objects` of each image.
        things: the classes.

    Returns:
        The COCO; image ids are positions, category ids class indices, and annotation ids count from 1, because
        pycocotools takes 0 for no match.

    Raises:
        UserError: pycocotools is not installed.
    """
    tools, annotations = coco_tools(), []
    for i, image in enumerate(images):
        for n, rle in enumerate(image.rles):
            area = tools.mask.area(rle) if image.areas is None else image.areas[n]
            box = tools.mask.toBbox(rle) if image.boxes is None else image.boxes[n]
            unmatched = image.ids is not None and image.ids[n] == 0
            annotations.append(
                {"id": 0 if unmatched else len(annotations) + 1, "image_id": i, "category_id": int(image.classes[n]),
                 "segmentation": rle, "area": float(area), "bbox": box.tolist(), "iscrowd": int(image.crowd[n]),
                 "score": float(image.scores[n])}
            )  # fmt: skip
    coco = tools.coco.COCO()
    coco.dataset = {
        "images": [{"id": i, "height": image.size[0], "width": image.size[1]} for i, image in enumerate(images)],
        "categories": [{"id": c} for c in sorted(things)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def evaluate(pair: Sequence[Any], kind: str, cap: int) -> tuple[dict[str, float | None], dict[int, float | None]]:
    """Computes the twelve numbers.

    Args:
        pair: COCO of the ground truth and of the detections, from `as_coco`.
        kind: "segm" to match masks, "bbox" for boxes.
        cap: how many detections per image and class count, but for AR1, AR10 and AR100; 100 in COCO.

    Returns:
        The numbers by name, see `NUMBERS`, and AP by class index; None where there is no true object.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        run = coco_tools().cocoeval.COCOeval(*pair, kind)
        run.params.maxDets = limits = sorted({1, 10, 100, cap})
        run.evaluate()
        run.accumulate()
    # Precision is [threshold, recall, class, size, limit], recall [threshold, class, size, limit].
    every, small, medium, large = (run.eval["precision"][..., size, limits.index(cap)] for size in range(4))
    recalls = [run.eval["recall"][..., 0, limits.index(count)] for count in (1, 10, 100)]
    recalls += [run.eval["recall"][..., size, limits.index(cap)] for size in (1, 2, 3)]
    values = [every, every[0], every[5], small, medium, large, *recalls]
    numbers = {name: _mean(each) for name, each in zip(NUMBERS, values, strict=True)}
    return numbers, {int(c): _mean(every[..., i]) for i, c in enumerate(run.params.catIds)}


def as_printed(summary: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Formats the twelve numbers as pycocotools prints them.

    Args:
        summary: of `metrics.instance` with COCO's 100 detections.
        prefix: "" for masks, "box_" for boxes.

    Returns:
        Twelve lines.

    Example:
        >>> print(as_printed(dict.fromkeys(NUMBERS, 0.25))[6])
         Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.250
    """
    lines = []
    for name in NUMBERS:
        kind, part, value = name[:2], name[2:], summary[prefix + name]
        title = "Average Precision" if kind == "AP" else "Average Recall"
        iou = f"0.{part}" if kind == "AP" and part.isdecimal() else "0.50:0.95"
        most = part if kind == "AR" and part.isdecimal() else "100"
        area = part[1:] if part.startswith("_") else "all"
        value = -1 if value is None else value
        lines.append(f" {title:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:0.3f}")
    return lines


def _mean(values):
    """Mean of the values but -1, which stands for no true object; summed in pycocotools' order, for equal bits."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None
