"""Every configuration key with its default, the check of keys, and the durations of a run."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from segjax.checks import UserError, check_keys, choose

SOURCES = {
    "folder": {
        "root": None,  # folder of the data set; ~ and $VARIABLES are expanded
        "images": None,  # path template under root with {stem} and perhaps {split}, or a folder
        "masks": None,  # the same for masks; {class} makes it multi-label, one mask a class
        "instances": None,  # the same for the numbers of objects; without masks they tell two classes apart
        "instance_base": 0,  # smaller numbers are no objects, as 0 never is (Cityscapes: 1000)
        "crowds": False,  # True: pixels of things without an object are crowds; False: they are a fault
        "classes": None,  # class names, or a text file under root with one name a line
        "ids": None,  # raw mask value -> class; None: values are indices (and 255 is no truth from 3 classes on)
        "ignore_ids": (),  # raw mask values without truth
        "colours": None,  # class name or "ignore" -> (r, g, b), for masks drawn in colours
        "palette": None,  # a colour a class, for pictures; the PASCAL VOC map where left out
        "things": (),  # classes that are countable objects, names or indices
        "lists": None,  # text file under root with the stems of a split, such as "splits/{split}.txt"
        "fractions": None,  # split -> (from, to), shares of the sorted stems, in contiguous blocks
        "window": None,  # (low, high) intensities mapped to 0..255, for images of more than 8 bits
    },
    "coco_panoptic": {
        "root": None,  # folder of the data set; ~ and $VARIABLES are expanded, and {split} here and below
        "images": "{split}",  # folder of the images, under root
        "annotations": "annotations/panoptic_{split}.json",  # file under root
        "masks": "annotations/panoptic_{split}",  # folder of the PNGs of segment ids
        "window": None,  # (low, high) intensities mapped to 0..255, for images of more than 8 bits
    },
    "coco_instances": {
        "root": None,  # folder of the data set; ~ and $VARIABLES are expanded, and {split} here and below
        "images": "{split}",  # folder of the images, under root
        "annotations": "annotations/instances_{split}.json",  # file under root
        "window": None,  # (low, high) intensities mapped to 0..255, for images of more than 8 bits
    },
    "yolo": {
        "root": None,  # folder of the data set; ~ and $VARIABLES are expanded, and {split} here and below
        "images": "images/{split}",  # folder under root, or a path template with {stem}
        "labels": "labels/{split}/{stem}.txt",  # path template of the text files
        "classes": None,  # class names, without the background
        "palette": None,  # a colour for the background and each class, for pictures; the PASCAL VOC map where left out
        "window": None,  # (low, high) intensities mapped to 0..255, for images of more than 8 bits
    },
    "tfds": {
        "builder": None,  # TFDS name, such as "oxford_iiit_pet"
        "image": "image",  # feature that holds the image
        "mask": "segmentation_mask",  # feature that holds the mask
        "panoptic": None,  # feature that holds segment ids in colours, in place of a mask
        "objects": "panoptic_objects",  # feature that lists those segments
        "classes": None,  # class names
        "ids": None,  # raw mask value -> class; None: values are indices (and 255 is no truth from 3 classes on)
        "ignore_ids": (),  # raw mask values without truth
        "palette": None,  # a colour a class, for pictures; the PASCAL VOC map where left out
        "things": (),  # classes that are countable objects, names or indices
        "data_dir": None,  # where prepared data lie; None is TFDS's own choice
        "window": None,  # (low, high) intensities mapped to 0..255, for images of more than 8 bits
    },
    "shapes": {
        "count": None,  # scenes in the split; None: 4096 in "train", 512 elsewhere
        "size": (128, 128),  # rows, columns
        "seed": 0,  # scenes are a function of (seed, split, index)
        "objects": (2, 8),  # fewest and most things in a scene
    },
    "noise": {
        "count": 64,  # images in the split
        "size": (512, 512),  # rows, columns
        "classes": 19,  # number of classes
        "things": 0,  # how many of them, the last, are countable objects
    },
    "brain": {
        "plane": "axial",  # axial | coronal
    },
    "arrays": {
        "data": None,  # .npz file with {split}_image, {split}_label and perhaps {split}_instance
        "classes": None,  # class names
        "palette": None,  # a colour a class, for pictures
        "things": (),  # classes that are countable objects, names or indices
    },
}

NETWORK = {
    "norm": "batch",  # batch | group | none
    "momentum": 0.9,  # share of the old batch-norm statistics that is kept each step
    "dtype": "float32",  # float32 | bfloat16: compute dtype; parameters, statistics and logits stay float32
    "remat": False,  # recompute activations in the backward pass: less memory, more time
}

PYRAMID = NETWORK | {
    "backbone": "resnet50",  # see segjax/nn/backbones/__init__.py
    "output_stride": 16,  # 8 | 16 | 32: finest resolution that the backbone keeps
    "atrous_rates": (6, 12, 18),  # of the pyramid at output stride 16; at 8 twice, at 32 half as large
    "width": 256,  # channels of the pyramid and of what follows
    "pooling": (),  # rows, columns in pixels of the pyramid's mean, such as the crop; (): the whole image
    "multi_grid": (1, 1, 1),  # factors of the dilations in the last three blocks of a ResNet
    "dropout": 0.5,  # rate after the pyramid
    "convention": "atrous",  # or whose dilations and details, for their weights: torchvision (v3) | smp (v3+)
}

MODELS = {
    "unet": NETWORK
    | {
        "backbone": "plain",  # plain (the paper's contracting path) or a backbone
        "widths": (),  # channels of each level, full resolution first; (): 32 .. 256, on a backbone 16 .. 256
        "padding": "same",  # same | valid (the paper's: 572 -> 388, give preprocess.context=92)
        "upsampling": "auto",  # transposed | resize (bilinear, then a convolution) | nearest | auto
        "dropout": 0.0,  # rate at the bottom of the U
        "fold": False,  # keep full-resolution maps two columns side by side: the same network, faster on TPUs
    },
    "fcn": NETWORK
    | {
        "backbone": "resnet50",
        "head": "conv",  # conv (a 3x3 convolution) | 32s | 16s | 8s (the paper's, with scored skips)
        "output_stride": 0,  # 8 | 16 | 32; 0: 8, or 32 with the paper's heads
        "width": 0,  # channels before the scores; 0: a quarter of the backbone's, 4096 in the paper's heads
        "dropout": 0.1,  # rate before the scores
        "aux": "",  # c3 | c4: features that feed an auxiliary head; task.aux weighs its loss
        "convention": "atrous",  # atrous | torchvision: whose dilations, for their weights
    },
    "deeplabv3": PYRAMID
    | {
        "separable": False,  # depthwise separable convolutions
        "aux": "",  # c3 | c4: features that feed an auxiliary head; task.aux weighs its loss
    },
    "deeplabv3plus": PYRAMID
    | {
        "separable": True,  # depthwise separable convolutions
        "low_width": 48,  # channels that the features of stride 4 are reduced to
        "refine": 0,  # 3x3 convolutions before the features of stride 4 join
        "fuse": 2,  # 3x3 convolutions after they joined
    },
    "panoptic_deeplab": {key: value for key, value in PYRAMID.items() if key != "convention"}
    | {
        "separable": True,  # depthwise separable convolutions
        "dropout": 0.1,  # rate after the pyramids
    },
    "lraspp": NETWORK
    | {
        "backbone": "mobilenet_v3_large",
        "output_stride": 16,  # 8 | 16 | 32
        "width": 128,  # channels of the last features
        "convention": "torchvision",  # torchvision | atrous: whose dilations and features, for their weights
    },
}


OBJECTS = {  # the loss is Panoptic-DeepLab's
    "cross_entropy": 1.0,  # weight of the cross-entropy of the hardest pixels
    "centre": 200.0,  # weight of the squared error of the centre map
    "offset": 0.01,  # weight of the absolute error of the offsets, in pixels
    "hardest": 0.2,  # share of each image's pixels that count in the cross-entropy, those of the largest
    "sigma": None,  # of a centre's Gaussian, in pixels; None: 8 in crops of 1025 rows, in proportion below, 4 at least
    "small_area": 4096,  # objects of fewer pixels weigh more in the cross-entropy
    "small_weight": 3.0,  # by so much
    "divisor": 1000,  # of panoptic ids, class * divisor + object: more than there are objects in an image
    "threshold": 0.1,  # least value of a centre
    "nms_kernel": 7,  # rows and columns in which a centre is the largest value; odd
    "top_k": 200,  # greatest number of objects in an image that are found
    "stuff_area": 2048,  # pixels; stuff of fewer is void
}

TASKS = {
    "semantic": {
        "mode": "multiclass",  # multiclass | binary | multilabel: sets head, loss, activation and metric
        "cross_entropy": 1.0,  # weight of the (binary) cross-entropy in the loss
        "dice": 0.0,  # weight of soft Dice in the loss
        "dice_over": "image",  # image | batch: the pixels that one Dice is taken over
        "dice_smooth": 1.0,  # pixels added to numerator and denominator
        "class_weights": (),  # weight of each class in the cross-entropy; `segjax inspect` prints them
        "label_smoothing": 0.0,
        "hardest": 1.0,  # share of each image's pixels that count in the cross-entropy, those of the largest
        "aux": 0.4,  # weight of the loss of an auxiliary head, where the model has one (0.4: PSPNet, section 5.2)
    },
    "panoptic": OBJECTS,
    "instance": OBJECTS | {"stuff_area": 0, "top_k": 100},  # 100: as many as COCO scores
}

BEST = {"semantic": "mIoU", "panoptic": "PQ", "instance": "AP"}


def base(source: str = "shapes", model: str = "unet", task: str = "semantic") -> ConfigDict:
    """Returns a configuration with every key at its default; a mistyped key fails.

    Args:
        source: name of the data source, a key of `SOURCES`.
        model: name of the model, a key of `MODELS`; one that finds objects for the tasks that need it.
        task: kind of segmentation, a key of `TASKS`.

    Returns:
        A ConfigDict whose sections are the keyword arguments of one function each.

    Raises:
        UserError: no such source, model or task.

    Example:
        >>> config = base(source="shapes")
        >>> config.data.crop = (64, 64)
        >>> config.model.name
        'unet'
    """
    config = {
        "seed": 0,  # of parameters, sample order, augmentation and dropout
        # What the source calls them. "test" is scored, and the best checkpoint is the best on it: give the name of
        # a validation split here where there is one, and score the test split with `segjax evaluate --split`.
        "splits": {"train": "train", "test": "test"},
        "source": {"name": source} | choose("source.name", source, SOURCES),  # sources.create
        "preprocess": {  # spec.Preprocess
            "mean": (127.5, 127.5, 127.5),  # grey levels; one value makes grey images of everything
            "std": (64.0, 64.0, 64.0),  # grey levels
            "resize": None,  # network pixels per image pixel, or (rows, columns) to fit into
            "context": 0,  # pixels of image beyond each side of the label
            "outside": "mean",  # mean | mirror: what lies beyond the image
        },
        "data": {  # data.pipeline.train_batches
            "batch_size": 8,  # images a step, over all devices and hosts
            "crop": (128, 128),  # rows, columns of a training image, in network pixels
            "scale": (1.0, 1.0),  # range of the random zoom; drawn log-uniformly
            "rotate": 0.0,  # degrees to either side
            "flip_horizontal": True,
            "flip_vertical": False,
            "elastic": 0.0,  # standard deviation of the displacements, in network pixels (U-Net paper: 10)
            "elastic_grid": 3,  # displacements a side, interpolated bicubically (U-Net paper: 3)
            "rare": 0.0,  # share of crops that are sought around a pixel of a random class of the image
            "paste": 0.0,  # share of crops into which objects of another image are pasted
        },
        "loading": {  # data.loader.Loading
            "loader": "auto",  # tf.data | threads | auto (tf.data where TensorFlow is installed): the same batches
            "workers": 0,  # parallel readers; 0 is the number of cores
            "max_corrupt": 0.02,  # share of a split that may be unreadable before the run stops
        },
        "augment": {  # augment.colour; 0 switches each off
            "brightness": 0.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "gamma": 0.0,
            "noise": 0.0,
            "blur": 0.0,
            "cutout": 0.0,
        },
        "model": {"name": model} | choose("model.name", model, MODELS),  # models.create
        "task": {"name": task} | choose("task.name", task, TASKS),  # tasks.create
        "optimizer": {  # train.optimizer.make
            "name": "adamw",  # sgd | adam | adamw | lion | lamb
            "learning_rate": 1e-3,  # at the peak
            "schedule": "cosine",  # constant | step | exponential | polynomial | cosine | one_cycle
            "end": 0.0,  # last learning rate as a share of the peak
            "power": 0.9,  # of the polynomial
            "decay_rate": 0.1,  # factor at each milestone (step) or over the whole run (exponential)
            "milestones": (0.6, 0.85),  # of the step schedule, as shares of the run
            "momentum": 0.9,  # of sgd
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 1e-4,  # of kernels; norms and biases are spared
            "clip": 0.0,  # largest global norm of the gradient; 0 is off
            "accumulate": 1,  # batches whose mean gradient makes one update
        },
        "ema": {  # train.step
            "decay": 0.0,  # of the moving average of weights and statistics; 0 is off
            "evaluate": True,  # score and predict with the average, where there is one
        },
        "run": {  # config.durations
            "unit": "steps",  # steps | epochs | examples: what the next four are counted in
            "total": 1000.0,  # length of the run
            "warmup": 0.0,  # of the learning rate
            "eval_every": 0.0,  # 0: at the end only
            "checkpoint_every": 0.0,  # 0: with each evaluation; without those, ten times a run
            "log_every": 10,  # always in steps
        },
        "eval": {  # data.pipeline.eval_batches
            "batch_size": 8,
            "buckets": 1,  # groups of like-sized images; each is padded to its own largest and compiled once
        },
        "parallel": {  # parallel.make_mesh and train.step
            "mode": "jit",  # jit (over a mesh) | pmap
            "devices": 0,  # 0: all
            "space": 1,  # devices that share the rows of an image, for images too large for one
            "fsdp": False,  # divide parameters, moments and averages over the devices; a step gathers the parameters
        },
        # A workdir with checkpoints is resumed; init.weights counts for a first start only.
        "init": {  # train.state.start_from
            "weights": None,  # .safetensors, .pth or hf://organisation/name; None: from scratch
            "layout": "torchvision",  # torchvision | timm | smp: whose names the weights have
            "strict": True,  # a missing or misshapen tensor is an error
            "check_inputs": True,  # means and deviations other than the weights' are an error
            "check_settings": True,  # a model that is set otherwise than theirs, and so another function, is an error
        },
        "resume": {  # train.checkpoint.compare
            "allow_changed": False,  # resume although model, task or classes differ from the workdir's
        },
        "checkpoint": {  # train.checkpoint.Checkpoints
            "best": BEST[task],  # figure whose best checkpoint is kept beside the last
            "evaluate": "best",  # best | last: the one that is scored at the end and used to predict
        },
        "log": {  # train.log.Log
            "wandb": False,
            "tensorboard": True,  # where tensorboardX is installed
        },
    }
    return ConfigDict(config).lock()


def call(function: Callable, section: str, arguments: ConfigDict | dict, *args, **kwargs):
    """Calls a function with a configuration section as keyword arguments.

    Args:
        function: what the section configures.
        section: its name, for the message.
        arguments: the section.
        *args: passed on.
        **kwargs: passed on beside the section.

    Returns:
        What the function returns.

    Raises:
        UserError: a key that the function does not take; names the nearest one.

    Example:
        >>> call(round, "demo", {"ndigits": 1}, 2.345)
        2.3
    """
    known = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        check_keys(arguments, known, section)
    return function(*args, **arguments, **kwargs)


class Durations(NamedTuple):
    """Lengths of a run, all in steps."""

    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    log_every: int

    def due(self, what: Literal["eval", "checkpoint", "log"], step: int) -> bool:
        """Says whether something happens after `step` steps; everything happens after the last.

        Args:
            what: "eval", "checkpoint" or "log".
            step: number of finished steps.

        Returns:
            Whether it is due.
        """
        every = getattr(self, f"{what}_every")
        return step == self.total or (every > 0 and step % every == 0)


def durations(
    steps_per_epoch: int | float,
    batch_size: int,
    *,
    unit: str = "steps",
    total: int | float = 1000.0,
    warmup: int | float = 0.0,
    eval_every: int | float = 0.0,
    checkpoint_every: int | float = 0.0,
    log_every: int = 10,
) -> Durations:
    """Converts the durations of a run to steps, once.

    Args:
        steps_per_epoch: steps that see each sample once on average.
        batch_size: samples a step.
        unit: steps, epochs or examples: unit of `total`, `warmup`, `eval_every` and `checkpoint_every`.
        total: length of the run.
        warmup: length of the learning rate's warm-up.
        eval_every: between evaluations; 0 evaluates at the end only.
        checkpoint_every: between checkpoints; 0 saves with each evaluation or, without those, ten times a run.
        log_every: steps between lines of the log.

    Returns:
        Everything in steps, rounded up.

    Raises:
        UserError: an unknown unit, a negative duration, or a run without steps.

    Example:
        >>> durations(46, 8, unit="epochs", total=2, warmup=0.5)
        Durations(total=92, warmup=23, eval_every=0, checkpoint_every=10, log_every=10)
    """
    factor = choose("run.unit", unit, {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1.0 / batch_size})

    def steps(amount):
        return math.ceil(amount * factor - 1e-9)

    if min(total, warmup, eval_every, checkpoint_every) < 0 or log_every < 1:
        raise UserError("The durations of run must not be negative, and run.log_every must be at least 1.")
    if steps(total) < 1:
        raise UserError(f"run.total={total} {unit} is less than one step.")
    saving = steps(checkpoint_every) or steps(eval_every) or math.ceil(steps(total) / 10)
    return Durations(steps(total), steps(warmup), steps(eval_every), saving, log_every)


def to_dict(config: ConfigDict | dict) -> dict[str, Any]:
    """Returns a configuration as plain dicts and lists, as JSON gives it back.

    Args:
        config: a configuration.

    Returns:
        The same keys and values; tuples become lists.
    """

    def plain(value):
        if isinstance(value, ConfigDict | dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return plain(config)


def from_dict(saved: dict[str, Any]) -> ConfigDict:
    """Rebuilds a configuration that `to_dict` made, over today's defaults.

    Args:
        saved: contents of a workdir's config.json.

    Returns:
        The configuration; keys that are newer than the workdir have their defaults.

    Raises:
        UserError: a key that no longer exists.
    """

    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

    config = base(saved["source"]["name"], saved["model"]["name"], saved["task"]["name"])
    for section, values in tuples(saved).items():
        check_keys([section], config, "config")
        if isinstance(values, dict):
            check_keys(values, config[section], section)
            for key, value in values.items():
                with config[section].ignore_type():
                    config[section][key] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            config[section] = values
    return config
