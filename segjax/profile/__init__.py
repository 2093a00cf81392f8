"""Profiling: ahead-of-time compilation of steps, the largest batch, timings, and a table of chips."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
