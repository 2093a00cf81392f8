"""What a run looks like: curves, the table of classes, and pictures, as files or inline in a notebook."""

from segjax.report import pictures, saved
from segjax.report.notebook import show, strips
from segjax.report.page import curves, print_table, read_log, table, write

__all__ = ["curves", "pictures", "print_table", "read_log", "saved", "show", "strips", "table", "write"]
