"""The same few documents in every format that is read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from llem.campaign.data.prepared import read_index, read_prepared

WORDS = ("Straße", "Wälder", "a word", "new\nline", "日本", "🙂", "<|endoftext|>", "", "tab\t")


def documents(count: int = 60, *, seed: int = 0) -> list[str]:
    """Documents of some words each, all different."""
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for i in range(count)]


def json_lines(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    """JSON Lines, compressed as the name says."""
    content = json_lines(texts)
    match path.suffix:
        case ".gz":
            content = gzip.compress(content)
        case ".bz2":
            content = bz2.compress(content)
        case ".xz":
            content = lzma.compress(content)
        case ".zst":
            import pyarrow

            content = pyarrow.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


def write_parquet(path: Path, texts: Sequence[str | None], *, key: str = "text") -> Path:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({key: pyarrow.array(texts, pyarrow.string()), "n": range(len(texts))})
    parquet.write_table(table, path, row_group_size=7)
    return path


def write_saved(folder: Path, texts: Sequence[str], *, shards: int = 2) -> Path:
    """A folder as `datasets` writes it by `save_to_disk`."""
    import pyarrow

    folder.mkdir(parents=True)
    names = []
    for shard in range(shards):
        names.append(f"data-{shard:05d}-of-{shards:05d}.arrow")
        part = texts[len(texts) * shard // shards : len(texts) * (shard + 1) // shards]
        table = pyarrow.table({"text": pyarrow.array(part, pyarrow.string())})
        with (
            pyarrow.OSFile(str(folder / names[-1]), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=5)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def held(path: Path) -> tuple[list[bytes], list[bytes]]:
    """The documents of a prepared file of bytes, without their ends: trained on, held out."""
    prepared = read_prepared(path)
    assert prepared is not None
    ids = np.fromfile(path, dtype=f"<u{np.dtype(prepared.dtype).itemsize}")
    edges = read_index(path, tokens=prepared.tokens)
    found = [ids[a:b] for a, b in pairwise(edges)]
    assert all(document[-1] == prepared.tokenizer.end for document in found)
    texts = [document[:-1].astype(np.uint8).tobytes() for document in found]
    count = prepared.documents - prepared.evaluation_documents
    assert edges[count] == prepared.training_tokens
    return texts[:count], texts[count:]


def all_held(path: Path) -> list[bytes]:
    """All documents of a prepared file of bytes."""
    trained, held_out = held(path)
    return trained + held_out
