"""What a data set's batches are made of: tensors, in tuples, lists and mappings of any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Names under which a mapping holds what is to be predicted.
TARGETS = ("labels", "label", "targets", "target", "y")


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The same batch with every tensor changed; what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(change, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(change, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(change, value) for value in batch)
    return batch


def tensors_of(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its place, such as `[0]` or `.labels`, in a fixed order."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_of(value, f"{name}.{key}")
    elif isinstance(batch, (tuple, list)):
        for index, value in enumerate(batch):
            yield from tensors_of(value, f"{name}[{index}]")


def shapes_of(batch: Any) -> str:
    """The tensors of a batch in words: `[0] float32 (2, 64), [1] int64 (2)`."""
    words = [
        f"{name} {str(t.dtype).removeprefix('torch.')} ({', '.join(map(str, t.shape))})".strip()
        for name, t in tensors_of(batch)
    ]
    return ", ".join(words) or f"no tensor, but {type(batch).__name__}"


def split_target(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional and keyword arguments of the model, and the target. Raises ValueError.

    Of a tuple the last part is the target; of a mapping what is called so (TARGETS).
    """
    if isinstance(batch, Mapping):
        key = next((k for k in TARGETS if k in batch), None)
        if key is None:
            raise ValueError(
                f"a batch of {', '.join(map(str, batch))} has no {' or '.join(TARGETS)}"
            )
        return (), {k: v for k, v in batch.items() if k != key}, batch[key]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    raise ValueError(f"a batch of {shapes_of(batch)} has no target: (input, target) is expected")


def tokens_each(batch: Any) -> tuple[int, str]:
    """How many tokens a sample of the batch has (0: it has none), and why not where it might.

    Tokens are integers of shape (samples, tokens): `input_ids` of a mapping, or the inputs and
    targets of a pair, alike in shape.
    """
    ids: Any = None
    if isinstance(batch, Mapping):
        ids = batch.get("input_ids")
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.device.type != "meta" and bool((mask == 0).any()):
            return 0, "samples are padded: D counts samples, not tokens"
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        first, second = batch
        if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
            ids = first if _integers(second) else None
    if isinstance(ids, Tensor) and ids.ndim == 2 and _integers(ids):
        return int(ids.shape[1]), ""
    return 0, ""


def next_token_pair(batch: Any) -> bool:
    """Whether a batch is (inputs, targets) of token ids alike in shape."""
    return isinstance(batch, (tuple, list)) and tokens_each(batch)[0] > 0


def samples_in(batch: Any) -> int:
    """The first dimension of its first tensor."""
    return next((int(t.shape[0]) for _, t in tensors_of(batch) if t.ndim), 0)


def _integers(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
