"""Layers and operations that models are made of."""
