import io
import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from segjax.checks import UserError
from segjax.report import print_table
from segjax.train import log as logs
from segjax.train.log import Log

SUMMARY = {
    "mIoU": 0.625,
    "mean_dice": 0.75,
    "mean_accuracy": None,
    "iou_per_class": {"road": 0.75, "[b]car[/b]": 0.5, "train": None},
    "dice_per_class": {"road": 0.8, "[b]car[/b]": 0.7, "train": None},
    "precision_per_class": {"road": 1.0, "[b]car[/b]": 0.25, "train": math.nan},
    "recall_per_class": {"road": 0.125, "[b]car[/b]": 0.0, "train": None},
}


def reject(constant):
    raise AssertionError(f"{constant} is not JSON")


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=reject) for line in text.splitlines()]


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(time=1000.0)
    monkeypatch.setattr(logs.time, "monotonic", lambda: now.time)
    return now


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_write_appends_valid_json_at_once(tmp_path):
    with Log(tmp_path / "run", 10, tensorboard=False) as log:
        log.write(1, "train", {"loss": np.float32(0.5), "learning_rate": jnp.float32(0.25), "bad": float("nan")})
        assert lines(tmp_path / "run") == [
            {"step": 1, "split": "train", "loss": 0.5, "learning_rate": 0.25, "bad": None}
        ]
        log.write(2, "test", {"deep": {"a": math.inf, "b": jnp.int32(3)}, "list": np.array([1.0, -math.inf])})
    assert lines(tmp_path / "run")[1] == {"step": 2, "split": "test", "deep": {"a": None, "b": 3}, "list": [1.0, None]}


