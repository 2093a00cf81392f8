import pathlib
import re

from setuptools import find_packages, setup

TENSORFLOW = [
    "tensorflow-cpu; sys_platform != 'darwin'",
    "tensorflow; sys_platform == 'darwin'",
    "array_record",
]
BRAIN = ["nilearn", "nibabel"]
COCO = ["pycocotools"]
FORMATS = ["imagecodecs"]
HUGGINGFACE = ["datasets"]
WEIGHTS = ["safetensors", "huggingface_hub"]
NOTEBOOK = ["nbclient", "nbformat", "ipykernel"]
TESTS = ["pytest", "pytest-xdist", "ruff", "beartype", "tensorboardX"]

setup(
    name="segjax",
    version=re.search(r'__version__ = "(.*)"', pathlib.Path("segjax/__init__.py").read_text(encoding="utf-8"))[1],
    description="Image segmentation in JAX and Flax, for TPUs, GPUs and CPUs",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["segjax", "segjax.*"]),
    package_data={"": ["*.pyi"], "segjax": ["py.typed"], "segjax.report": ["templates/*.html"]},
    install_requires=[
        "jax>=0.7.2,!=0.10.1",
        "flax>=0.11",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "tensorflow-datasets",
        "ml-collections",
        "absl-py",
        "jaxtyping",
        "lazy-loader",
        "numpy",
        "scipy",
        "pillow",
        "pyyaml",
        "tifffile",
        "rich",
        "jinja2",
        "markupsafe",
    ],
    extras_require={
        "tf": TENSORFLOW,
        "brain": BRAIN,
        "quickstart": TENSORFLOW + BRAIN,
        "coco": COCO,
        "formats": FORMATS,
        "huggingface": HUGGINGFACE,
        "weights": WEIGHTS,
        "tensorboard": ["tensorboardX"],
        "wandb": ["wandb"],
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "dev": TENSORFLOW + BRAIN + COCO + FORMATS + HUGGINGFACE + WEIGHTS + NOTEBOOK + TESTS,
    },
    entry_points={"console_scripts": ["segjax = segjax.cli:main"]},
)
