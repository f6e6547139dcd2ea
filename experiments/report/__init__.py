"""The report of a grid of experiments: pictures, tables and a ranking, as Markdown, HTML, CSV and LaTeX.

Reads nothing but finished cells; runs none.
"""

from folkmoot.experiments.report.findings import NoResults, UnusableResult
from folkmoot.experiments.report.writing import write_report

__all__ = ["NoResults", "UnusableResult", "write_report"]
