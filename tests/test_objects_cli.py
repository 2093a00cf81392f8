"""The commands on models that find objects: what they write is read back by pycocotools and by the source."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segjax import infer
from segjax.checks import UserError
from segjax.cli import main
from segjax.cli.predict import _check_ours
from segjax.data.coco.read import rgb_to_id
from segjax.data.sources.coco import coco_panoptic
from segjax.data.sources.shapes import SPEC, shapes
from segjax.report import instances, pictures
from segjax.report.coco_files import CocoFiles
from segjax.spec import DatasetSpec, Segments

# What pycocotools 2.0.11 warns of when it decodes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]  # fmt: skip

CONFIG = """
from segjax.config import default_config

def get_config(task):
    config = default_config(source="shapes", model="panoptic_deeplab", task=task)
    config.source.count, config.source.size, config.data.crop = 8, (32, 32), (32, 32)
    config.model.backbone, config.model.width, config.loading.loader = "resnet_micro", 16, "threads"
    config.objective.threshold, config.objective.top_k, config.task.divisor, config.task.stuff_area = -9.0, 4, 9, 0
    config.run.total, config.run.eval_every, config.log.tensorboard = 2, 1, False
    config.data.batch_size, config.eval.batch_size, config.parallel.devices = 2, 4, 1
    return config
"""
FIGURES = {"panoptic": ("PQ", "SQ", "RQ", "IoU"), "instance": ("AP", "IoU")}


@pytest.fixture(scope="module", params=list(FIGURES))
def run(request, tmp_path_factory):
    """Kind of objects, and folder of a configuration and a run of it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "c.py").write_text(CONFIG)
    config = f"--config={folder / 'c.py'}:{request.param}"
    assert main(["train", config, f"--workdir={folder / 'run'}", "--pictures=2"]) == 0
    return request.param, folder


@pytest.fixture(scope="module")
def predicted(run):
    """The images, and what `predict` wrote of them; one image is torn."""
    _, folder = run
    images, output = folder / "images", folder / "out"
    images.mkdir()
    source = shapes("test", count=2, size=(48, 40))
    for i in range(2):
        Image.fromarray(source.read(i)["image"]).save(images / f"{'za'[i]}.jpg", quality=95)
    (images / "m.jpg").write_bytes(b"torn")
    argv = ["predict", f"--workdir={folder / 'run'}", f"--input={images}", f"--output={output}"]
    assert main([*argv, "--probabilities"]) == 0
    return images, output, argv


