import html.parser
import pathlib
import urllib.parse

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import report
from segjax.checks import UserError
from segjax.config import default_config
from segjax.data.reading import CorruptImage
from segjax.data.sources.arrays import arrays
from segjax.report import instances, mask_files, pictures
from segjax.spec import DatasetSpec
from segjax.train import loop

SPEC = DatasetSpec(("road", "car", "sky"), colours=((10, 20, 30), (200, 0, 0), (0, 0, 250)))
MULTI = DatasetSpec(("a/b", "c"), colours=((100, 0, 0), (0, 50, 200)), mode="multilabel")


def test_colours_of_classes_and_hatched_ignore():
    label = np.array([[0, 1, 2], [255, 255, 255]], np.uint8)
    picture = pictures.colourise(label, SPEC)
    np.testing.assert_array_equal(picture[0], SPEC.colours)
    assert set(map(tuple, picture[1].tolist())) <= {pictures.IGNORED, (150, 150, 150)}
    several = np.array([[[0, 0], [1, 0], [1, 1], [255, 255], [255, 1]]], np.uint8)
    found = pictures.colourise(several, MULTI)[0].tolist()
    assert found[:3] == [[0, 0, 0], [100, 0, 0], [50, 25, 100]] and found[4] == [0, 50, 200]
    np.testing.assert_array_equal(pictures.colourise(several[:, :3] == 1, MULTI)[0], found[:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay_mixes(channels):
    image = np.full((1, 3, channels), 100, np.uint8)
    mixed = pictures.overlay(image, np.array([[0, 1, 2]], np.int32), SPEC, opacity=0.25)
    np.testing.assert_array_equal(mixed[0], np.round(75 + 0.25 * np.array(SPEC.colours)))


def test_errors_are_red_where_there_is_truth():
    image, truth = np.zeros((1, 4, 3), np.uint8), np.array([[0, 1, 255, 2]], np.uint8)
    picture = pictures.error_map(image, truth, np.array([[0, 2, 1, 2]], np.int32), SPEC)
    assert [tuple(p) == pictures.WRONG for p in picture[0].tolist()] == [False, True, False, False]
    truth = np.array([[[1, 0], [1, 255], [255, 0], [255, 255]]], np.uint8)
    found = np.array([[[True, False], [True, True], [True, True], [True, True]]])
    picture = pictures.error_map(image, truth, found, MULTI)
    assert [tuple(p) == pictures.WRONG for p in picture[0].tolist()] == [False, False, True, False]


@pytest.mark.parametrize("mode, dtype", [("P", np.int32), ("P", np.uint8), ("I;16", np.int32)])
def test_masks_hold_indices(tmp_path, mode, dtype):
    classes = 300 if mode == "I;16" else 3
    spec = DatasetSpec(tuple(map(str, range(classes))), ignore=65535 if classes > 255 else 255)
    label = np.random.default_rng(0).integers(0, classes, (9, 7)).astype(dtype)
    ((suffix, mask),) = mask_files.mask_pictures(label, spec)
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert suffix == "" and read.mode == mode
        np.testing.assert_array_equal(np.array(read), label)
    several = np.random.default_rng(0).random((9, 7, 2)) > 0.5
    for k, (suffix, mask) in enumerate(mask_files.mask_pictures(several, MULTI)):
        assert suffix == f".{MULTI.classes[k]}"
        np.testing.assert_array_equal(np.array(mask), several[..., k])


@pytest.mark.parametrize(
    "size, factor", [((32, 32), 5), ((20, 159), 2), ((20, 160), 1), ((300, 400), 1), ((600, 10), 1), ((1, 1), 160)]
)
def test_panels_are_wide_enough_for_their_captions(size, factor):
    random = np.random.default_rng(0)
    parts = [random.integers(0, 256, (*size, 3), np.uint8) for _ in range(3)]
    sheet = np.array(pictures.panels(parts, ("image", "a caption that is much longer than the panel is wide", "c")))
    height, width = factor * size[0], factor * size[1]
    assert sheet.shape == (height + 16, 3 * width + 8, 3)
    for i, part in enumerate(parts):
        panel = sheet[16:, i * (width + 4) : i * (width + 4) + width]
        np.testing.assert_array_equal(panel, part.repeat(factor, 0).repeat(factor, 1))
    gaps = sheet[:, [c for i in (1, 2) for c in range(i * (width + 4) - 4, i * (width + 4))]]
    assert (gaps == 255).all()


def test_legend_shows_every_name_whole():
    names = ("x", "a class with quite a long name, longer than most")
    short, long = (pictures.legend(DatasetSpec(("background", name))) for name in names)
    assert long.width > short.width and (np.array(long)[:, -4:] == 255).all()
    colours = {tuple(c) for c in np.array(pictures.legend(SPEC)).reshape(-1, 3).tolist()}
    assert set(SPEC.colours) <= colours


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects images and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        assert self.open[-1] == "svg"

    def handle_data(self, data):
        self.text += data


class Named:
    """Arrays whose samples have names of every kind; the last is torn."""

    names = ("a/b:1", "a_b_1", "<i> & é #2?%41", "legend", "index", "x" * 300, "torn")

    def __init__(self):
        random = np.random.default_rng(0)
        image = random.integers(0, 256, (len(self.names), 16, 24, 3), np.uint8)
        data = {"test": {"image": image, "label": image.argmax(-1).astype(np.uint8)}}
        self._source = arrays("test", data=data, classes=("r", "g", "b"))
        self.spec = self._source.spec

    def __len__(self):
        return len(self._source)

    def name(self, i):
        return self.names[i]

    def size(self, i):
        return self._source.size(i)

    def read(self, i):
        if self.names[i] == "torn":
            raise CorruptImage("torn.png: damaged")
        return self._source.read(i)


OPENED = {"train": Named(), "test": Named()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on such samples, and its report."""
    workdir = tmp_path_factory.mktemp("report") / "r & d"
    config = default_config("arrays")
    config.source.classes, config.loading.max_corrupt = ("r", "g", "b"), 0.5
    config.data.crop, config.data.batch_size, config.eval.batch_size = (16, 16), 4, 4
    config.model.widths, config.loading.loader, config.log.tensorboard = (4, 8), "threads", False
    config.run.total, config.run.log_every, config.run.eval_every = 2, 1, 1
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))

    def write(evaluator, variables, summary):
        compiled.clear()
        report.write(str(workdir), evaluator, variables, summary, 20)
        # The pictures come from the program that scored the split.
        assert not [event for event in compiled if "compile" in event or "trace" in event]

    summary = loop.train_and_evaluate(config, str(workdir), sources=OPENED, report=write)
    return workdir, summary


@pytest.mark.slow
def test_report_is_well_formed_and_complete(run):
    workdir, summary = run
    page = Page((workdir / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.open == ["body"]
    files = [urllib.parse.unquote(urllib.parse.urlsplit(src).path) for src in page.images]
    assert not any(urllib.parse.urlsplit(src).scheme for src in page.images)
    assert len(set(files)) == len(files) == 1 + len(Named.names) - 1
    for file in files:
        with Image.open(workdir / "report" / file) as picture:
            picture.load()
    assert {path.name for path in (workdir / "report").iterdir()} == {*files, "index.html"}
    for name in Named.names[:-1]:
        assert name in page.text
    assert "segjax: r & d" in page.text and "train loss" in page.text and "test mIoU" in page.text
    assert f"{summary['mIoU']:.4f}" in page.text and f"{summary['iou_per_class']['g']:.4f}" in page.text


def test_pictures_inline(run):
    workdir, summary = run
    page = Page(report.show(str(workdir), 3, OPENED))
    assert page.open == [] and len(page.images) == 2  # the third is torn
    assert all(src.startswith("data:image/png;base64,") for src in page.images)
    for part in (report.curves(str(workdir)), report.html_table(summary)):
        assert Page(part).open == [] and part._repr_html_() == str(part)


def test_fewer_pictures_are_spread_over_the_split(run):
    assert [name for name, _ in report.strips(str(run[0]), 2, OPENED)] == ["a/b:1"]
    assert report.strips(str(run[0]), 0, OPENED) == []


def test_no_run_no_report(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl is missing"):
        report.curves(str(tmp_path))
    with pytest.raises(UserError, match="There is no run in"):
        report.strips(str(tmp_path))
    assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_objects_have_shades_of_their_class():
    label = np.array([[0, 1, 1, 1, 1, 255]], np.int32)
    instance = np.array([[0, 1, 2, 3, 7, 0]], np.int32)
    picture = pictures.colourise(label, SPEC, instance)
    np.testing.assert_array_equal(picture[0, :2], SPEC.colours[:2])  # stuff, and the first object
    reds = picture[0, 1:5, 0].tolist()
    assert len(set(reds)) == 4 and not picture[0, 1:5, 1:].any()  # all of them are red
    assert abs(reds[0] - reds[1]) > 20 and abs(reds[1] - reds[2]) > 20
    np.testing.assert_array_equal(picture, pictures.colourise(label, SPEC, instance.astype(np.uint16)))
    dark = pictures.colourise(label[:, 1:3], DatasetSpec(("a", "b")), instance[:, 1:3])
    assert (dark[0, 1] > dark[0, 0]).all()


def test_overlay_draws_contours_one_pixel_wide_and_names():
    image, label, instance = np.zeros((40, 90, 3), np.uint8), np.zeros((40, 90), np.int32), np.zeros((40, 90), np.int32)
    label[5:30, 5:40], instance[5:30, 5:40] = 1, 1
    label[5:30, 40:80], instance[5:30, 40:80] = 1, 4
    picture = pictures.overlay(image, label, SPEC, instance=instance)
    lines = (picture == instances.CONTOUR).all(-1)
    assert np.flatnonzero(lines[15]).tolist() == [4, 39, 79] and np.flatnonzero(lines[:, 20]).tolist() == [4, 29]
    np.testing.assert_array_equal(picture[~lines], np.round(pictures.colourise(label, SPEC, instance)[~lines] / 2))
    named = pictures.overlay(image, label, SPEC, instance=instance, score=np.array([0.93, 0, 0, 0.5]))
    changed = (named != picture).any(-1)
    assert changed[10:25, 10:35].any() and changed[10:25, 45:75].any()
    assert not changed[:8].any() and not changed[27:].any()


def test_errors_of_objects():
    """A row a case: ground truth and prediction as (class, object) a pixel, and r(ed), o(range), . or h(atched)."""
    cases = [
        ("11 11 11 11", "15 15 15 15", "...."),  # numbers do not matter
        ("11 11 11 12", "11 11 11 11", "...."),  # 3 of 4; the other true object lies in a matched one
        ("11 11 00 00", "11 11 11 11", "oorr"),  # IoU 1/2 is no match
        ("11 11 12 12", "11 11 11 11", "oooo"),
        ("11 11 11 11", "11 11 12 12", "oooo"),
        ("11 11 11 -0", "11 11 11 11", "...h"),  # no ground truth
        ("11 -0 -0 -0", "11 11 11 11", ".hhh"),
        ("10 10 10 00", "11 11 11 11", "...r"),  # a crowd
        ("21 21 21 11", "11 11 11 11", "rrro"),  # of another class
        ("00 11 11 11", "00 -0 -0 11", ".rro"),  # void
    ]
    colours = {"r": pictures.WRONG, "o": pictures.UNMATCHED}
    for truth, found, wanted in cases:
        label, true, prediction, instance = (
            np.array([[int(p[i].replace("-", "255")) for p in row.split()]], np.int32)
            for row, i in ((truth, 0), (truth, 1), (found, 0), (found, 1))
        )
        picture = pictures.error_map(np.zeros((1, 4, 3), np.uint8), label, prediction, SPEC, true, instance)
        marks = [next((k for k, c in colours.items() if tuple(p) == c), ".") for p in picture[0].tolist()]
        assert "".join(marks) == wanted.replace("h", "."), (truth, found)


def test_directions_are_a_wheel_of_colours():
    offset = np.array([[[0, 3], [3, 0], [0, -3], [-3, 0], [0, 0], [0, 1.5], [0, 99]]], np.float32)
    picture = instances.colour_offsets(offset, np.array([[True] * 6 + [False]]))[0].tolist()
    assert picture[0] == [255, 0, 0] and picture[2] == [0, 255, 255]
    assert picture[1] == [128, 255, 0] and picture[3] == [128, 0, 255]
    assert picture[4] == [255] * 3 and picture[5] == [255, 128, 128] and picture[6] == list(instances.OUTSIDE)
    nothing = instances.colour_offsets(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2), bool))
    assert (nothing == instances.OUTSIDE).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_heat_grows_with_the_centre_map(channels):
    image = np.full((1, 11, channels), 90, np.uint8)
    picture = instances.overlay_heatmap(image, np.linspace(-0.1, 1.1, 11, dtype=np.float32)[None])[0].astype(int)
    assert picture[0].tolist() == [45] * 3 and picture[-1].tolist() == [255] * 3
    assert (np.diff(picture[:, 0]) >= -1).all() and (picture[5, 0] > picture[5, 1] > picture[5, 2])
