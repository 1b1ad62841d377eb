"""One folder that says all that was measured: page, tables, figures, data."""

from .folder import check_folder, comparison_table, write_report

__all__ = ["check_folder", "comparison_table", "write_report"]
