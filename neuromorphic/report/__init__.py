"""One folder that says all that was measured: page, tables, figures, data."""

from .folder import check_folder, comparison_table, write_report
from .tables import comparison_csv, comparison_latex

__all__ = ["check_folder", "comparison_csv", "comparison_latex", "comparison_table", "write_report"]
