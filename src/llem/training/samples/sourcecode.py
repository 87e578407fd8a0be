"""A hash of the code that a result depends on: what a user wrote, not what was installed.

Of a class or function its source is read, and with it whatever of the same module it refers to.
What comes from an installed package counts by the package's name and version.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from llem.training.samples.batches import tensors_of

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype)


def source_hash(*objects: Any) -> str:
    """32 hex digits that change with the code of any of the objects."""
    digest = hashlib.blake2b(digest_size=16)
    # Kept alive with its number, which another object would get after it.
    seen: dict[int, Any] = {}
    for found in objects:
        for text in _texts(found, seen):
            digest.update(text.encode())
            digest.update(b"\0")
    return digest.hexdigest()


def _texts(found: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(found, _PLAIN):
        yield repr(found)
        return
    if id(found) in seen:
        return
    seen[id(found)] = found
    if isinstance(found, functools.partial):
        yield "partial"
        for part in (found.func, *found.args, *found.keywords, *found.keywords.values()):
            yield from _texts(part, seen)
    elif isinstance(found, MethodType):
        yield from _texts(found.__func__, seen)
        yield from _texts(found.__self__, seen)
    elif isinstance(found, nn.Module):
        # Its repr leaves out what some losses are made with (label_smoothing).
        for name, part in found.named_modules():
            yield f"{name}:{part!r}"
            yield from _texts(type(part), seen)
            plain = {k: v for k, v in vars(part).items() if k[0] != "_" and k != "training"}
            yield from _texts(plain, seen)
        for name, tensor in tensors_of(found.state_dict()):
            yield f"{name}{hashlib.blake2b(tensor.cpu().numpy().tobytes()).hexdigest()}"
    elif isinstance(found, (tuple, list, set, frozenset)):
        for part in found if isinstance(found, (tuple, list)) else sorted(found, key=repr):
            yield from _texts(part, seen)
    elif isinstance(found, dict):
        for key, value in found.items():
            yield repr(key)
            yield from _texts(value, seen)
    elif isinstance(found, Tensor):
        yield hashlib.blake2b(found.detach().cpu().numpy().tobytes()).hexdigest()
    elif isinstance(found, ModuleType):
        yield _package(found.__name__)
    elif isinstance(found, (type, FunctionType)):
        yield from _code(found, seen)
    else:
        # An instance: its class, and what it holds.
        yield from _texts(type(found), seen)
        yield from _texts(getattr(found, "__dict__", {}), seen)


def _code(found: type | FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    if installed(found.__module__):
        yield f"{_package(found.__module__)}:{found.__qualname__}"
        return
    try:
        yield inspect.getsource(found)
    except (OSError, TypeError):
        # Typed at a prompt: what it compiles to.
        yield found.__qualname__
    functions = [found] if isinstance(found, FunctionType) else []
    if isinstance(found, type):
        for base in found.__bases__:
            yield from _texts(base, seen)
        for value in vars(found).values():
            plain = getattr(value, "__func__", value)
            if isinstance(plain, property):
                functions += [f for f in (plain.fget, plain.fset) if isinstance(f, FunctionType)]
            elif isinstance(plain, FunctionType):
                functions.append(plain)
    for function in functions:
        yield from _bytecode(function.__code__)
        yield from _texts(function.__defaults__ or (), seen)
        yield from _texts(function.__kwdefaults__ or {}, seen)
        for cell in function.__closure__ or ():
            try:
                yield from _texts(cell.cell_contents, seen)
            except ValueError:
                continue
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                # Of data (a great array in a notebook) only what is plain.
                if isinstance(value, (*_PLAIN, type, FunctionType, functools.partial, tuple)):
                    yield name
                    yield from _texts(value, seen)


def _bytecode(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        elif not isinstance(constant, str):
            yield repr(constant)


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def installed(module_name: str) -> bool:
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    path = Path(file).resolve()
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or any(path.is_relative_to(Path(root).resolve()) for root in roots if root)
    )


def _package(module_name: str) -> str:
    top = module_name.partition(".")[0]
    try:
        return f"{module_name} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        return module_name
