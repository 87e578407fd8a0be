"""The tokenizer of a model: the one that lies beside its weights, or bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llem.campaign import ServedModel
from llem.errors import InputError, UnavailableError
from llem.serving.requests import Bytes, Tokenizer


def tokenizer_of(model: ServedModel) -> Tokenizer:
    """Raises InputError where its files cannot be read, UnavailableError without transformers."""
    folder = Path(model.path) if model.path else None
    if folder is not None and any(folder.glob("tokenizer*")):
        return _OfFolder(folder)
    return Bytes(model.vocabulary)


class _OfFolder:
    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise UnavailableError(
                f"the tokenizer in {folder} needs transformers", remedy="pip install 'llem[serve]'"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (ValueError, OSError, ImportError, KeyError, TypeError) as error:
            said = " ".join(str(error).split())[:500]
            raise InputError(str(folder), [f"its tokenizer cannot be read: {said}"]) from error
        self.name = type(self._tokenizer).__name__

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


def texts_of(model: ServedModel) -> Callable[[Sequence[int]], str]:
    """What token ids say, of this model; without a tokenizer, their bytes as characters. Raises as
    `tokenizer_of`."""
    tokenizer = tokenizer_of(model)
    if isinstance(tokenizer, _OfFolder):
        return tokenizer.decode
    return lambda tokens: bytes(i % 256 for i in tokens).decode("latin-1")
