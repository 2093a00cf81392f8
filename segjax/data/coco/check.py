"""Checks all objects of a file in COCO's instance format at once."""

from collections.abc import Mapping

from segjax.checks import UserError, first_names
from segjax.data.coco import polygons, read


def check_objects(records: read.Records, known: Mapping[int | str, int | None]) -> tuple[read.Records, list[str]]:
    """Checks the polygons and categories of all objects of an instance file at once; opens no picture.

    Args:
        records: from `read.read_json`; polygons are brought to one form.
        known: as for `read.class_of_category`.

    Returns:
        The records without objects that enclose nothing, and warnings that count them.

    Raises:
        UserError: objects are invalid, which are counted and the first few named; or none encloses anything.

    Example:
        >>> from pathlib import Path
        >>> box = {"id": 5, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3], [1, 1]]}
        >>> records = read.Records(Path("a.json"), [{"id": 7, "height": None, "width": None}], {7: [box]}, [])
        >>> records, warnings = check_objects(records, {1: 1})
        >>> records.annotations[7][0]["segmentation"], warnings
        ([[0, 0, 3, 0, 3, 3]], ['a.json: polygons of fewer than 3 points are left out, in 1: annotation 5.'])
    """
    faults, empty, partial, kept = [], [], [], {}
    for image in records.images:
        size = None if image["height"] is None else (image["height"], image["width"])
        kept[image["id"]] = []
        for annotation in records.annotations[image["id"]]:
            name, given = f"annotation {annotation['id']}", annotation.get("segmentation")
            polygons_or_runs = annotation["segmentation"] = polygons.one_form(given)
            if polygons_or_runs == []:
                empty.append(name)
                continue
            if polygons.lost(given):
                partial.append(name)
            kept[image["id"]].append(annotation)
            try:
                read.class_of_category(annotation, known, name)
                fault = polygons.fault(polygons_or_runs, size)
                faults += [f"{name}: {fault}."] if fault else []
            except UserError as error:
                faults.append(str(error))
    total = sum(map(len, records.annotations.values()))
    if faults:
        many = f"{len(faults)} of {total} annotations are invalid. " if len(faults) > 1 else ""
        more = f" And {len(faults) - 5} more." if len(faults) > 5 else ""
        raise UserError(f"{records.path}: {many}{' '.join(faults[:5])}{more}")
    if empty and len(empty) == total:
        raise UserError(
            f"{records.path}: {empty[0]}: its segmentation is empty, as in all {total} annotations; an object needs "
            "polygons, and each of them 3 or more pairs x, y: [[x, y, ...], ...]. Boxes are not outlines."
        )
    warnings = []
    if empty:
        warnings.append(f"annotations without an outline are left out, {len(empty)} of {total}: {first_names(empty)}.")
    if partial:
        warnings.append(f"polygons of fewer than 3 points are left out, in {len(partial)}: {first_names(partial)}.")
    return records._replace(annotations=kept), [f"{records.path}: {warning}" for warning in warnings]
