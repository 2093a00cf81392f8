"""Ids to labels: every id has the meaning it was given, and one without meaning is counted in the error."""

import ml_collections
import numpy as np
import pytest

from segjax.checks import UserError
from segjax.data.ids import make_id_map, make_spec, map_ids

SPEC = make_spec(("a", "b", "c"))
TWO = make_spec(("a", "b"))
MANY = make_spec([str(i) for i in range(300)])


@pytest.mark.parametrize(
    ("spec", "ids", "ignore_ids", "raw", "label"),
    [
        (SPEC, None, (), [0, 1, 2, 255], [0, 1, 2, 255]),
        (SPEC, {}, (3, 9), [0, 1, 2, 3, 9, 255], [0, 1, 2, 255, 255, 255]),
        (SPEC, {0: "c", "1": "a", 2: "ignore", "3": 1, 255: "b"}, (), [0, 1, 2, 3, 255], [2, 0, 255, 1, 1]),
        (SPEC, {"65535": "c"}, (255, 0), [65535, 255, 0], [2, 255, 255]),
        (TWO, None, (), [0, 1], [0, 1]),
        (TWO, None, (255,), [0, 1, 255], [0, 1, 255]),
        (TWO, {"0": "a", "255": "b"}, (), [0, 255], [0, 1]),
        (MANY, None, (), [255, 299, 65535], [255, 299, 65535]),
        (make_spec(("a", "b"), mode="multilabel"), None, (7,), [0, 1, 7, 255, 65535], [0, 1, 255, 1, 1]),
    ],
)
def test_every_id_has_its_meaning(spec, ids, ignore_ids, raw, label):
    got = map_ids(make_id_map(spec, ids, ignore_ids), np.array([raw]), spec, "a.png")
    assert got.dtype == spec.label_dtype
    np.testing.assert_array_equal(got, [label])


@pytest.mark.parametrize(
    ("spec", "ids", "raw", "found"),
    [
        (SPEC, None, [0, 3, 3, 4], "3 (2 pixels), 4 (1 pixels)."),
        (SPEC, None, [-1, 70000, 65536, 0], "-1 (1 pixels), 65536 (1 pixels), 70000 (1 pixels)."),
        (SPEC, {0: "a", 1: "b"}, [0, 255], "255 (1 pixels)."),
        (SPEC, None, range(10, 17), "14 (1 pixels) and 2 more."),
        (TWO, ml_collections.ConfigDict(), [0, 255, 255], "255 (2 pixels)."),
        (TWO, None, [0, 0, 255], "255 (1 pixels). Map every id to a class, as in source.ids = {'0': 'a', '255': 'b'}"),
        (make_spec(("a",), mode="multilabel"), None, [-1, 70000], "-1 (1 pixels), 70000 (1 pixels)."),
    ],
)
def test_ids_without_a_class_are_counted(spec, ids, raw, found):
    with pytest.raises(UserError) as caught:
        map_ids(make_id_map(spec, ids), np.array([raw]), spec, "a.png")
    assert str(caught.value).startswith("a.png holds ids without a class: ") and found in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "ignore_ids", "message"),
    [
        ({"a": 0}, (), "'a' is not a number"),
        ({"-40000": 0}, (), "'-40000' is not a number"),
        ({"70000": 0}, (), "'70000' is not a number"),
        ({"0": "road"}, (), "source.ids: 'road' is .* a, b, c"),
        ({"0": 3}, (), "source.ids: 3 is"),
        ({"0": "a", 0: "b"}, (), "id 0 .*source.ids"),
        (None, (2,), "id 2 .*source.ignore_ids"),
    ],
)
def test_maps_that_make_no_sense(ids, ignore_ids, message):
    with pytest.raises(UserError, match=message):
        make_id_map(SPEC, ids, ignore_ids)


def test_negative_ids():
    spec = make_spec(("a", "b"))
    table = make_id_map(spec, {"-1": "ignore", "-32768": "b", "3": "a"}, ignore_ids=[-7])
    raw = np.array([[-1, -32768, 3, -7]])
    assert map_ids(table, raw, spec, "m.tif").tolist() == [[255, 1, 0, 255]]
    for odd in (-2, -32769, 70000):
        with pytest.raises(UserError, match=rf"m\.tif holds ids without a class: {odd} "):
            map_ids(table, np.array([[odd]]), spec, "m.tif")
    for odd in ("-32769", "65536", "1.5", "x"):
        with pytest.raises(UserError, match="is not a number from -32768 to 65535"):
            make_id_map(spec, {odd: "a"})
