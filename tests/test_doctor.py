import importlib.metadata
import json
import subprocess
import sys
import types

import jax
import pytest
from absl import flags

from segjax.cli import doctor


@pytest.fixture
def machine(monkeypatch):
    """A machine without accelerators or surprises; tests put in what they need."""
    for name in ("TPU_NAME", "COLAB_TPU_ADDR", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda command: None)
    monkeypatch.setattr(doctor, "_version", lambda name: "0.10.2" if name.startswith("jax") else "1.0")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: object())
    return monkeypatch


def problems(report):
    return [(each["problem"], each["fix"]) for each in report["problems"]]


def nvidia(monkeypatch, answer):
    def run(command, **options):
        if isinstance(answer, Exception):
            raise answer
        assert command[0] == "/bin/nvidia-smi"
        return types.SimpleNamespace(stdout=answer)

    monkeypatch.setattr(doctor.shutil, "which", lambda command: f"/bin/{command}")
    monkeypatch.setattr(doctor.subprocess, "run", run)


def test_report_of_this_machine_is_true_and_json():
    report = doctor.examine()
    assert json.loads(json.dumps(report)) == report
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["packages"]["jax"] == jax.__version__
    assert report["devices"] == {
        "platform": "cpu",
        "kind": jax.devices()[0].device_kind,
        "count": 4,
        "processes": 1,
        "memory_bytes": None,
    }
    assert report["ok"] == (report["problems"] == [])


def test_a_sound_machine_has_no_problem(machine):
    report = doctor.examine()
    assert report["ok"] and report["problems"] == [] and report["extras"] == {}
    text = doctor.format_report(report)
    assert text.endswith("No problems found.")
    assert "4 x cpu (cpu)" in text and "missing" not in text


def test_required_packages_and_extras_are_those_of_setup():
    requires = importlib.metadata.requires("segjax")
    core = {doctor.re.match(r"[\w-]+", line).group() for line in requires if "extra ==" not in line}
    assert core | {"jaxlib"} == set(doctor.REQUIRED)
    assert set(doctor.EXTRAS) < set(importlib.metadata.metadata("segjax").get_all("Provides-Extra"))


@pytest.mark.parametrize("module", ["tensorflow", "array_record", "nibabel", "tensorboardX", "wandb"])
def test_missing_extra_names_its_command(machine, module):
    machine.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == module else object())
    (extra,) = (name for name, (modules, _) in doctor.EXTRAS.items() if module in modules)
    report = doctor.examine()
    assert report["ok"] and list(report["extras"]) == [extra]
    assert f'pip install "segjax[{extra}]"' in doctor.format_report(report)


@pytest.mark.parametrize(
    ("package", "version", "words", "fix"),
    [
        ("jax", "0.10.1", "wrong results", doctor.FIX_JAX),
        ("jax", "0.7.1", "too old", doctor.FIX_JAX),
        ("jax", "0.6.2.dev3", "too old", doctor.FIX_JAX),
        ("jax", None, "jax or jaxlib is not installed", doctor.FIX_JAX),
        ("jaxlib", None, "jax or jaxlib is not installed", doctor.FIX_JAX),
        ("optax", None, "optax is not installed", "pip install optax"),
    ],
)
def test_bad_packages(machine, package, version, words, fix):
    machine.setattr(doctor, "_version", lambda name: version if name == package else "0.10.2")
    ((problem, found),) = problems(doctor.examine())
    assert words in problem and found == fix


@pytest.mark.parametrize("version", ["0.7.2", "0.10.0", "0.10.2", "0.10.10", "0.12.0rc1", "1.0"])
def test_good_versions_of_jax(machine, version):
    machine.setattr(doctor, "_version", lambda name: version)
    assert doctor.examine()["ok"]


def test_old_python(machine):
    machine.setattr(doctor.sys, "version_info", (3, 10, 4, "final", 0))
    ((problem, fix),) = problems(doctor.examine())
    assert "too old" in problem and "3.11" in fix


