"""Token files: raw little-endian ids without a header, and how their content is identified.

A text file read as bytes is a token file too (dtype uint8, vocabulary 256).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign.data.tokendata import TokenData
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Bytes of one id, by the name that the campaign file uses; on disk always little-endian.
ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4}

_BLOCK_BYTES = 1 << 20
_BLOCKS = 64


def token_file(path: str | Path, *, dtype: str = "uint8", evaluation_tokens: int) -> TokenData:
    """Describe the token file at `path`, of which the last `evaluation_tokens` are held out.

    Raises InputError where the file is absent, is no whole number of tokens, or is too short.
    """
    path = Path(path)
    if dtype not in ITEM_BYTES:
        raise InputError(
            str(path), [Fault("dtype", f"{dtype!r} is none of {', '.join(ITEM_BYTES)}")]
        )
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(str(path), ["not a regular file"])
        digest = fingerprint(path)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        hint = "`llem data prepare TEXT --out FILE` makes one of your text" if absent else None
        fault = Fault("", f"cannot be read: {error.strerror or error}", hint)
        raise InputError(str(path), [fault]) from None
    tokens, rest = divmod(size, ITEM_BYTES[dtype])
    if rest:
        raise InputError(str(path), [f"{size} bytes are no whole number of {dtype} tokens"])
    if not 0 < evaluation_tokens < tokens:
        raise InputError(
            str(path),
            [
                Fault(
                    "evaluation_tokens",
                    f"{evaluation_tokens} of the file's {tokens} tokens cannot be held out",
                    "hold out more than none and fewer than all",
                )
            ],
        )
    return TokenData(
        path=str(path),
        dtype=dtype,
        tokens=tokens,
        evaluation_tokens=evaluation_tokens,
        fingerprint=digest,
    )


def fingerprint(path: str | Path) -> str:
    """32 hex digits of a blake2b over the size and up to 64 evenly spaced blocks of 1 MiB.

    A file of at most 64 MiB is read whole; of a larger one the first and the last block are
    among those read. Takes under a second whatever the size.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        blocks = -(-size // _BLOCK_BYTES)
        if blocks <= _BLOCKS:
            offsets = [i * _BLOCK_BYTES for i in range(blocks)]
        else:
            offsets = [i * (size - _BLOCK_BYTES) // (_BLOCKS - 1) for i in range(_BLOCKS)]
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def write_tokens(
    path: str | Path,
    tokens: NDArray[np.integer[Any]] | bytes | Iterable[NDArray[np.integer[Any]] | bytes],
    *,
    dtype: str = "uint8",
) -> int:
    """Write ids (one array, bytes, or a stream of either) as a token file; returns their number.

    The file appears whole or not at all. Raises InputError for an id that `dtype` cannot hold.
    """
    import numpy as np

    if dtype not in ITEM_BYTES:
        raise InputError(
            str(path), [Fault("dtype", f"{dtype!r} is none of {', '.join(ITEM_BYTES)}")]
        )
    path = Path(path)
    on_disk = np.dtype(dtype).newbyteorder("<")
    stream: Iterable[Any] = [tokens] if isinstance(tokens, (bytes, np.ndarray)) else tokens
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = 0
    try:
        with open(temporary, "wb") as file:
            for part in stream:
                ids = np.frombuffer(part, dtype=np.uint8) if isinstance(part, bytes) else part
                if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(dtype).max):
                    raise InputError(
                        str(path), [f"an id in {ids.min()}..{ids.max()} does not fit in {dtype}"]
                    )
                file.write(ids.astype(on_disk).tobytes())
                written += int(ids.size)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written
