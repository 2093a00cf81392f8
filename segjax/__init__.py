"""segjax: image segmentation in JAX and Flax."""
