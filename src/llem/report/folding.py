"""Text folded where a terminal ends; what another program may read has no width."""

from __future__ import annotations

import textwrap


def folded(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    """`text` in lines of at most `width` columns; of width 0, as of a file or a pipe, in one.

    The first line begins with `first`, the others with `rest`.
    """
    if not width:
        return [first + text]
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest,
                         break_on_hyphens=False)  # fmt: skip
