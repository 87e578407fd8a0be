"""A progress bar on standard error, drawn by rich and gone when it is done."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self


class Bar:
    """Drawn from the first `draw` on; what is drawn when is for those who inherit.

    `columns` are names of columns of `rich.progress`, in order; "" is the words.
    """

    columns: tuple[str, ...]

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def draw(self, words: str, *, done: float, total: float) -> None:
        if self._bar is None:
            from rich import progress
            from rich.console import Console

            columns = [
                getattr(progress, name)() if name else progress.TextColumn("{task.description}")
                for name in self.columns
            ]
            console = Console(stderr=True)
            self._bar = progress.Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(words, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=words)

    @property
    def drawn(self) -> bool:
        """Whether there has been anything to draw."""
        return self._bar is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
