"""Strict everywhere: four virtual devices, strict dtypes, shapes checked, warnings are errors."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Programs are compiled once for all tests, also for the processes that tests start, and kept for the next run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Installed for the whole session: every module of segjax has its annotations checked when it is called.
install_import_hook("segjax", "checker.check")


@pytest.fixture(scope="session")
def test_data():
    """Folder of real labelled images; tests that need it are skipped where it is absent."""
    path = os.environ.get("SEGJAX_TEST_DATA")
    if not path or not os.path.isdir(path):
        pytest.skip("SEGJAX_TEST_DATA does not name a folder of real images")
    return path


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """Compiled programs stay on disk only: in memory those of all tests add up to many gigabytes."""
    yield
    jax.clear_caches()
