"""The campaign's data as files of tokens: what is read, how much is held out, which ids it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llem.campaign import TokenData, mixture_of
from llem.campaign.data.prepared import Prepared, read_index, read_prepared
from llem.campaign.data.tokendata import DOCUMENTS
from llem.campaign.data.tokenfile import token_file
from llem.errors import Fault, InputError
from llem.planning import write_python_sources

if TYPE_CHECKING:
    from llem.campaign import Campaign
    from llem.campaign.campaign import DataChoice, DataFile

DEFAULT_EVALUATION_TOKENS = 10_000_000
# Without a word from the user a twentieth of the text is held out, at most ten million tokens.
EVALUATION_SHARE = 0.05

T = TypeVar("T")


def resolve_data(campaign: Campaign, root: Path, *, base: Path) -> tuple[TokenData, Campaign]:
    """The campaign's data, and the campaign with the vocabulary of what was prepared.

    Of a file that `llem data prepare` made, type, held-out tokens and vocabulary are its sidecar's;
    any other is read as the campaign says, a text as bytes. The built-in text is written into the
    campaign folder `root` and named relative to it, so that every rank finds it; the user's own
    files are named by their absolute paths, relative ones starting from `base`. Raises InputError
    with all that does not fit.
    """
    choice, model = campaign.data, campaign.model
    given = "vocabulary" in model.model_fields_set
    asked = _asked(choice, root)
    faults: list[Fault] = []
    found = [_file(one, model.vocabulary, model.context, base, faults) for one in asked]
    known = [(one, file.prepared) for one, file in zip(asked, found, strict=True)
             if file is not None and file.prepared is not None]  # fmt: skip
    faults += _other_tokenizers(known)
    vocabulary = max((prepared.vocabulary for _, prepared in known), default=0)
    if given and vocabulary > model.vocabulary:
        text = f"{model.vocabulary} is less than the {vocabulary} ids of the data"
        hint = "leave it out, and it is the data's"
        faults.append(Fault("model.vocabulary", text, hint))
    data: TokenData | None = None
    files = [file.data for file in found if file is not None]
    if choice.mixture and len(files) == len(asked):
        weights = [one.weight for one in choice.mixture]
        try:
            data = mixture_of(zip(files, weights, strict=True))
        except ValueError as error:
            faults.append(Fault("data.mixture", str(error)))
    elif files:
        data = files[0]
    if faults or data is None:
        raise InputError("campaign", faults)
    if vocabulary and not given:
        # Validated as a whole before: a number of ids is a number of ids.
        model = model.model_copy(update={"vocabulary": vocabulary})
        campaign = campaign.model_copy(update={"model": model})
    return data, campaign


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A file as the campaign names it; `key` is where its keys stand."""

    key: str
    file: DataFile
    path: Path
    named: str | None
    packing: str


@dataclass(frozen=True)
class _Found:
    data: TokenData
    prepared: Prepared | None


def _asked(choice: DataChoice, root: Path) -> list[_Asked]:
    if choice.mixture:
        return [
            _Asked(key=f"data.mixture.{i}", file=one, path=Path(one.path or ""), named=None,
                   packing=choice.packing)
            for i, one in enumerate(choice.mixture)
        ]  # fmt: skip
    if choice.path:
        return [_Asked(key="data", file=choice, path=Path(choice.path), named=None,
                       packing=choice.packing)]  # fmt: skip
    path = write_python_sources(root / "data" / "python-sources.bin").resolve()
    return [_Asked(key="data", file=choice, path=path, named="data/python-sources.bin",
                   packing=choice.packing)]  # fmt: skip


def _file(
    asked: _Asked, vocabulary: int, context: int, base: Path, faults: list[Fault]
) -> _Found | None:
    """The file, or None with what is wrong added to `faults`."""
    path = (base / asked.path.expanduser()).resolve()
    prepared = _tried(asked.key, lambda: read_prepared(path), faults)
    if prepared is not None:
        return _described(asked, path, prepared, faults)
    if any(fault.path == asked.key for fault in faults):
        return None
    choice = asked.file
    dtype = choice.dtype or ("uint8" if vocabulary <= 256 else "uint16")
    wanted = choice.evaluation_tokens
    data = _tried(
        asked.key, lambda: token_file(path, dtype=dtype, evaluation_tokens=wanted or 1), faults
    )
    if data is None:
        return None
    if wanted is None:
        held_out = min(DEFAULT_EVALUATION_TOKENS, int(EVALUATION_SHARE * data.tokens))
        data = replace(data, evaluation_tokens=max(held_out, context))
    named = replace(data, path=asked.named or str(path))
    return _packed(asked, path, _Found(named, None), faults)


def _described(asked: _Asked, path: Path, prepared: Prepared, faults: list[Fault]) -> _Found | None:
    """A prepared file; what the campaign says of it must be what its sidecar says."""
    for name in ("dtype", "evaluation_tokens"):
        given, is_so = getattr(asked.file, name), getattr(prepared, name)
        if given is not None and given != is_so:
            text = f"{given} is given, {path.name} was prepared with {is_so}"
            faults.append(Fault(f"{asked.key}.{name}", text, "leave it out, or prepare again"))
    return _packed(asked, path, _Found(prepared.token_data(path), prepared), faults)


def _packed(asked: _Asked, path: Path, found: _Found, faults: list[Fault]) -> _Found | None:
    if asked.packing == DOCUMENTS:
        tokens = found.data.tokens
        if _tried("data.packing", lambda: read_index(path, tokens=tokens), faults) is None:
            return None
    return replace(found, data=replace(found.data, packing=asked.packing))


def _other_tokenizers(known: list[tuple[_Asked, Prepared]]) -> list[Fault]:
    """Files of a mixture whose ids mean something else than the first one's."""
    faults = []
    for asked, prepared in known[1:]:
        first = known[0][1].tokenizer
        if prepared.tokenizer != first:
            text = f"its tokenizer is {_told(prepared)}, that of the first {_told(known[0][1])}"
            faults.append(Fault(f"{asked.key}.path", text, "prepare both with the same file"))
    return faults


def _told(prepared: Prepared) -> str:
    name = prepared.tokenizer
    return f"{name.name} ({name.sha256[:8]})" if name.sha256 else name.name


def _tried(key: str, call: Callable[[], T], faults: list[Fault]) -> T | None:
    try:
        return call()
    except InputError as error:
        faults += [Fault(key, f"{error.source}: {fault}") for fault in error.faults]
        return None