@pytest.mark.parametrize("sign", ["/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "TPU_NAME", "COLAB_TPU_ADDR"])
def test_unused_tpu(machine, sign):
    if sign.startswith("/"):
        machine.setattr(doctor.glob, "glob", lambda pattern: ["/dev/x0"] if pattern == sign else [])
    else:
        machine.setenv(sign, "local")
    assert problems(doctor.examine()) == [("There is a TPU, but JAX sees only the CPU.", 'pip install "segjax[tpu]"')]


@pytest.mark.parametrize(
    ("driver", "extra"), [("580.65.06\n580.65.06\n", "cuda13"), ("535.183.01\n", "cuda12"), ("No devices\n", None)]
)
def test_unused_gpu(machine, driver, extra):
    nvidia(machine, driver)
    expected = [("There is an NVIDIA GPU, but JAX sees only the CPU.", f'pip install "segjax[{extra}]"')]
    assert problems(doctor.examine()) == (expected if extra else [])


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("x", 1), subprocess.CalledProcessError(9, "x"), OSError()])
def test_nvidia_smi_that_fails_is_no_gpu(machine, error):
    nvidia(machine, error)
    assert doctor.examine()["ok"]


def test_gpu_hidden_by_the_environment(machine):
    nvidia(machine, "580.65.06\n")
    machine.setenv("JAX_PLATFORMS", "cpu")
    ((_, fix),) = problems(doctor.examine())
    assert fix == "unset JAX_PLATFORMS (it is 'cpu')"


def test_an_accelerator_in_use_is_no_problem(machine):
    class Device:
        platform, device_kind = "gpu", "NVIDIA H200"

        def memory_stats(self):
            return {"bytes_limit": 3 * 2**30}

    machine.setattr(jax, "devices", lambda: [Device()] * 2)
    machine.setattr(jax, "local_devices", lambda: [Device()])
    machine.setattr(jax, "process_count", lambda: 2)
    nvidia(machine, "580.65.06\n")
    report = doctor.examine()
    assert report["ok"] and report["devices"]["memory_bytes"] == 3 * 2**30
    assert "2 x NVIDIA H200 (gpu), 3.0 GiB each, 2 processes" in doctor.format_report(report)


@pytest.mark.parametrize(("platforms", "fix"), [(None, doctor.FIX_JAX), ("tpu", "unset JAX_PLATFORMS (it is 'tpu')")])
def test_jax_that_does_not_start(machine, platforms, fix):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    machine.setattr(jax, "devices", devices)
    if platforms:
        machine.setenv("JAX_PLATFORMS", platforms)
    report = doctor.examine()
    assert report["devices"] is None and not report["ok"]
    assert problems(report) == [("JAX does not start: Unable to initialize backend 'tpu'", fix)]
    assert "none: JAX does not start" in doctor.format_report(report)


def test_jax_that_cannot_be_imported(machine):
    machine.setitem(sys.modules, "jax", None)
    report = doctor.examine()
    assert report["devices"] is None and "does not start" in problems(report)[0][0]


def test_folder_that_cannot_be_written(machine, tmp_path):
    machine.chdir(tmp_path)
    machine.setattr(doctor.os, "access", lambda path, mode: False)
    ((problem, fix),) = problems(doctor.examine())
    assert str(tmp_path) in problem and "--workdir" in fix


def test_main_prints_to_stderr_and_returns_the_report(machine, capsys):
    values = flags.FlagValues()
    doctor.define_flags(values)
    values(["doctor"])
    machine.setenv("TPU_NAME", "local")
    report = doctor.main(values)
    out, err = capsys.readouterr()
    assert out == "" and err == doctor.format_report(report) + "\n"
    assert "Problems:\n  There is a TPU" in err and 'pip install "segjax[tpu]"' in err
