"""What holds for all unit tests."""

from __future__ import annotations

import gc
import os

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's matter, and others may be at work on it.
settings.register_profile("llem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llem")

# Workers side by side share the cores: threads of each would wait for the others'.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Until all is imported there is nothing to collect, and looking for it takes long.
gc.disable()


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later collection of garbage.

    It is most of the heap, lives to the end anyway, and each training collects at its end.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
