"""Metrics: counts per image on the device, figures on the host."""
