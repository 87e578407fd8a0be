"""Corpora of every format, where pyarrow is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed (llem[data])")


@pytest.fixture
def train_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """A byte-level BPE trained on the spot; its file, with the special tokens given."""
    tokenizers = pytest.importorskip(
        "tokenizers", reason="tokenizers is not installed (llem[data])"
    )

    def train(texts: list[str], *special: str, size: int = 300, name: str = "bpe.json") -> Path:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
        # Settings of a training that would cut and fill documents.
        made.enable_truncation(8)
        made.enable_padding(length=8)
        made.save(str(tmp_path / name))
        return tmp_path / name

    return train
