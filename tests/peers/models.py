"""Prints the table of models in docs/recipes_and_models.md: python tests/peers/models.py."""

from segjax import models
from segjax.profile.model_cost import model_cost

SHOWN = (
    ("unet", {}),
    ("unet", {"backbone": "resnet34"}),
    ("fcn", {"backbone": "vgg16", "head": "8s"}),
    ("fcn", {"backbone": "resnet50"}),
    ("deeplabv3", {"backbone": "resnet50", "output_stride": 8}),
    ("deeplabv3", {"backbone": "mobilenet_v3_large"}),
    ("deeplabv3plus", {"backbone": "mobilenet_v2"}),
    ("deeplabv3plus", {"backbone": "resnet50"}),
    ("deeplabv3plus", {"backbone": "resnet101"}),
    ("deeplabv3plus", {"backbone": "convnext_tiny"}),
    ("lraspp", {"backbone": "mobilenet_v3_small"}),
    ("lraspp", {"backbone": "mobilenet_v3_large"}),
    ("panoptic_deeplab", {"backbone": "resnet50"}),
)


def table() -> str:
    """Returns the table in Markdown: parameters, GFLOPs at 512x512 and stride of the logits, with 19 classes."""
    lines = ["| model | settings | parameters | GFLOPs | stride |", "|---|---|---|---|---|"]
    for name, settings in SHOWN:
        cost = model_cost(models.create(name, classes=19, **settings), (512, 512))
        written = ", ".join(f"{key}={value}" for key, value in settings.items())
        figures = f"{cost.parameters / 1e6:.1f} M | {cost.flops / 1e9:.1f} | {cost.strides['logits']}"
        lines.append(f"| `{name}` | {written} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
