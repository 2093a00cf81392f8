"""What compile, fit and benchmark say: read off programs that are known, and off those of the real steps."""

import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from segjax import cli, parallel
from segjax.checks import UserError
from segjax.cli.fake_data import open_sources
from segjax.config import default_config
from segjax.profile import aot, chips, hlo, largest_batch, timing
from segjax.train import compilation

TINY = str(pathlib.Path(__file__).parent.parent / "configs" / "tiny.py")

LOOP = """
%body (p: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %m = bf16[8,64]{1,0:T(8,128)} multiply(%a, %a), metadata={op_name="jit(f)/jvp(N)/a/mul"}, b={"estimated_cycles":"10"}
}

%condition (p: (s32[], f32[8,64])) -> pred[] {
  %l = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%left (p: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} add(%p, %p), backend_config={"estimated_cycles":"3"}
}

%right (p: f32[8]) -> f32[8] {
  %y = f32[8]{0:T(128)} add(%p, %p), metadata={op_name="jit(f)/transpose(jvp(Net))/b/c/add"}, b={"estimated_cycles":"5"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %s = f32[2,9,200]{1,2,0:T(8,128)S(1)} copy(%p)
  %w = (s32[], f32[8,64]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body, c={"known_trip_count":{"n":"4"}}
  %g = (bf16[2,8,4,3]{3,2,1,0}, /*index=1*/bf16[4,8,4,3]{3,2,1,0}) all-gather-start(%s), channel_id=1, dimensions={0}
  %h = bf16[4,8,4,3]{3,2,1,0} all-gather-done(%g)
  ROOT %c = f32[8]{0:T(128)} conditional(%i, %p, %p), branch_computations={%left, %right}
}
"""


def test_cycles_follow_loops_and_branches():
    program = hlo.parse(LOOP, {"a": {}, "b": {"c": {"kernel": 0}}})
    costs, unknown = hlo.layers(program)
    assert costs[:2] == [hlo.LayerCycles("a", 40, 0), hlo.LayerCycles("b/c", 0, 5)] and unknown == 0
    assert hlo.layers(hlo.parse(LOOP.replace("known_trip_count", "no")))[1] == 1


def test_padding_follows_the_layout():
    """Rows of 9 lie innermost, in 128 lanes, and columns of 200 in sublanes of 8."""
    (shape,) = hlo.entry(hlo.parse(LOOP))[0].shapes
    assert shape.bytes == 2 * 9 * 200 * 4 and shape.padded_bytes == 2 * 200 * 128 * 4 and shape.space == 1
    assert hlo.parse(LOOP).computations["condition"][0].shapes[0].bytes == 1


def test_what_arrives_of_a_gather_is_counted():
    (found,) = hlo.collectives(hlo.parse(LOOP))
    assert found.opcode == "all-gather" and found.bytes == 4 * 8 * 4 * 3 * 2 and found.activation
    (found,) = hlo.collectives(hlo.parse(LOOP), expected=[(8, 4, 4, 3)])
    assert not found.activation
    assert hlo.unestimated(hlo.parse(LOOP)) == {"copy": 1, "all-gather": 1}


def test_a_gathered_activation_is_seen_in_a_real_program():
    mesh = parallel.make_mesh(devices=4)
    image = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    split = jax.sharding.NamedSharding(mesh, P(None, parallel.DATA))
    summed = jax.jit(lambda x: jnp.cumsum(x, 1), in_shardings=split, out_shardings=split)
    found = hlo.collectives(hlo.parse(summed.lower(image).compile().as_text()))
    assert {each.opcode for each in found if each.activation} == {"all-gather"}


def tiny(**data):
    config = default_config(source="noise")
    config.source.size = config.data.crop = (16, 16)
    config.source.classes, config.source.count, config.model.widths = 3, 8, (4, 8)
    for key, value in data.items():
        config.data[key] = value
    return config


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_programs_are_those_that_run(mode):
    """The shapes are those of the batches, and the compiled step takes what the loop gives it."""
    config = tiny()
    config.parallel.transform = mode
    for program in aot.step_programs(config):
        facts = aot.cost_report(program)
        assert facts["fits"] is None and facts["peak_bytes"] >= facts["argument_bytes"] > 0 and facts["flops"] > 0
        assert json.loads(json.dumps(facts)) == facts
        assert not any(each["activation"] for each in facts["collectives"])
        if program.name == "train" and mode == "jit":
            assert any(each["opcode"] == "all-reduce" for each in facts["collectives"])
            assert any(each["layer"] == "down_0/conv1/conv" for each in facts["buffers"])
    timed = aot.STEPS if mode == "jit" else ("train",)
    figures = timing.time_steps(config, timed, 0.0)
    assert all(figures[name]["calls"] == 5 and figures[name]["ms"] > 0 for name in timed)


