"""The hot loops in C, where there is a compiler (see `llem._compiling`); numpy does the same work
about ten times slower."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llem import _compiling
from llem._compiling import Kept, Status, Unavailable

FloatArray = NDArray[np.float64]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("chinchilla.c", "newton.c"))
# No -ffast-math: inf and NaN must stay what they are.
FLAGS = ("-std=c11", "-O2", "-ffp-contract=fast", "-fPIC", "-shared")
LARGEST_DIMENSION = 16  # LARGEST in newton.c
# Shares of the largest entry by which the library may differ from numpy in its test.
TEST_TOLERANCE = 1e-11


class Library:
    """The functions of a loaded library. Arrays that come in may be of any layout."""

    def __init__(self, path: Path) -> None:
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        try:
            handle = ctypes.CDLL(str(path))
            self._chinchilla = handle.llem_chinchilla
            self._newton = handle.llem_newton
        except (OSError, AttributeError) as error:
            raise Unavailable(f"{path} cannot be loaded: {error}") from None
        self._chinchilla.argtypes = [whole, whole, *[pointer] * 5, whole, *[pointer] * 5]
        self._chinchilla.restype = None
        self._newton.argtypes = [whole, whole, *[pointer] * 9]
        self._newton.restype = None

    def chinchilla(
        self,
        columns: tuple[FloatArray, FloatArray, FloatArray],
        theta: FloatArray,
        weight: FloatArray,
        delta: FloatArray,
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Value (k,), gradient (k, 5), Hessian and metric (k, 5, 5) of `Problem.evaluate`.

        columns: x, y, z, each (n,). theta (k, 5), weight (k, n) or (1, n), delta (k,).
        """
        x, y, z = (_plain(column) for column in columns)
        theta, delta = _plain(theta), _plain(delta)
        k, n = theta.shape[0], x.size
        if weight.strides[1] != weight.itemsize or weight.dtype != np.float64:
            weight = _plain(weight)
        if theta.shape != (k, 5) or weight.shape not in ((k, n), (1, n)):
            raise ValueError(f"theta {theta.shape} and weight {weight.shape} for {n} rows")
        if not y.size == z.size == n or delta.shape != (k,):
            raise ValueError(f"columns of {n}, {y.size} and {z.size} rows, delta {delta.shape}")
        stride = 0 if weight.shape[0] == 1 else weight.strides[0] // weight.itemsize
        out = (np.empty(k), np.empty((k, 5)), np.empty((k, 5, 5)), np.empty((k, 5, 5)))
        given = [a.ctypes.data for a in (x, y, z, theta, weight)]
        self._chinchilla(k, n, *given, stride, delta.ctypes.data, *[a.ctypes.data for a in out])
        return out

    def newton(
        self,
        gradient: FloatArray,
        hessian: FloatArray,
        metric: FloatArray,
        damping: FloatArray,
        fixed: FloatArray | None,
        cap: FloatArray,
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """`minimiser.newton_step` without a basis: move, promised, solved; zero where not solved.

        Solved is False as well where the damped Hessian is not positive definite.
        """
        k, d = gradient.shape
        square = (k, d, d)
        if d > LARGEST_DIMENSION or hessian.shape != square or metric.shape != square:
            raise ValueError(f"gradient {gradient.shape} and hessian {hessian.shape}")
        if damping.shape != (k,) or cap.shape != (d,):
            raise ValueError(f"damping {damping.shape} and cap {cap.shape}")
        if fixed is not None and fixed.shape != (k, d):
            raise ValueError(f"fixed {fixed.shape}")
        given = [_plain(a) for a in (gradient, hessian, metric, damping)]
        held, cap = None if fixed is None else _plain(fixed), _plain(cap)
        move, promised, solved = np.empty((k, d)), np.empty(k), np.empty(k, dtype=np.bool_)
        self._newton(
            k,
            d,
            *[a.ctypes.data for a in given],
            None if held is None else held.ctypes.data,
            *[a.ctypes.data for a in (cap, move, promised, solved)],
        )
        return move, promised, solved


def _plain(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float64)


def look(environment: Mapping[str, str]) -> tuple[Library | None, Status]:
    """What these environment variables lead to, whatever is in use."""
    return _compiling.look(
        environment, sources=SOURCES, flags=FLAGS, load=Library, agrees=agrees_with_numpy
    )


_kept: Kept[Library] = Kept(look)
library, status, forget = _kept.library, _kept.status, _kept.forget


def agrees_with_numpy(found: Library) -> bool:
    """Whether the library gives what plain formulas give, on a few points.

    Written apart from both implementations, so that it can judge either.
    """
    n, k = 19, 3
    x, y = np.sin(np.arange(n)), np.cos(1.7 * np.arange(n))
    z = 0.9 + 0.02 * np.sin(5.0 * np.arange(n))
    theta = np.array([[0.5, -0.5, -0.6, 0.3, 0.4], [0.2, 0.1, -1.0, 0.7, 0.2], [0.6, -1, 0, 1, 2]])
    weight = 1.0 + np.arange(k * n, dtype=np.float64).reshape(k, n) % 4
    delta = np.array([1e-2, np.inf, 0.3])
    terms = np.stack(
        [
            np.broadcast_to(theta[:, :1], (k, n)),
            theta[:, 1:2] - theta[:, 3:4] * x,
            theta[:, 2:3] - theta[:, 4:5] * y,
        ]
    )
    fitted = np.log(np.exp(terms).sum(axis=0))
    share = np.exp(terms - fitted)
    slope = np.stack([*share, -share[1] * x, -share[2] * y], axis=2)
    r = z - fitted
    psi = np.clip(r, -delta[:, None], delta[:, None])
    value = np.sum(weight * psi * (r - 0.5 * psi), axis=1)
    gradient = -np.einsum("kn,kni->ki", weight * psi, slope)
    # Second derivatives of log Lhat: shares times those of the terms' logs, less slope slope'.
    one, zero = np.ones(n), np.zeros(n)
    logs = (
        np.stack([one, zero, zero, zero, zero], axis=1),
        np.stack([zero, one, zero, -x, zero], axis=1),
        np.stack([zero, zero, one, zero, -y], axis=1),
    )
    curve = sum(np.einsum("kn,ni,nj->knij", s, d, d) for s, d in zip(share, logs, strict=True))
    curve = curve - np.einsum("kni,knj->knij", slope, slope)
    outer = np.einsum("kni,knj->knij", slope, slope)
    hessian = np.einsum("kn,knij->kij", weight * (np.abs(r) <= delta[:, None]), outer)
    hessian -= np.einsum("kn,knij->kij", weight * psi, curve)
    metric = np.einsum("kn,knij->kij", weight * psi / r, outer)
    got = found.chinchilla((x, y, z), theta, weight, delta)
    if not all(map(_close, got, (value, gradient, hessian, metric))):
        return False

    damping, cap, fixed = np.full(k, 0.1), np.full(5, 1e9), np.zeros((k, 5))
    fixed[0, 3] = 1.0
    damped = metric + damping[:, None, None] * metric
    free = 1.0 - fixed
    damped = damped * free[:, :, None] * free[:, None, :] + np.eye(5) * fixed[:, :, None]
    step = -np.linalg.solve(damped, (gradient * free)[:, :, None])[:, :, 0]
    bend = np.einsum("ki,kij,kj->k", step, metric, step)
    promised = -np.sum(gradient * step, axis=1) - 0.5 * bend
    # The step is as exact as the matrix is far from singular, and a trace is added to its diagonal.
    move, decrease, solved = found.newton(gradient, metric, metric, damping, fixed, cap)
    return (
        bool(solved.all() and _close(move, step, 1e-6) and _close(decrease, promised, 1e-6))
        and not found.newton(gradient, -metric, metric, damping, None, cap)[2].any()
    )


def _close(got: FloatArray, wanted: FloatArray, tolerance: float = TEST_TOLERANCE) -> bool:
    size = np.abs(wanted).max()
    return bool(np.all(np.abs(got - wanted) <= tolerance * size))
