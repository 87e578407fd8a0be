"""Any data set as samples that are read by number.

Map-style data sets, a DataLoader (its data set, `collate_fn` and batch size), tensors or arrays of
equal length in a tuple or a mapping, a 1-D array of token ids cut into windows, and anything that
can only be iterated, which is read once into plain arrays on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from llem.errors import Fault, InputError
from llem.training.samples.batches import map_tensors, tensors_of

# Every sample is read for the fingerprint of a small data set, so many of a larger one.
MOST_READ = 1024
READ_AT_ONCE = 64
MAX_SAMPLES = 1_000_000
SPOOL_SCHEMA = "llem-samples-1"

Fetch = Callable[[Sequence[int]], Any]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """`size` samples; `fetch(indices)` is a batch of them, on the CPU.

    `batch_size` is what a DataLoader had. `ordered`: neighbours are of one text, so that the end is
    held out. `folder` holds them as plain arrays where they are on disk. `notes` say what a user
    should know of how they are read.
    """

    name: str
    size: int
    fetch: Fetch
    batch_size: int | None = None
    ordered: bool = False
    folder: Path | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def seeded(self, indices: Sequence[int], seeds: Sequence[int]) -> Any:
        """The batch with the generators set anew before each sample, whatever their order."""
        parts = []
        for index, seed in zip(indices, seeds, strict=True):
            seed_all(seed)
            parts.append(self.fetch([index]))
        return _joined(parts)

    @cached_property
    def draws(self) -> bool:
        """Whether a sample differs from one reading to the next: it draws random numbers."""
        for index in sorted({0, self.size // 2, self.size - 1}):
            with generators_kept():
                seed_all(1)
                first = self.fetch([index])
                seed_all(2)
                if digest_of([first]) != digest_of([self.fetch([index])]):
                    return True
        return False

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of the number of samples and the content of all, or of MOST_READ of them.

        Raises InputError where a sample is another one at each reading, however it is seeded.
        """
        whole = self.size <= 4 * MOST_READ
        count = self.size if whole else MOST_READ
        chosen = [i * (self.size - 1) // max(1, count - 1) for i in range(count)]
        read = self._seeded_by_index if self.draws else self.fetch
        if self.draws and digest_of([read(chosen[:2])]) != digest_of([read(chosen[:2])]):
            text = "a sample is not the same when it is read twice with the same seed"
            hint = "draw from the generators of torch, numpy or random, which llem seeds"
            raise InputError("find_optimal", [Fault("dataset", text, hint)])
        parts = (read(chosen[i : i + READ_AT_ONCE]) for i in range(0, count, READ_AT_ONCE))
        digest = hashlib.blake2b(str(self.size).encode(), digest_size=16)
        for part in parts:
            digest.update(digest_of([part]).encode())
        return digest.hexdigest()

    def _seeded_by_index(self, indices: Sequence[int]) -> Any:
        with generators_kept():
            return self.seeded(indices, indices)


def open_samples(
    dataset: Any,
    *,
    key: str = "dataset",
    context: int | None = None,
    spool: Path | None = None,
    max_samples: int = MAX_SAMPLES,
    once: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Samples:
    """The samples of what a user gave; a function is called for it first.

    `context` cuts an array of token ids. `spool` is the folder that what can only be iterated is
    written to, by the one process that `once` chooses. Raises InputError.
    """
    if isinstance(dataset, str):
        dataset = _named(dataset, key)
    if isinstance(dataset, Path):
        return _from_folder(dataset, key)
    if callable(dataset) and not _is_data(dataset):
        try:
            dataset = dataset()
        except TypeError as error:
            text = f"{_name(dataset)} could not be called without arguments: {error}"
            raise _fault(key, text, "give a function of no arguments, or a data set") from None
    batch_size, collate = None, default_collate
    name = _name(dataset)
    if isinstance(dataset, DataLoader):
        batch_size, collate, dataset = _unwrapped(dataset, key)
        name = _name(dataset)
    tokens = _token_array(dataset)
    if tokens is not None:
        return _windows(tokens, context, key)
    plain = collate is default_collate
    if plain and (tensors := _equal_tensors(dataset, key)) is not None:
        parts, size = tensors
        return Samples(name=name, size=size, fetch=_indexed(parts), batch_size=batch_size)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        if not isinstance(dataset, Iterable):
            raise _fault(key, f"{name} is no data set", _EXPECTED)
        if spool is None:
            text = f"{name} can only be iterated, and there is no folder to write it to"
            raise _fault(key, text, "give a data set with __getitem__ and __len__")
        note = once(lambda: write_samples(dataset, spool, key=key, max_samples=max_samples))
        read = _from_folder(spool, key, collate=collate)
        return Samples(
            name=name, size=read.size, fetch=read.fetch, batch_size=batch_size, folder=spool,
            notes=(note,),
        )  # fmt: skip
    if isinstance(dataset, Mapping):
        raise _fault(key, "its parts are not tensors of one length", _EXPECTED)
    try:
        size = len(dataset)
    except TypeError:
        raise _fault(key, f"{name} has no length", "give it a __len__") from None
    if size < 1:
        raise _fault(key, f"{name} is empty", "")
    return Samples(name=name, size=size, fetch=_by_item(dataset, collate), batch_size=batch_size)


_EXPECTED = "a Dataset, a DataLoader, tensors of one length, token ids, or a function of these"


def write_samples(data: Iterable[Any], folder: Path, *, key: str, max_samples: int) -> str:
    """Write samples as plain arrays, one file a tensor; what is there of the same content stays.

    Returns what a user should know of it. Raises InputError where samples differ in shape.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files: list[Any] = []
    spec, shapes, size, ended = None, [], 0, True
    try:
        for sample in data:
            if size == max_samples:
                ended = False
                break
            leaves = _leaves(sample, key)
            found = [(str(leaf.dtype), leaf.shape) for leaf in leaves]
            if spec is None:
                spec, shapes = _spec(sample, iter(range(len(leaves)))), found
                files = [open(temporary / f"{i}.bin", "wb") for i in range(len(leaves))]  # noqa: SIM115
            elif found != shapes:
                text = f"sample {size} is of {found}, the first of {shapes}"
                raise _fault(key, text, "make all samples of one shape, or give __getitem__")
            for file, leaf in zip(files, leaves, strict=True):
                file.write(np.ascontiguousarray(leaf).tobytes())
            size += 1
    finally:
        for file in files:
            file.close()
    if spec is None:
        shutil.rmtree(temporary)
        raise _fault(key, "it is empty: nothing came from iterating it", "")
    described = {
        "schema": SPOOL_SCHEMA,
        "size": size,
        "structure": spec,
        "arrays": [{"dtype": np.dtype(d).str, "shape": list(s)} for d, s in shapes],
    }
    (temporary / "samples.json").write_text(json.dumps(described) + "\n")
    if folder.is_dir() and _same(folder, temporary):
        shutil.rmtree(temporary)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    note = f"{size} samples were read once by iterating, and lie in {folder}"
    return note if ended else f"{note}: reading stopped at max_samples={max_samples}"


def _same(one: Path, other: Path) -> bool:
    import filecmp

    names = sorted(p.name for p in one.iterdir())
    return names == sorted(p.name for p in other.iterdir()) and not any(
        filecmp.cmpfiles(one, other, names, shallow=False)[1:]
    )


def _leaves(sample: Any, key: str) -> list[np.ndarray[Any, Any]]:
    found: list[np.ndarray[Any, Any]] = []

    def walk(part: Any) -> None:
        if isinstance(part, Mapping):
            for value in part.values():
                walk(value)
        elif isinstance(part, (tuple, list)):
            for value in part:
                walk(value)
        elif isinstance(part, Tensor):
            found.append(part.detach().cpu().numpy())
        elif isinstance(part, (np.ndarray, np.generic, int, float, bool)):
            array = np.asarray(part)
            found.append(array.astype(np.float32) if isinstance(part, float) else array)
        else:
            text = f"a sample holds {type(part).__name__}, which is no number and no array"
            raise _fault(key, text, "leave it out, or make numbers of it")

    walk(sample)
    return found


def _spec(sample: Any, numbers: Iterator[int]) -> Any:
    """Where the arrays stand in a sample, as JSON can hold it."""
    if isinstance(sample, Mapping):
        return {"map": {str(k): _spec(v, numbers) for k, v in sample.items()}}
    if isinstance(sample, (tuple, list)):
        return {"tuple": [_spec(v, numbers) for v in sample]}
    return next(numbers)


def _built(spec: Any, parts: Sequence[Any]) -> Any:
    if isinstance(spec, int):
        return parts[spec]
    if "map" in spec:
        return {k: _built(v, parts) for k, v in spec["map"].items()}
    return tuple(_built(v, parts) for v in spec["tuple"])


def _from_folder(folder: Path, key: str, *, collate: Callable[..., Any] | None = None) -> Samples:
    try:
        told = json.loads((folder / "samples.json").read_text())
        size = int(told["size"])
        arrays = [
            np.memmap(folder / f"{i}.bin", dtype=a["dtype"], mode="r", shape=(size, *a["shape"]))
            for i, a in enumerate(told["arrays"])
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{folder} is no folder of samples: {error}"
        raise _fault(key, text, "write 'package.module:name' for what is imported") from None

    def batch(indices: Sequence[int]) -> Any:
        chosen = np.asarray(indices)
        return _built(told["structure"], [torch.from_numpy(a[chosen]) for a in arrays])

    def collated(indices: Sequence[int]) -> Any:
        assert collate is not None
        return collate([map_tensors(lambda t: t[0], batch([i])) for i in indices])

    plain = collate is None or collate is default_collate
    return Samples(name=folder.name, size=size, fetch=batch if plain else collated, folder=folder)


def _named(name: str, key: str) -> Any:
    from llem.training.naming import load_object

    return load_object(name, key=key, what="a data set") if ":" in name else Path(name)


def _is_data(value: Any) -> bool:
    return isinstance(value, (Dataset, DataLoader, Mapping)) or hasattr(value, "__getitem__")


def _unwrapped(loader: DataLoader[Any], key: str) -> tuple[int, Callable[..., Any], Any]:
    if loader.batch_size is None:
        text = "its batch_size is None: what makes its batches cannot be told"
        raise _fault(key, text, "give the data set, or a DataLoader with a batch_size")
    sampler = getattr(loader, "sampler", None)
    iterable = isinstance(loader.dataset, IterableDataset)
    if not iterable and not isinstance(sampler, (RandomSampler, SequentialSampler)):
        text = f"its sampler ({type(sampler).__name__}) would not be used: llem orders samples"
        raise _fault(key, text, "give the data set that the sampler draws, e.g. a Subset")
    return loader.batch_size, loader.collate_fn, loader.dataset


def _token_array(dataset: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(dataset, Tensor) and dataset.ndim == 1 and not dataset.is_floating_point():
        return dataset.cpu().numpy()  # type: ignore[no-any-return]
    if isinstance(dataset, np.ndarray) and dataset.ndim == 1 and dataset.dtype.kind in "iu":
        return dataset
    return None


def _windows(tokens: np.ndarray[Any, Any], context: int | None, key: str) -> Samples:
    if context is None:
        text = f"an array of {len(tokens)} token ids needs a length to be cut to"
        raise InputError("find_optimal", [Fault("context", text, "give context=..., e.g. 128")])
    size = (len(tokens) - 1) // context
    if size < 2:
        text = f"{len(tokens)} token ids hold no two windows of {context}"
        raise _fault(key, text, "give more tokens or a shorter context")
    offsets = np.arange(context + 1)

    def fetch(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        starts = np.asarray(indices, dtype=np.int64) * context
        found = torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))
        return found[:, :-1], found[:, 1:]

    return Samples(name="tokens", size=size, fetch=fetch, ordered=True)


def _equal_tensors(dataset: Any, key: str) -> tuple[Any, int] | None:
    """Tensors of one length, as they stand in a tuple or mapping; None where it is none of it."""
    if isinstance(dataset, torch.utils.data.TensorDataset):
        dataset = dataset.tensors
    # A list is one of samples: [sample, sample, ...].
    if not isinstance(dataset, (tuple, Mapping)):
        return None
    values = list(dataset.values()) if isinstance(dataset, Mapping) else list(dataset)
    if not values or not all(isinstance(v, (Tensor, np.ndarray)) for v in values):
        return None
    made = [torch.as_tensor(v) for v in values]
    sizes = {int(t.shape[0]) if t.ndim else 0 for t in made}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(t.shape)) for t in made)
        raise _fault(key, f"tensors of shapes {shapes} are not of one length", _EXPECTED)
    parts = dict(zip(dataset, made, strict=True)) if isinstance(dataset, Mapping) else tuple(made)
    return parts, sizes.pop()


def _indexed(parts: Any) -> Fetch:
    def fetch(indices: Sequence[int]) -> Any:
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return map_tensors(lambda t: t[chosen], parts)

    return fetch


def _by_item(dataset: Any, collate: Callable[..., Any]) -> Fetch:
    many = getattr(dataset, "__getitems__", None)

    def fetch(indices: Sequence[int]) -> Any:
        plain = [int(i) for i in indices]
        return collate(many(plain) if many is not None else [dataset[i] for i in plain])

    return fetch


def _joined(parts: Sequence[Any]) -> Any:
    """Batches of one sample each, as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], Mapping):
        return {key: _joined([p[key] for p in parts]) for key in parts[0]}
    if isinstance(parts[0], (tuple, list)):
        return type(parts[0])(_joined(group) for group in zip(*parts, strict=True))
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def digest_of(batches: Iterable[Any]) -> str:
    """A hash of all tensors: names, types, shapes and content."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for name, tensor in tensors_of(batch):
            plain = tensor.detach().cpu().contiguous()
            if plain.dtype == torch.bfloat16:
                plain = plain.view(torch.int16)
            # No length of the batch: how many are read at once is no content.
            digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape[1:])}".encode())
            digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


def seed_all(seed: int) -> None:
    """Set the generators that a user's data set may draw from."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users' data sets draw from
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators back as they were."""
    state = torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002
    of_random = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_random)


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def _fault(key: str, text: str, hint: str) -> InputError:
    return InputError("find_optimal", [Fault(key, text, hint or None)])