@pytest.mark.slow
def test_the_hash_is_the_programs():
    one, same, other = (
        aot.compile_program(aot.step_programs(tiny(batch_size=n), ("train",))[0])[1]["hash"] for n in (4, 4, 8)
    )
    assert one == same != other


@pytest.mark.slow
def test_the_cache_serves_the_second_compilation(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        with timing.empty_cache():
            compilation.enable_compilation_cache(True)
            (program,) = aot.step_programs(tiny(), ("train",))
            found = []
            for _ in range(2):
                jax.clear_caches()
                found.append(aot.compile_program(program)[1]["from_cache"])
            assert found == [False, True]
        assert {name: getattr(jax.config, name) for name in names} == before
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            jax.config.update("jax_compilation_cache_dir", None)
            compilation.enable_compilation_cache(True)
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "segjax")
            compilation.enable_compilation_cache(False)
            assert not jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("limit", [9, 10, 25, 100, 1234])
@pytest.mark.parametrize("start", [1, 4, 64])
@pytest.mark.parametrize(
    "bytes_of",
    [
        lambda n: 3 + 7 * n,
        lambda n: 9 * n // 4 * 4 + n,
        lambda n: n * n,
        lambda n: 7 * n if n < 8 else 50 + n // 2,  # saves memory when it becomes scarce
        lambda n: max(5, n - 3),  # flat at first
    ],
)
def test_the_largest_batch_is_found(limit, start, bytes_of):
    tried = []

    def peak(n):
        tried.append(n)
        return (bytes_of(n) if bytes_of(n) <= limit else None), limit

    found, used = largest_batch.largest_that_fits(peak, start, 1)
    assert found == max([n for n in range(1, 4000) if bytes_of(n) <= limit and bytes_of(n + 1) > limit], default=0)
    assert used == (bytes_of(found) if found else None) and len(tried) == len(set(tried)) <= 24


@pytest.mark.slow
def test_fit_counts_the_memory_of_each_device():
    config = tiny(batch_size=8)
    (program,) = aot.step_programs(tiny(batch_size=12), ("train",))
    peak = aot.cost_report(program)["peak_bytes"]
    found = largest_batch.largest_batch(config, memory=peak)
    assert found == {"batch_size": 12, "peak_bytes": peak, "needs_remat": False}
    with pytest.raises(UserError, match="--memory"):
        largest_batch.largest_batch(config)


def test_fit_says_whether_recomputing_is_needed(monkeypatch):
    """Ten bytes an image, four with remat, of a hundred; batches are multiples of the four devices."""

    def report(config):
        used = config.data.batch_size * (4 if config.model.remat else 10)
        return {"fits": used <= 100, "memory_bytes": 100, "peak_bytes": used}

    monkeypatch.setattr(aot, "step_programs", lambda config, *rest: [config])
    monkeypatch.setattr(aot, "cost_report", report)
    found = largest_batch.largest_batch(tiny(batch_size=16))
    assert found == {
        "batch_size": 8,
        "peak_bytes": 80,
        "needs_remat": True,
        "remat_batch_size": 24,
        "remat_peak_bytes": 96,
    }
    assert largest_batch.largest_batch(tiny(batch_size=8)) == {"batch_size": 8, "peak_bytes": 80, "needs_remat": False}


def test_a_described_device_is_the_share_of_its_chip_that_it_is():
    class Core:
        device_kind, num_cores = "TPU v3", 1

    class Both(Core):
        device_kind, num_cores = "TPU v5", 2

    assert chips.chip_spec(Core()).memory == 16 and chips.chip_spec(Core()).peak == 61.5
    assert chips.chip_spec(Both()).memory == 95 and chips.chip_spec(Both()).peak == 459


