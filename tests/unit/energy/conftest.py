"""The stand-in NVML, built once, and samplers that a test starts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llem
from llem.energy import SamplerProcess, start_sampler

NVML = Path(__file__).parents[2] / "nvml"
# What a developer's shell or a job around the tests may have set must not decide a test.
OF_JOBS = ("CUDA_VISIBLE_DEVICES", "SLURM_", "FAKE_NVML_", "LD_LIBRARY_PATH", "LLEM_SYSFS")
# Nor what counters the machine has that the tests run on.
NO_SYSFS = "/nonexistent"


def load(name: str, folder: Path = NVML) -> ModuleType:
    """A module of tests/nvml or tests/powercap: they are tools of their own and no packages."""
    known = sys.modules.get(f"llem_tests_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"llem_tests_{name}", folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return load("build").build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def fake_gpus() -> type[Any]:
    return load("fake_nvml").FakeGpus


@pytest.fixture(scope="session")
def plain_environ() -> Mapping[str, str]:
    """This process' environment without a job's variables, with llem importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_JOBS)}
    source = str(Path(llem.__file__).parents[1])
    kept["LLEM_SYSFS"] = NO_SYSFS
    return {**kept, "PYTHONPATH": os.pathsep.join([source, kept.get("PYTHONPATH", "")])}


Starter = Callable[..., SamplerProcess]


@pytest.fixture
def sampler(tmp_path: Path, plain_environ: Mapping[str, str]) -> Iterator[Starter]:
    """Starts samplers; `environ` is added to the plain one, `stderr` goes to sampler.err."""
    started: list[SamplerProcess] = []

    def start(
        environ: Mapping[str, str] | None = None,
        *,
        interval_s: float = 0.1,
        linger_s: float = 60.0,
        options: tuple[str, ...] = (),
    ) -> SamplerProcess:
        number = len(started)
        with (tmp_path / "sampler.err").open("ab") as stderr:
            process = start_sampler(
                tmp_path / "s" / f"{number}.sock",
                interval_s=interval_s,
                linger_s=linger_s,
                options=options,
                environ={**plain_environ, **(environ or {})},
                stderr=stderr,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def powercap_program() -> Path:
    return NVML.parent / "powercap" / "fake_sysfs.py"


@pytest.fixture(scope="session")
def fake_powercap(powercap_program: Path) -> type[Any]:
    return load("fake_sysfs", powercap_program.parent).FakePowercap


@pytest.fixture(scope="session")
def fake_pm_counters(powercap_program: Path) -> type[Any]:
    return load("fake_sysfs", powercap_program.parent).FakePmCounters
