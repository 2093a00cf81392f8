"""Instance segmentation: a mask, a class and a score for each object; evaluated by average precision."""

import functools
from typing import Annotated

import numpy as np

from segjax.checks import Key
from segjax.metrics import instance
from segjax.objectives import Objective
from segjax.spec import DatasetSpec
from segjax.tasks import objects
from segjax.tasks.task import Task


def create(
    spec: DatasetSpec,
    objective: Objective,
    *,
    divisor: Annotated[
        int, Key("divisor of the panoptic ids that are written: class * divisor + object", "[2, 65536]")
    ] = 1000,
    stuff_area: Annotated[int, Key("stuff with fewer pixels becomes void", "[0, inf)")] = 0,
) -> Task:
    """Makes the task.

    Average precision counts all detections in an image, even more than COCO's 100.

    Args:
        spec: the data set.
        objective: an objective that finds objects.

    Returns:
        The task; its metrics are AP at COCO's thresholds and sizes, and the Data Science Bowl's score.

    Raises:
        UserError: the data set has no things, or several classes per pixel.
    """

    def score(state, image):
        ground_truths = instance.objects_of_maps(image["label"], image["instance"], spec)
        labelled = image["label"] != spec.ignore  # COCO AP has no ignore region: drop detections on unlabelled pixels
        if "masks" in image:
            taken = np.isin(image["classes"], spec.things)
            masks = image["masks"][taken] & labelled
            found = instance.objects_of_masks(masks, image["classes"][taken], image["scores"][taken])
        else:
            label = np.where(labelled, image["found_label"], image["label"])
            found = instance.objects_of_maps(label, image["found_instance"], spec, scores=image["scores"])
        return instance.update(state, ground_truths, found)

    return objects.make_object_task(
        spec,
        objective,
        divisor=divisor,
        stuff_area=stuff_area,
        overlap=True,
        new=lambda: instance.new(spec),
        score=score,
        merge=instance.merge,
        summary=functools.partial(instance.summary, max_detections=None),
    )
