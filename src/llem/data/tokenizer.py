"""From text to ids: bytes, or the file of a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llem.campaign.data.prepared import BYTES, TokenizerName
from llem.errors import Fault, InputError, UnavailableError, did_you_mean

# A byte that no text in UTF-8 holds, so that it marks an end and nothing else, and bytes stay a
# vocabulary of 256. NUL, the other candidate, is a character of Unicode.
END_BYTE = 0xFF
# What tokenizers call the end of a document.
END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<eod>",
    "<｜end▁of▁sentence｜>",
)
_PARALLEL = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Encoded:
    """Documents one after the other: ids as they stand in the file, and the tokens of each."""

    ids: bytes
    lengths: Sequence[int]


class Encoder(Protocol):
    """Turns documents into ids, each with the end-of-document id behind it."""

    def encode(self, documents: Sequence[bytes]) -> Encoded:
        """The ids of documents in UTF-8."""


@dataclass(frozen=True)
class Tokenizer:
    """What is known of a tokenizer before a word is read; `path` is empty for bytes.

    It travels to worker processes, where `encoder` makes what does the work.
    """

    name: TokenizerName
    vocabulary: int
    path: str

    def encoder(self, dtype: str) -> Encoder:
        """What encodes into ids of `dtype`."""
        if not self.path:
            return _Bytes(dtype)
        return _FromFile(self, dtype)


def load_tokenizer(named: str | Path, *, end_token: str | None = None) -> Tokenizer:
    """`bytes`, or a tokenizer's file (`tokenizer.json`), or the folder that it lies in.

    `end_token` ends documents; left out it is the one that the file has of those usual names.
    Raises InputError where the file cannot be read or tells of no end, UnavailableError without
    the `tokenizers` library.
    """
    if str(named) == BYTES:
        if end_token is not None:
            raise InputError(
                "the tokenizer", [Fault("end_token", "bytes end a document by the byte 255")]
            )
        name = TokenizerName(name=BYTES, sha256="", end=END_BYTE, end_token="\\xff")
        return Tokenizer(name, 256, "")
    path = Path(named)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    ids = _open(path).get_vocab(with_added_tokens=True)
    if not ids:
        raise InputError(str(path), ["has no vocabulary"])
    end = _end_of(path, content, ids, end_token)
    digest = hashlib.sha256(content).hexdigest()
    name = TokenizerName(name=_called(path), sha256=digest, end=ids[end], end_token=end)
    return Tokenizer(name, max(ids.values()) + 1, str(path.resolve()))


def _called(path: Path) -> str:
    """A name that says which: that of its folder, where the file is called as all are."""
    return path.resolve().parent.name if path.name == "tokenizer.json" else path.stem


def _open(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise UnavailableError(
            f"{path}: a tokenizer's file needs the package tokenizers, which is not installed",
            remedy="pip install 'llem[data]'; `--tokenizer bytes` needs nothing",
        ) from None
    try:
        return Library.from_file(str(path))
    except Exception as error:  # The library raises nothing more exact.
        raise InputError(str(path), [f"is no tokenizer's file: {error}"]) from None


def _end_of(path: Path, content: bytes, ids: dict[str, int], end_token: str | None) -> str:
    if end_token is not None:
        if end_token in ids:
            return end_token
        near = did_you_mean(end_token, _special(content) or list(ids))
        raise InputError(str(path), [Fault("end_token", f"it has no token {end_token!r}", near)])
    known = [token for token in END_TOKENS if token in ids]
    if len(known) == 1:
        return known[0]
    special = ", ".join(_special(content)) or "none"
    said = f"it has several that end a document: {', '.join(known)}" if known else (
        f"no token of it is known to end a document; its special tokens are {special}"
    )  # fmt: skip
    raise InputError(str(path), [Fault("end_token", said, "name the one that does")])


def _special(content: bytes) -> list[str]:
    added = json.loads(content).get("added_tokens") or []
    return [str(token["content"]) for token in added if token.get("special")]


class _Bytes:
    """UTF-8 as it is, and the byte 255."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def encode(self, documents: Sequence[bytes]) -> Encoded:
        end = bytes([END_BYTE])
        ids = end.join(documents) + end if documents else b""
        if self._dtype != "uint8":
            import numpy as np

            wide = np.dtype(self._dtype).newbyteorder("<")
            ids = np.frombuffer(ids, dtype=np.uint8).astype(wide).tobytes()
        return Encoded(ids, [len(document) + 1 for document in documents])


class _FromFile:
    """A tokenizer's file, on one thread: processes are what work side by side."""

    def __init__(self, tokenizer: Tokenizer, dtype: str) -> None:
        import numpy as np

        self._end = tokenizer.name.end
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._library = _open(Path(tokenizer.path))
        # What a training set to suit itself would cut or fill documents.
        self._library.no_truncation()
        self._library.no_padding()
        # A text that spells a special token is text, and ends no document.
        self._library.encode_special_tokens = True
        # Without the place of each token in the text, where the library can leave that out.
        self._many = getattr(self._library, "encode_batch_fast", self._library.encode_batch)

    def encode(self, documents: Sequence[bytes]) -> Encoded:
        import numpy as np

        texts = [document.decode() for document in documents]
        with _one_thread():
            found = self._many(texts, add_special_tokens=False)
        parts = []
        for encoding in found:
            ids = encoding.ids
            ids.append(self._end)
            parts.append(np.array(ids, dtype=self._dtype))
        joined = np.concatenate(parts).tobytes() if parts else b""
        return Encoded(joined, [len(part) for part in parts])


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before
