"""Oxford-IIIT Pet: cats and dogs, 3,680 training and 3,669 test photos of many sizes, 3 classes.

TensorFlow Datasets downloads and prepares the data (0.8 GB) on first use.
"""


def apply(config):
    """Sets `config.source`, TensorFlow Datasets."""
    config.source.builder = "oxford_iiit_pet:4.*.*"
    config.source.classes = ("pet", "background", "border")
    config.source.ids = {"1": "pet", "2": "background", "3": "border"}