@pytest.fixture(scope="module")
def evaluated(run):
    """What `evaluate` prints of the run: its summary, and its table."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["evaluate", "--workdir", str(run[1] / "run")]) == 0
    return json.loads(out.getvalue()), err.getvalue()


def test_evaluate_and_report_show_the_figures_of_the_task(run, evaluated):
    (task, folder), (summary, err) = run, evaluated
    rows = {words[0]: words[1:] for line in err.splitlines() if (words := line.split())}
    page = (folder / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert tuple(rows["Class"]) == FIGURES[task]
    for place, heading in enumerate(FIGURES[task]):
        figures = summary[f"{heading.lower()}_per_class"]
        for name in SPEC.classes:
            value = figures.get(name)
            assert rows[name][place] == ("-" if value is None else f"{value:.4f}")
        assert f"<th>{heading}</th>" in page
    assert f"test {FIGURES[task][0]}" in page  # its curve
    strips = sorted((folder / "run" / "report").glob("[0-9]_*.png"))
    assert len(strips) == 2
    with Image.open(strips[0]) as strip:
        assert strip.size == (6 * (160 + 4) - 4, 160 + 16)


def test_objects_are_read_back(run, predicted):
    images, output, _ = predicted
    predict = infer.load(str(run[1] / "run"))
    source = coco_panoptic("", root=str(output), images=str(images), annotations="panoptic.json", masks=".")
    assert source.spec == SPEC and [source.name(i) for i in range(len(source))] == ["a", "z"]
    with contextlib.redirect_stdout(io.StringIO()):
        listed = COCO(str(output / "instances.json"))
    assert [listed.imgs[i]["file_name"] for i in (1, 2)] == ["a.jpg", "z.jpg"] and len(listed.imgs) == 2
    assert [c["name"] for c in listed.loadCats(listed.getCatIds())] == list(SPEC.classes)
    for i in range(2):
        sample = source.read(i)
        found = predict(sample["image"])
        label, instance = found.label, found.instance
        assert instance.max() > 0
        np.testing.assert_array_equal(sample["label"], label)
        with Image.open(output / f"{source.name(i)}.png") as mask:
            ids = rgb_to_id(np.array(mask))
        np.testing.assert_array_equal(ids, np.where(label == SPEC.ignore, 0, label * 9 + instance + 1))
        np.testing.assert_array_equal(np.unique(sample["instance"][instance > 0], return_inverse=True)[1],
                                      np.unique(ids[instance > 0], return_inverse=True)[1])  # fmt: skip
        annotations = listed.imgToAnns[i + 1]
        numbers = np.unique(instance[instance > 0]).tolist()
        for annotation, n in zip(annotations, numbers, strict=True):
            np.testing.assert_array_equal(listed.annToMask(annotation), instance == n)
            assert annotation["category_id"] == label[instance == n][0] and annotation["iscrowd"] == 0
            assert annotation["score"] == pytest.approx(float(found.score[n - 1]), rel=1e-6)
        np.testing.assert_allclose(np.load(output / f"{source.name(i)}.npy"), found.probability, rtol=1e-6)
        with Image.open(output / "overlays" / f"{source.name(i)}.png") as overlay:
            wanted = pictures.overlay(sample["image"], label, SPEC, instance=instance, score=found.score)
            np.testing.assert_array_equal(np.array(overlay), wanted)


def test_predicted_files_score_as_evaluated(run, evaluated, capsys):
    """What `predict` writes of the test split, as a folder, as JSON, and in the scores of the run's own evaluation."""
    task, folder = run
    (folder / "split").mkdir()
    source = shapes("test", count=8, size=(32, 32))
    for i in range(8):
        Image.fromarray(source.read(i)["image"]).save(folder / "split" / f"{source.name(i)}.png")
    workdir, output = f"--workdir={folder / 'run'}", folder / "split_out"
    assert main(["predict", workdir, f"--input={folder / 'split'}", f"--output={output}", "--nooverlays"]) == 0
    capsys.readouterr()
    name = {"panoptic": "panoptic.json", "instance": "instances.json"}[task]
    for path in (output, output / name):
        assert main(["evaluate", workdir, f"--predictions={path}"]) == 0
        found = json.loads(capsys.readouterr().out)
        same = found.keys() & evaluated[0].keys() - {"seconds", "mIoU", "iou_per_class"}
        assert {key: found[key] for key in same} == {key: evaluated[0][key] for key in same}
        assert {"panoptic": "PQ", "instance": "box_AP_small"}[task] in same and found["predictions"] == str(path)


