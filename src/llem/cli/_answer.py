"""How a fit and a finished campaign are told: the law, the optimum, what was left out."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from llem.cli._bar import Bar
from llem.cli._command import note, print_json

if TYPE_CHECKING:
    from llem.pipeline import Finished

# Work that takes less than this (s) needs no bar.
PATIENCE_S = 1.0


def tell_fit(fit: dict[str, Any], *, as_json: bool) -> None:
    """The law with its intervals on standard output; as JSON, the content of fit.json alone."""
    if as_json:
        print(json.dumps(fit, indent=1, allow_nan=False))
        return
    from llem.cli._table import indented, screen_width
    from llem.report import study_lines, summary_lines

    if "variants" in fit:
        indented(study_lines(fit))
    else:
        print(*summary_lines(fit, width=screen_width()), sep="\n")


def tell_comparison(found: dict[str, Any], *, as_json: bool) -> None:
    """The laws that were compared, best first."""
    if as_json:
        print_json(found)
        return
    from llem.cli._table import screen_width
    from llem.report import comparison_lines

    print(*comparison_lines(found, width=screen_width()), sep="\n")


def tell_finished(done: Finished, *, as_json: bool) -> int:
    """Everything at the end of a campaign; returns the exit status."""
    for problem in done.problems:
        note(f"problem: {problem}")
    if as_json:
        told = {"answer": list(done.answer)} if done.answer else {}
        print_json({"fit": done.fit, "reason": done.reason, **told, "report": str(done.report)})
    elif done.fit is not None:
        print("".join(f"{line}\n" for line in (*done.answer, "")) if done.answer else "", end="")
        tell_fit(done.fit, as_json=False)
        print(f"\nreport: {done.report}")
    if done.fit is None:
        note(f"no law: {done.reason}")
        note(f"report: {done.report}")
        return 1
    return 0


class Progress(Bar):
    """A bar on standard error, where that is a terminal and the work takes long enough for one.

    Called with (done, all), as `fit_law` tells its resamples.
    """

    columns = ("", "BarColumn", "MofNCompleteColumn", "TimeRemainingColumn")

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self._begun = time.monotonic()
        self._shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if not self._shown or (not self.drawn and done >= total):
            return
        if self.drawn or time.monotonic() - self._begun >= PATIENCE_S:
            self.draw(self._words, done=done, total=total)
