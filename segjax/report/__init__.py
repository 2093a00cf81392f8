"""The report of a run: curves, the class table and pictures, as files or inline in a notebook."""

from segjax.report import mask_files, pictures
from segjax.report.notebook import show, strips
from segjax.report.page import curves, html_table, print_table, read_log, write

__all__ = ["curves", "html_table", "mask_files", "pictures", "print_table", "read_log", "show", "strips", "write"]
