"""What a run looks like: curves, the table of classes, and pictures, as files or inline in a notebook."""

from segjax.report import pictures
from segjax.report.notebook import show, strips
from segjax.report.page import curves, read_log, table, write

__all__ = ["curves", "pictures", "read_log", "show", "strips", "table", "write"]