def test_predict_replaces_only_its_own_files(predicted, capsys):
    _, output, argv = predicted
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert main(argv) == 0
    assert before == {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    foreign = '{"info": {"description": "COCO 2017"}}'
    (output / "instances.json").write_text(foreign)
    (output / "a.png").unlink()
    capsys.readouterr()
    assert main(argv) == 1
    assert "instances.json exists and was not written by segjax" in capsys.readouterr().err
    assert (output / "instances.json").read_text() == foreign and not (output / "a.png").exists()


def test_ids_that_would_collide_are_refused(tmp_path):
    found = Segments(np.ones((2, 2), np.int32), np.ones((2, 2), np.int32), np.ones(9))
    CocoFiles(SPEC, 10).add("a.png", "a", found)
    with pytest.raises(UserError, match=r"task.divisor=9 .* 9 objects"):
        CocoFiles(SPEC, 9).add("a.png", "a", found)


def test_ids_of_another_coco_file(tmp_path, caplog):
    """Categories by name and images by file name, as the data set's own tools expect them."""
    label, instance = np.array([[0, 1, 1], [0, 2, 2]]), np.array([[0, 1, 1], [0, 2, 2]])
    found, spec = Segments(label, instance, np.array([0.9, 0.4])), DatasetSpec(("sky", "cat", "dog"), things=(1, 2))
    categories = [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}]
    images = [{"id": 139, "file_name": "b.jpg"}, {"id": "x", "file_name": "val\\a.jpg"}]
    (tmp_path / "own.json").write_text(json.dumps({"categories": categories, "images": images}))
    files = CocoFiles(spec, 10, str(tmp_path / "own.json"))
    files.add("val/a.jpg", "val/a", found)
    files.add("deep/b.jpg", "deep/b", found)
    with pytest.raises(UserError, match=r"own\.json lists no image called c\.jpg"):
        files.add("c.jpg", "c", found)
    files.write(tmp_path)
    written = json.loads((tmp_path / "instances.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in written["annotations"]] == [
        ("x", 17), ("x", 90), (139, 17), (139, 90),
    ]  # fmt: skip
    assert written["categories"] == categories and [each["id"] for each in written["images"]] == ["x", 139]
    assert not (tmp_path / "panoptic.json").exists() and "no category for sky" in caplog.text
    categories.append({"id": 5, "name": "sky", "isthing": 0})
    (tmp_path / "own.json").write_text(json.dumps({"categories": categories, "images": images}))
    files = CocoFiles(spec, 10, str(tmp_path / "own.json"))
    files.add("b.jpg", "b", found)
    files.write(tmp_path)
    (annotation,) = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert sorted(each["category_id"] for each in annotation["segments_info"]) == [5, 17, 90]
    for content in ("{", "[]", '{"categories": [], "images": [{"id": 1}]}'):
        (tmp_path / "own.json").write_text(content)
        with pytest.raises(UserError, match=r"own\.json (is not a COCO file|cannot be read as JSON)"):
            CocoFiles(spec, 10, str(tmp_path / "own.json"))
    (tmp_path / "own.json").write_text(json.dumps({"categories": categories[:1], "images": images}))
    with pytest.raises(UserError, match=r"own\.json has no category called cat"):
        CocoFiles(spec, 10, str(tmp_path / "own.json"))


@pytest.mark.parametrize("text", ["[]", "{}", "3", "torn", '{"info": []}', '{"info": {"software": "another"}}'])
def test_other_lists_are_known(tmp_path, text):
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(UserError, match="was not written by segjax"):
        _check_ours(tmp_path / "panoptic.json")


def test_predict_without_pycocotools_names_the_fix(predicted, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert main([*predicted[2][:-1], f"--output={tmp_path / 'out'}"]) == 1
    assert 'pip install "segjax[coco]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_shows_objects_and_what_is_learned_of_them(run, capsys):
    task, folder = run
    argv = [f"--config={folder / 'c.py'}:{task}", f"--output={folder / 'inspect'}", "--pictures=2", "--limit=2"]
    assert main(["inspect", *argv]) == 0
    assert "No contact sheet" not in capsys.readouterr().err
    with Image.open(folder / "inspect" / "contact_sheet.png") as sheet:
        panels = np.array(sheet)[-160:].reshape(32, 5, -1, 3)[:, 2].reshape(32, -1, 3)
    assert sheet.width == 5 * (160 + 4) - 4
    centres, offsets = (panels[:, 164 * i : 164 * i + 160 : 5] for i in (3, 4))
    assert (centres == 255).all(-1).any()  # a centre
    assert (offsets != instances.OUTSIDE).any() and (offsets == instances.OUTSIDE).all(-1).any()
