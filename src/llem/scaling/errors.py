"""What this package refuses. Every refusal is the fault of an input, and carries its data.

llem.errors.InputError
└── ScalingError
    ├── ScalingDataError   the observations cannot carry a fit; `faults` names every reason
    ├── UnknownLawError    no law of that name
    └── OptionError        an option of a call is out of range
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llem.errors import Fault, InputError, did_you_mean

FAULTS_SHOWN = 20


class ScalingError(InputError):
    """Root of the errors raised by `llem.scaling`."""


@dataclass(frozen=True)
class DataFault(Fault):
    """One reason why the observations were refused.

    `column` is the input at fault, `row` its 0-based row (None where the fault is of the whole
    column), `value` what stood there.
    """

    column: str = ""
    row: int | None = None
    value: float | None = None

    @classmethod
    def of(
        cls, column: str, message: str, *, row: int | None = None, value: float | None = None
    ) -> DataFault:
        """A fault of a column, or of one row of it."""
        path = column if row is None else f"{column}[{row}]"
        hint = None if value is None else f"found {value:g}"
        return cls(path, message, hint, column, row, value)


class ScalingDataError(ScalingError):
    """The observations cannot carry a fit. All faults are found before this is raised."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        super().__init__("observations", tuple(faults))

    def lines(self) -> list[str]:
        """The head and the first faults; thousands of bad rows do not flood a terminal."""
        lines = super().lines()
        if len(self.faults) <= FAULTS_SHOWN:
            return lines
        return [*lines[: FAULTS_SHOWN + 1], f"  and {len(self.faults) - FAULTS_SHOWN} more"]


class UnknownLawError(ScalingError):
    """No law of that name is known."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        message = f"no law is called {name!r}; known: {', '.join(known)}"
        super().__init__("law", [Fault("", message, did_you_mean(name, known))])


class OptionError(ScalingError):
    """An option of a call is out of range."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        self.option = option
        self.value = value
        self.expected = expected
        super().__init__(option, [Fault("", f"expected {expected}, found {value!r}")])