def test_sources_stand_in_for_data_that_are_not_there():
    config = default_config(source="folder")
    config.source.root, config.source.images, config.source.masks = "/nowhere", "{stem}.png", "{stem}.png"
    with pytest.raises(UserError, match="Or give --size"):
        open_sources(config, None, None)
    with pytest.raises(UserError, match="--classes"):
        open_sources(config, ["8", "8"], None)
    with pytest.raises(UserError, match="two numbers"):
        open_sources(config, ["8"], 3)
    config.source.classes, config.source.things = ("sky", "cat"), ("cat",)
    source = open_sources(config, ["24", "32"], None)["train"]
    assert source.spec.classes == ("sky", "cat") and source.spec.things == (1,)
    assert source.read(0)["label"].shape == (24, 32) and source.read(0)["label"].max() == 1


def run(capsys, *argv):
    code = cli.main(list(argv))
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err


def test_compile_verb(capsys):
    code, facts, err = run(capsys, "compile", "--config", TINY, "--what=train,predict", "--size=40,48", "--classes=4")
    assert code == 0 and facts["train"]["images"] == 4 and facts["predict"]["devices"] == 1
    assert "all-reduce" in err and "--topology" in err and "estimated time" not in err
    code, _, err = run(capsys, "compile", "--config", TINY, "--what=tain")
    assert code == 1 and "Did you mean 'train'" in err


@pytest.mark.slow
def test_benchmark_verb(capsys, tmp_path):
    argv = ("benchmark", "--config", TINY, "--what=train,input", "--seconds=0")
    code, facts, err = run(capsys, *argv)
    assert code == 0 and facts["bottleneck"] in err and "Bottleneck: " in err
    assert set(facts["input"]) >= {"read_ms", "warp_ms", "transfer_ms", "images_per_second", "together"}
    saved = tmp_path / "before.txt"
    saved.write_text(f"some line\n{json.dumps(facts | {'device': 'other'})}\n")
    code, again, err = run(capsys, "benchmark", "--config", TINY, "--what=train", "--seconds=0", f"--compare={saved}")
    ratio = again["train"]["images_per_second"] / facts["train"]["images_per_second"]
    assert code == 0 and np.isclose(again["compared"]["train"], ratio) and "on 4 x other" in err
    saved.write_text("nothing")
    code, _, err = run(capsys, "benchmark", "--config", TINY, f"--compare={saved}")
    assert code == 1 and "no run was saved" in err


def test_topology_without_its_compiler(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run(capsys, "compile", "--config", TINY, "--topology=v5e:2x2")
    assert code == 1 and "pip install 'segjax[tpu]'" in err


@pytest.fixture(scope="module")
def tpu():
    """Runs `segjax compile` with a Python that has the TPU's compiler, in an environment of its own."""
    python = os.environ.get("SEGJAX_TPU_PYTHON")
    if not python:
        pytest.skip("SEGJAX_TPU_PYTHON does not name a Python with segjax[tpu]")
    plain = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}

    def run(*argv):
        command = [python, "-m", "segjax", "compile", "--config", TINY, *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=plain)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_compile_for_a_tpu_that_is_not_there(tpu):
    code, out, err = tpu("--topology=v5e:4x4", "--what=train", "--config.data.batch_size=16")
    assert code == 0, err
    facts = json.loads(out.splitlines()[-1])
    train = facts["train"]
    assert facts["device"] == "TPU v5 lite" and train["devices"] == 16 and train["fits"]
    assert train["memory_bytes"] == 16 * 2**30 > train["peak_bytes"] > train["temporary_bytes"]
    assert sum(each["forward"] + each["backward"] for each in train["layers"]) == train["estimated_cycles"] > 0
    assert np.isclose(train["estimated_ms"], train["estimated_cycles"] / 1.5e6)
    assert np.isclose(16 * train["estimated_images_per_second_per_chip"], train["estimated_images_per_second"])
    names = {each["layer"] for each in train["layers"] if each["backward"]}
    assert {"down_0/conv2/conv", "up_0/conv1/conv", "head"} <= names
    assert any(each["padded_bytes"] > each["bytes"] for each in train["buffers"])
    assert not any(each["activation"] for each in train["collectives"])
    assert "Estimated time by layer" in err


@pytest.mark.slow
def test_what_does_not_fit_says_so(tpu):
    argv = ("--topology=v5e:2x2", "--what=eval", "--size=2048,2048", "--config.eval.batch_size=2048")
    code, out, err = tpu(*argv)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["eval"]["fits"] is False
    assert "does not fit" in err and "largest buffers" in err and "a smaller eval.batch_size" in err


def test_unknown_topologies_are_named(tpu):
    code, _, err = tpu("--topology=v9:2x2")
    assert code == 1 and "--topology=v9:2x2" in err and "v5e:2x2" in err and "Traceback" not in err
