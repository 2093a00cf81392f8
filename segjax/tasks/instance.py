"""Instance segmentation: a mask, a class and a score for each object, scored by average precision."""

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
    divisor: Annotated[int, Key("of panoptic ids that are written, class * divisor + object", "[2, 65536]")] = 1000,
    stuff_area: Annotated[int, Key("stuff of fewer pixels is void", "[0, inf)")] = 0,
) -> Task:
    """Makes the task.

    Average precision looks at all objects that are found in an image, at COCO's 100 at least.

    Args:
        spec: the data set.
        objective: what is learned; it must find objects.

    Returns:
        The task; figures are AP at COCO's thresholds and sizes, and the Data Science Bowl's score.

    Raises:
        UserError: a data set without things or of many classes a pixel.
    """

    def score(state, image):
        truths = instance.objects(image["label"], image["instance"], spec)
        labelled = image["label"] != spec.ignore  # average precision knows no unlabelled pixels: nothing is found there
        if "masks" in image:
            taken = np.isin(image["classes"], spec.things)
            masks = image["masks"][taken] & labelled
            found = instance.objects_of_masks(masks, image["classes"][taken], image["scores"][taken])
        else:
            label = np.where(labelled, image["found_label"], image["label"])
            found = instance.objects(label, image["found_instance"], spec, scores=image["scores"])
        most = max(state[1], len(image["scores"]))
        return instance.update(state[0], truths, found), most

    return objects.make(
        spec,
        objective,
        divisor=divisor,
        stuff_area=stuff_area,
        overlap=True,
        new=lambda: (instance.new_state(), 100),
        score=score,
        merge=lambda a, b: (instance.merge(a[0], b[0]), max(a[1], b[1])),
        summary=lambda state: instance.summary(state[0], spec, max_detections=state[1]),
    )