def test_truncate_forgets_later_steps_and_a_torn_line(tmp_path):
    with Log(tmp_path, 10, tensorboard=False) as log:
        for step in range(1, 6):
            log.write(step, "train", {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "spl')
    with Log(tmp_path, 10, tensorboard=False) as log:
        log.truncate(3)
        log.write(4, "train", {"loss": 40})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_leaves_the_file_whole_when_it_fails(tmp_path, monkeypatch):
    log = Log(tmp_path, 10, tensorboard=False)
    log.write(1, "train", {"loss": 1.0})
    log.write(2, "train", {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(logs.Path, "replace", lambda *_: reject("crash"))
    with pytest.raises(AssertionError):
        log.truncate(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_truncate_of_a_new_run_makes_nothing(tmp_path):
    Log(tmp_path, 10).truncate(0)
    assert list(tmp_path.iterdir()) == []


def test_disabled_log_does_nothing(tmp_path, capfd):
    with Log(tmp_path / "run", 10, wandb=True, enabled=False) as log:
        log.truncate(1)
        log.write(2, "train", {"loss": 1.0})
        log.progress(10, 1.0, 2.0)
        log.message("text")
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_plain_progress_is_throttled_and_ends_with_the_last_step(tmp_path, capfd, clock, no_terminal):
    with Log(tmp_path, 800, tensorboard=False) as log:
        for step in range(100, 801, 10):
            log.progress(step, 0.43118, 83.12)
            clock.time += 1.0
    out, err = capfd.readouterr()
    found = err.splitlines()
    assert out == ""
    assert found[0] == "step 100/800  loss 0.4312  83.1 images/s"
    assert found[1] == "step 150/800  loss 0.4312  83.1 images/s  0:01:05 left"
    assert found[-1] == "step 800/800  loss 0.4312  83.1 images/s  0:00:00 left"
    assert len(found) == 15


def test_the_last_step_is_never_throttled(tmp_path, capfd, clock, no_terminal):
    with Log(tmp_path, 12, tensorboard=False) as log:
        for step in (10, 11, 12):
            log.progress(step, math.nan, 1.0)
    assert [line[:10] for line in capfd.readouterr().err.splitlines()] == ["step 10/12", "step 12/12"]


def test_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Log(tmp_path, 20, tensorboard=False) as log:
        log.progress(10, 0.5, 8.0)
        log.message("evaluated [all]")
        print("from elsewhere")
        log.progress(20, 0.25, 9.0)
    out, err = capsys.readouterr()
    assert out == "from elsewhere\n"
    assert "10/20" in err and "20/20" in err and " 0/20" not in err
    assert "loss 0.2500  9.0 images/s" in err and "evaluated [all]" in err
    assert "━" in err


def test_bar_stops_on_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm")
    log = Log(tmp_path, 20, tensorboard=False)
    with pytest.raises(RuntimeError), log:
        log.progress(10, 0.5, 8.0)
        raise RuntimeError
    assert log._bar.finished is False and not log._bar.live.is_started
    capsys.readouterr()


def test_message_is_not_wrapped_nor_read_as_markup(tmp_path, capfd, no_terminal):
    text = "workdir[0]: " + "long " * 60 + "[red]12[/red]"
    Log(tmp_path, 1).message(text)
    assert capfd.readouterr() == ("", text + "\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (131, "0:02:11"), (360_000, "100:00:00")]
)
def test_clock(seconds, text):
    assert logs._clock(seconds) == text


def test_table_shows_every_figure_without_colours():
    text = io.StringIO()
    print_table(SUMMARY, Console(file=text, width=80))
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip(" ─")]
    assert rows == [
        ["Class", "IoU", "Dice", "Precision", "Recall"],
        ["road", "0.7500", "0.8000", "1.0000", "0.1250"],
        ["[b]car[/b]", "0.5000", "0.7000", "0.2500", "0.0000"],
        ["train", "-", "-", "-", "-"],
        ["mean", "0.6250", "0.7500", "-", "-"],
    ]
    assert "\x1b" not in text.getvalue()


def test_table_fits_a_narrow_console_without_losing_numbers():
    text = io.StringIO()
    name = "averyveryverylongclassname" * 3
    summary = {key: {name: 0.5} for key in SUMMARY if key.endswith("per_class")}
    print_table(summary, Console(file=text, width=60))
    assert max(map(len, text.getvalue().splitlines())) <= 60
    assert text.getvalue().count("0.5000") == 4 and "…" not in text.getvalue()


def test_table_of_objects_has_the_columns_that_are_there():
    found = {"AP": 0.25, "mIoU": 0.5, "ap_per_class": {"car": 0.25}, "iou_per_class": {"road": 0.75, "car": 0.25}}
    found |= {"PQ": None, "pq_per_class": {"road": None, "car": 0.5}}
    text = io.StringIO()
    print_table(found, Console(file=text, width=80))
    rows = [words for line in text.getvalue().splitlines() if len(words := line.split()) == 4]
    assert rows == [
        ["Class", "PQ", "AP", "IoU"],
        ["road", "-", "-", "0.7500"],
        ["car", "0.5000", "0.2500", "0.2500"],
        ["mean", "-", "0.2500", "0.5000"],
    ]


@pytest.mark.parametrize("summary", [{}, {"mIoU": 0.5}])
def test_table_of_nothing_is_nothing(summary, capfd):
    print_table(summary)
    assert capfd.readouterr() == ("", "")


def test_table_goes_to_stderr(tmp_path, capfd, no_terminal):
    print_table(SUMMARY)
    out, err = capfd.readouterr()
    assert out == "" and err.count("road") == 1 and "\x1b" not in err


def test_tensorboard_gets_flat_names_and_hides_repeated_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with Log(tmp_path, 10) as log:
        log.truncate(4)
        log.write(5, "test", {"mIoU": 0.5, "iou_per_class": {"cat": 0.25, "dog": None}, "note": "x"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    raw, events = file.read_bytes(), []
    while raw:  # TFRecord: length, its checksum, the record, its checksum
        length = int.from_bytes(raw[:8], "little")
        events.append(Event.FromString(raw[12 : 12 + length]))
        raw = raw[16 + length :]
    scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert scalars == {(5, "test/mIoU"): 0.5, (5, "test/iou_per_class/cat"): 0.25}
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [5]


def test_without_tensorboardx_the_log_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with Log(tmp_path, 10) as log:
        log.write(1, "train", {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_wandb_gets_figures_configuration_and_the_outcome(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda figures, step: calls.append((figures, step)), finish=lambda exit_code: calls.append(exit_code)
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(RuntimeError), Log(tmp_path, 10, wandb=True, tensorboard=False, config={"seed": 1}) as log:
        log.write(3, "test", {"iou_per_class": {"cat": 0.25}, "bad": math.nan})
        raise RuntimeError
    assert calls[0]["config"] == {"seed": 1} and calls[0]["dir"] == str(tmp_path)
    assert calls[0]["name"] == tmp_path.name and calls[0]["resume"] == "auto"
    assert calls[1:] == [({"test/iou_per_class/cat": 0.25}, 3), 1]


def test_missing_wandb_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log\.wandb=True.*pip install wandb"):
        Log(tmp_path, 10, wandb=True)
