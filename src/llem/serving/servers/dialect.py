"""What a server with the OpenAI interface takes of a request, and how its tokens are counted.

Servers differ: in whether a prompt may be token ids, and in which fields beyond OpenAI's they know;
some refuse a request for a field that they do not know, others do not look at it. One request at
the start finds it out, so that not every request of the run fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Without these a request still means the same, or its rows say what else it did: the texts end
# where the model ends them, are drawn differently each time, are counted by their pieces.
OPTIONAL = ("return_token_ids", "ignore_eos", "seed", "stream_options")

# Pieces of a stream that are taken for a token each.
EACH, BUT_LAST = "each", "but the last"

Post = Callable[[Mapping[str, Any]], list[dict[str, Any]]]
Text = Callable[[Sequence[int]], str]


class Refused(Exception):
    """A request that the server did not take, in its own words."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How requests are said to one server: `as_text` where it takes no ids for a prompt, without
    the fields `left_out`. `ids` is whether it sends back the ids of tokens, `usage` whether it
    counts tokens itself; `refused` says why anything is left out. `pieces` is which of its pieces
    are taken for a token each, be they without text: EACH, or BUT_LAST, where the one that says why
    the text ended is none; empty where only those with text are."""

    as_text: bool = False
    left_out: tuple[str, ...] = ()
    ids: bool = False
    pieces: str = ""
    usage: bool = False
    refused: tuple[str, ...] = ()

    def body(self, body: Mapping[str, Any], *, text: Text) -> dict[str, Any]:
        """The request as this server takes it."""
        found = {key: value for key, value in body.items() if key not in self.left_out}
        if self.as_text:
            found["prompt"] = text(found["prompt"])
        return found

    def tokens(self, choice: Mapping[str, Any]) -> int:
        """How many tokens a piece of the stream brings. Without ids one: of texts in which a
        character takes several tokens that is too few."""
        if self.ids:
            return len(choice.get("token_ids") or ())
        if self.pieces:
            return int(self.pieces == EACH or not choice.get("finish_reason"))
        return int(bool(choice.get("text")))

    def told(self) -> dict[str, Any]:
        """For the end record, beside the options as they were effective."""
        found: dict[str, Any] = {
            "prompts_sent_as": "text" if self.as_text else "token ids",
            "token_times": self._token_times(),
            "tokens_counted_by": "the server" if self.usage else "the length asked for, or times",
        }
        if self.left_out or self.as_text:
            found["not_taken"] = list(self.left_out)
            found["refused"] = list(self.refused)
        if "ignore_eos" in self.left_out:
            found["ignore_eos"] = False
        return found

    def _token_times(self) -> str:
        if self.ids:
            return "of token ids"
        return "of pieces" if self.pieces else "of pieces of text"


def find_dialect(post: Post, body: Mapping[str, Any], *, text: Text) -> Dialect:
    """How to speak to the server that `post` reaches, by a `body` with everything in it.

    Raises Refused where it takes it neither with a text nor without the optional fields.
    """
    reasons: list[str] = []
    for as_text in (False, True):
        try:
            return _without(post, body, as_text=as_text, text=text, reasons=reasons)
        except Refused as error:
            reasons.append(str(error))
    raise Refused(reasons[0])


def _without(
    post: Post, body: Mapping[str, Any], *, as_text: bool, text: Text, reasons: list[str]
) -> Dialect:
    """With all fields, else with those that are taken one by one; `reasons` collects why not."""

    def heard(left_out: tuple[str, ...]) -> Dialect:
        told = tuple(dict.fromkeys(reasons))
        dialect = Dialect(as_text=as_text, left_out=left_out, refused=told)
        asked = int(body.get("max_tokens") or 0)
        return _heard(post(dialect.body(body, text=text)), dialect, asked=asked)

    try:
        return heard(())
    except Refused as error:
        reasons.append(str(error))
    left_out: tuple[str, ...] = OPTIONAL
    found = heard(left_out)
    for name in OPTIONAL:
        fewer = tuple(n for n in left_out if n != name)
        try:
            found, left_out = heard(fewer), fewer
        except Refused as error:
            reasons.append(str(error))
    return replace(found, refused=tuple(dict.fromkeys(reasons)))


def _heard(parts: Sequence[Mapping[str, Any]], dialect: Dialect, *, asked: int) -> Dialect:
    """The dialect with what the answer to a request for `asked` tokens shows of tokens."""
    choices = [choice for part in parts for choice in part.get("choices") or ()]
    if not choices:
        raise Refused("the answer is no stream of choices")
    usage = [part["usage"] for part in parts if part.get("usage")]
    return replace(
        dialect,
        ids=any(choice.get("token_ids") for choice in choices),
        pieces=_pieces([choice.get("finish_reason") for choice in choices], asked=asked),
        usage=any(u.get("completion_tokens") is not None for u in usage),
    )


def _pieces(ends: Sequence[str | None], *, asked: int) -> str:
    """Which pieces are a token each, by how those of an answer ended: one that ended by its length
    is of as many tokens as were `asked` for."""
    if "length" not in ends:
        return ""
    counts = {BUT_LAST: sum(not end for end in ends), EACH: len(ends)}
    return next((rule for rule, count in counts.items() if count == asked), "")
