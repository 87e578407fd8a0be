"""Random weights of large models, drawn in a fraction of the time.

A tensor of billions of normal numbers takes a core many seconds, once for torch's own module and
once more for the model's. What a served model's forward pass takes does not hang on which numbers
they are: so a large tensor repeats one block of them, scaled as was asked for. The block's length
is a prime, which no row's length divides: no two rows of a matrix are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# 4 MiB of fp32. Tensors of no more numbers are drawn as ever.
BLOCK = 1_048_583


@contextmanager
def repeated_weights() -> Iterator[None]:
    """Within it, torch's `normal_` and `uniform_` of large tensors repeat a block of torch's seed.

    Mean and standard deviation, or limits, are those asked for; the same seed gives the same
    numbers. Only tensors of fp32 on the CPU that lie in one piece are filled so.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    blocks: dict[Any, torch.Tensor] = {}

    class Repeated(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            kwargs = kwargs or {}
            known = func in (aten.normal_.default, aten.uniform_.default)
            if not known or kwargs.get("generator") is not None or not _large(args[0]):
                return func(*args, **kwargs)
            # Of `normal_` mean and standard deviation, of `uniform_` the two limits.
            normal = func is aten.normal_.default
            names = ("mean", "std") if normal else ("from", "to")
            given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
            first, second = (float(given.get(n, d)) for n, d in zip(names, (0, 1), strict=True))
            if func not in blocks:
                blocks[func] = func(torch.empty(BLOCK))
            scale = second if normal else second - first
            return _fill(args[0], blocks[func], scale=scale, shift=first)

    def _large(tensor: torch.Tensor) -> bool:
        plain = tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        return bool(plain and tensor.is_contiguous() and tensor.numel() > BLOCK)

    def _fill(
        tensor: torch.Tensor, block: torch.Tensor, *, scale: float, shift: float
    ) -> torch.Tensor:
        flat = tensor.view(-1)
        # Each tensor begins elsewhere in the block.
        begin = int(torch.randint(BLOCK, ()).item())
        done = 0
        while done < flat.numel():
            part = block[begin : begin + flat.numel() - done]
            into = flat[done : done + part.numel()]
            torch.mul(part, scale, out=into)
            if shift:
                into += shift
            done, begin = done + part.numel(), 0
        return tensor

    with Repeated():
        yield
