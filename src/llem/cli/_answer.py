"""How a finished campaign is told: the law, the optimum, what was left out."""

from __future__ import annotations

from typing import Any

from llem.cli._command import note, print_json
from llem.pipeline import Finished


def tell_fit(fit: dict[str, Any], *, as_json: bool) -> None:
    """The law with its intervals on standard output."""
    if as_json:
        print_json(fit)
        return
    from llem.report import summary_lines

    for line in summary_lines(fit):
        print(line)


def tell_finished(done: Finished, *, as_json: bool) -> int:
    """Everything at the end of a campaign; returns the exit status."""
    for problem in done.problems:
        note(f"problem: {problem}")
    if as_json:
        print_json({"fit": done.fit, "reason": done.reason, "report": str(done.report)})
    elif done.fit is not None:
        tell_fit(done.fit, as_json=False)
        print(f"\nreport: {done.report}")
    if done.fit is None:
        note(f"no law: {done.reason}")
        note(f"report: {done.report}")
        return 1
    return 0
