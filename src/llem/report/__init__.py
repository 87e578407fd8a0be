"""Reports: one self-contained page, its plots, and plain text for the terminal.

Names load on first use: matplotlib and jinja2 are imported only when a report is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llem._lazy import lazy

if TYPE_CHECKING:
    from llem.report.page import draw_fit, write_report
    from llem.report.serving import life_lines, study_lines
    from llem.report.study import draw_study, study_answer, write_study_report
    from llem.report.summary import comparison_lines, summary_lines
    from llem.report.tables import answer, law_rows, optimum_rows

_HOME = {
    "answer": "tables",
    "comparison_lines": "summary",
    "draw_fit": "page",
    "draw_study": "study",
    "law_rows": "tables",
    "life_lines": "serving",
    "optimum_rows": "tables",
    "study_answer": "study",
    "study_lines": "serving",
    "summary_lines": "summary",
    "write_report": "page",
    "write_study_report": "study",
}

__all__ = [
    "answer",
    "comparison_lines",
    "draw_fit",
    "draw_study",
    "law_rows",
    "life_lines",
    "optimum_rows",
    "study_answer",
    "study_lines",
    "summary_lines",
    "write_report",
    "write_study_report",
]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
