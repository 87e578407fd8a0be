"""What `llem data prepare` says of a token file: the sidecar `de.bin.json`, and the index `de.idx`.

The sidecar holds nothing of when, where or by how many processes the file was made: the same
sources give the same sidecar, to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign.data.tokendata import TokenData
from llem.campaign.data.tokenfile import ITEM_BYTES, fingerprint
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATA_SCHEMA = "llem-data-1"
# How many ids a file of the tokenizer `bytes` may hold: one for each byte.
BYTES = "bytes"


@dataclass(frozen=True, kw_only=True)
class TokenizerName:
    """Which ids a file holds. `sha256` is the tokenizer file's, empty for `bytes`.

    Each document ends in the id `end`, whose text is `end_token`.
    """

    name: str
    sha256: str
    end: int
    end_token: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that documents came from, or all `files` of a place, with the size on disk."""

    path: str
    format: str
    files: int
    bytes: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A token file, as it was prepared.

    Counts of documents and tokens are of the whole file, `evaluation_*` of its held-out end, whose
    documents have no copy before it; an end-of-document id is a token of its document. Of
    documents with the same content `unique_*` count one; `training_unique_tokens` are those that
    are not held out. `skipped` counts documents left out, by reason; `text_bytes` is the UTF-8
    text of all others. `sha256` is of the token file, `index_sha256` of its index.
    """

    dtype: str
    vocabulary: int
    tokens: int
    documents: int
    evaluation_tokens: int
    evaluation_documents: int
    unique_tokens: int
    unique_documents: int
    training_unique_tokens: int
    text_bytes: int
    fingerprint: str
    sha256: str
    index_sha256: str
    tokenizer: TokenizerName
    text_key: str
    document_separator: str | None
    sources: tuple[Source, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def training_tokens(self) -> int:
        return self.tokens - self.evaluation_tokens

    def token_data(self, path: str | Path) -> TokenData:
        """The file as runs know it."""
        return TokenData(
            path=str(path),
            dtype=self.dtype,
            tokens=self.tokens,
            evaluation_tokens=self.evaluation_tokens,
            fingerprint=self.fingerprint,
        )

    def to_dict(self) -> dict[str, Any]:
        """The sidecar's content."""
        plain = {name: getattr(self, name) for name in (f.name for f in fields(self))}
        return {
            "schema": DATA_SCHEMA,
            **plain,
            "tokenizer": dict(vars(self.tokenizer)),
            "sources": [dict(vars(source)) for source in self.sources],
            "skipped": dict(self.skipped),
        }

    def to_text(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"


def sidecar_of(path: str | Path) -> Path:
    """`de.bin` -> `de.bin.json`."""
    return Path(f"{path}.json")


def index_of(path: str | Path) -> Path:
    """`de.bin` -> `de.idx`; where documents begin, and where the last one ends: int64."""
    return Path(path).with_suffix(".idx")


def read_prepared(path: str | Path) -> Prepared | None:
    """What the sidecar of the token file `path` says; None where there is none.

    Raises InputError where the sidecar cannot be read, or the file is not the one that it is of.
    """
    sidecar = sidecar_of(path)
    try:
        values = json.loads(sidecar.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(str(sidecar), [f"cannot be read: {error}"]) from None
    if not isinstance(values, dict) or values.get("schema") != DATA_SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise InputError(str(sidecar), [Fault("schema", f"is {found!r}, not {DATA_SCHEMA}")])
    try:
        known = {k: v for k, v in values.items() if k != "schema"}
        known["tokenizer"] = TokenizerName(**known["tokenizer"])
        known["sources"] = tuple(Source(**source) for source in known["sources"])
        prepared = Prepared(**known)
    except (KeyError, TypeError) as error:
        raise InputError(str(sidecar), [f"is no sidecar of a token file: {error}"]) from None
    _check_file(Path(path), prepared)
    return prepared


def _check_file(path: Path, prepared: Prepared) -> None:
    changed = f"is not the file that {sidecar_of(path).name} describes"
    hint = "it changed after `llem data prepare`: prepare it again, or delete the sidecar"
    try:
        size, expected = path.stat().st_size, prepared.tokens * ITEM_BYTES[prepared.dtype]
        if size != expected:
            raise InputError(
                str(path), [Fault("", f"{changed}: {size} bytes, not {expected}", hint)]
            )
        if (found := fingerprint(path)) != prepared.fingerprint:
            text = f"{changed}: its content is {found}, not {prepared.fingerprint}"
            raise InputError(str(path), [Fault("", text, hint)])
    except OSError as error:
        raise InputError(str(path), [f"cannot be read: {error.strerror or error}"]) from None


def read_index(path: str | Path, *, tokens: int) -> NDArray[np.int64]:
    """The memory-mapped index of the token file `path`, of shape (documents + 1,).

    Document i is tokens [index[i], index[i + 1]). Raises InputError where it is absent, or is not
    of a file of so many tokens.
    """
    import numpy as np

    index = index_of(path)
    try:
        found: NDArray[np.int64] = np.memmap(index, dtype="<i8", mode="r")
    except (OSError, ValueError) as error:
        text = f"the index of its documents cannot be read: {error}"
        hint = "`llem data prepare` writes it; `packing: stream` needs none"
        raise InputError(str(path), [Fault(index.name, text, hint)]) from None
    if len(found) < 2 or found[0] != 0 or found[-1] != tokens or (np.diff(found) < 1).any():
        raise InputError(str(index), [f"is not the index of a file of {tokens} tokens"])
    return found
