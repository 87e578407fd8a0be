"""What a deployment is asked: prompts as token ids, and when each request arrives.

Everything is of the deployment and the cycle alone, so that every rank makes the same requests
and takes its own part of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llem._resources import PACKAGE
from llem.campaign import Arrival, Prompts, Serving
from llem.campaign.data.saveddata import saved_dataset
from llem.errors import Fault, InputError

BUILTIN = PACKAGE / "campaign" / "prompts"


class Tokenizer(Protocol):
    """Texts to token ids. `name` says what it is, for the record."""

    name: str

    def encode(self, text: str) -> list[int]: ...


class Bytes:
    """UTF-8 bytes as token ids: for a model that has no tokenizer of its own."""

    name = "bytes"

    def __init__(self, vocabulary: int) -> None:
        if vocabulary < 256:
            text = f"a vocabulary of {vocabulary} is too small for the bytes of a text"
            raise InputError("prompts", [Fault("", text, "synthetic prompts, or a tokenizer")])

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be served: `number` by arrival, `prompt` its number among the prompts.

    `arrival_s` is after the window's beginning.
    """

    number: int
    prompt: int
    tokens: Sequence[int]
    output_tokens: int
    arrival_s: float = 0.0


def make_requests(run: Serving, tokenizer: Callable[[], Tokenizer]) -> list[Request]:
    """All requests of a run, by arrival; the tokenizer is made where texts are to be read.

    Raises InputError for prompts that cannot be read or are longer than the model's context.
    """
    deployment = run.deployment
    prompts = deployment.prompts
    texts = token_ids(prompts, vocabulary=deployment.model.vocabulary, tokenizer=tokenizer)
    longest = max(map(len, texts)) + prompts.output_tokens
    if deployment.model.context and longest > deployment.model.context:
        text = (
            f"a prompt of {longest - prompts.output_tokens} tokens and {prompts.output_tokens} "
            f"more are beyond the model's context of {deployment.model.context}"
        )
        raise InputError("prompts", [Fault("prompts", text)])
    arrivals = arrival_times(deployment.arrival, prompts.count, seed=run.seed)
    return [
        Request(
            number=number,
            prompt=number % len(texts),
            tokens=texts[number % len(texts)],
            output_tokens=prompts.output_tokens,
            arrival_s=float(arrivals[number]),
        )
        for number in range(prompts.count)
    ]


def arrival_times(arrival: Arrival, count: int, *, seed: int) -> NDArray[np.float64]:
    """When each of `count` requests comes, in seconds after the first one could.

    Of a Poisson process the gaps are exponential with mean 1 / rate, and so is the first wait;
    at a fixed rate the first request comes at once.
    """
    if arrival.kind == "batch":
        return np.zeros(count)
    assert arrival.rate is not None
    if arrival.kind == "fixed":
        return np.arange(count) / arrival.rate
    chance = np.random.default_rng([seed, 0xA221])
    return np.cumsum(chance.exponential(1.0 / arrival.rate, count))


def token_ids(
    prompts: Prompts, *, vocabulary: int, tokenizer: Callable[[], Tokenizer]
) -> list[list[int]]:
    """The different prompts, at most `prompts.count`; fewer where the file has no more."""
    if prompts.kind == "synthetic":
        assert prompts.input_tokens is not None
        chance = np.random.default_rng([prompts.seed, 0x5E2])
        ids = chance.integers(vocabulary, size=(prompts.count, prompts.input_tokens))
        return [[int(i) for i in row] for row in ids]
    where = prompts.path or prompts.name or ""
    source = f"prompts {where}"
    if prompts.kind == "jsonl":
        items = read_jsonl(Path(where), prompts.field or "text")
    elif prompts.kind == "builtin":
        items = read_jsonl(BUILTIN / f"{where}.jsonl", prompts.field or "text")
    else:
        items = read_dataset(Path(where), prompts.field or "text")
    found: list[list[int]] = []
    made: Tokenizer | None = None
    for item in islice(items, prompts.count):
        if isinstance(item, str):
            made = made or tokenizer()
            ids_of = made.encode(item)
        else:
            ids_of = _checked(item, vocabulary, source=source, number=len(found))
        if not ids_of:
            raise InputError(source, [f"prompt {len(found)} is empty"])
        # Synthetic lengths of real texts: so many tokens, the text again where it is shorter.
        length = prompts.input_tokens
        found.append(list(islice(cycle(ids_of), length)) if length else ids_of)
    if not found:
        raise InputError(source, ["there are no prompts in it"])
    return found


def read_jsonl(path: Path, field: str) -> Iterator[str | list[int]]:
    """The `field` of each line's object: a text, or a list of token ids. Raises InputError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _of_line(line, field, place=f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(str(path), [f"cannot be read: {reason}"]) from None


def _of_line(line: str, field: str, *, place: str) -> str | list[int]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(place, [f"no JSON: {error}"]) from None
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or field not in value:
        known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise InputError(place, [Fault(field, "is not there", f"there are: {known}")])
    return _text_or_ids(value[field], place=f"{place}, {field}")


def read_dataset(path: Path, field: str) -> Iterator[str | list[int]]:
    """The `field` of each row of a data set that Hugging Face's `save_to_disk` wrote.

    Raises InputError, UnavailableError without pyarrow.
    """
    from llem.data.documents import column_of

    number = 0
    for file in saved_dataset(path).files:
        for value in column_of(str(file), field):
            yield _text_or_ids(value, place=f"{path}, row {number}, {field}")
            number += 1


def _text_or_ids(value: Any, *, place: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(i) is int for i in value):
        return value
    raise InputError(place, ["is neither a text nor a list of token ids"])


def _checked(ids: list[int], vocabulary: int, *, source: str, number: int) -> list[int]:
    outside = [i for i in ids if not 0 <= i < vocabulary]
    if outside:
        text = f"prompt {number}: token {outside[0]} is outside the vocabulary of {vocabulary}"
        raise InputError(source, [text])
    return ids
