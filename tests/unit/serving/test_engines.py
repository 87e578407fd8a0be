"""vLLM's and TensorRT-LLM's servers, started by their names: stand-ins that keep their words."""

import json
import math
import os
import struct
import subprocess
import sys
from enum import Enum, IntEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from deployments import LLAMA, serving

from llem.campaign.study.served import model_from_folder
from llem.errors import InputError, UnavailableError
from llem.records import read_rank
from llem.serving import backend_class, serve_run
from llem.serving.backend import backend_names
from llem.serving.servers.engine_steps import EngineSteps
from llem.training.world import start_world

STANDIN = Path(__file__).with_name("standin.py")
# A program that writes down how it was called, with what is in a file of options, and serves.
PROGRAM = """#!{python}
import json, os, sys
words = sys.argv
port = words[words.index("--port") + 1]
told = {{"words": words[1:]}}
if "--extra_llm_api_options" in words:
    told["settings"] = json.load(open(words[words.index("--extra_llm_api_options") + 1]))
json.dump(told, open({told!r}, "w"))
if {says!r}:
    # as llem.serving.servers.vllm_logger does in vLLM itself
    with open(os.environ["LLEM_ENGINE_FILE"], "w") as file:
        file.write({says!r})
os.execv(sys.executable, [sys.executable, {standin!r}, port, "--pause-s", "0.04"])
"""


@pytest.fixture(autouse=True)
def no_program_named(monkeypatch):
    """A real vLLM of whoever runs the tests is not theirs."""
    monkeypatch.delenv("LLEM_VLLM", raising=False)


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


@pytest.fixture
def weights(tmp_path):
    """A folder as `save_pretrained` leaves one, of a single tensor."""
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    return model_from_folder("mine", folder)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a stand-in of a program on the path; returns what it was told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(name, says=""):
        told = tmp_path / f"{name}.json"
        program = folder / name
        program.write_text(
            PROGRAM.format(python=sys.executable, told=str(told), standin=str(STANDIN), says=says)
        )
        program.chmod(0o755)
        return lambda: json.loads(told.read_text())

    return install


def run_of(backend, model, **options):
    return serving(backend=backend, model=model, options=options, warmup={"least": 0, "most": 0},
                   prompts={"count": 3, "input_tokens": 4, "output_tokens": 5})  # fmt: skip


def test_they_are_found_by_name():
    assert {"vllm", "tensorrt-llm"} <= set(backend_names())
    assert backend_class("vllm").__name__ == "VllmBackend"


def test_vllm_is_started_with_the_options_and_its_tokens_are_recorded(
    world, tmp_path, weights, installed
):
    told = installed("vllm")
    run = run_of("vllm", weights, batch_size=8, precision="bf16", eager=True)
    outcome = serve_run(run, attempt_dir=tmp_path, world=world, meta={})
    assert (outcome.status, outcome.tokens_out) == ("completed", 15)
    words = told()["words"]
    assert words[:2] == ["serve", weights.path]
    assert words[6:] == [
        "--generation-config", "vllm", "--disable-uvicorn-access-log",
        "--dtype", "bfloat16", "--max-num-seqs", "8", "--enforce-eager", "--seed", "0",
    ]  # fmt: skip
    assert outcome.effective["engine_arguments"] == {
        "dtype": "bfloat16", "max_num_seqs": 8, "enforce_eager": True,
    }  # fmt: skip
    # a server that tells nothing of itself is not believed to have done as it was asked
    assert "did not tell" in outcome.effective["engine"]["problem"]
    assert math.isfinite(outcome.peak_memory_bytes) and outcome.peak_memory_bytes > 1e6
    record = read_rank(tmp_path / "rank-00000.h5")
    assert len(record.tokens) == 15
    # all three were sent at once: what runs together is the engine's choice
    starts, lasts = record.requests["t_start_ns"], record.requests["t_last_ns"]
    assert starts.max() < lasts.min()


HEADER = {
    "engine": 0,
    "told": {
        "model_config.dtype": "torch.bfloat16", "scheduler_config.max_num_seqs": 4,
        "cache_config.gpu_memory_utilization": 0.92, "cache_config.enable_prefix_caching": True,
        "compilation_config.cudagraph_mode": "FULL_AND_PIECEWISE",
        "attention_config.backend": None, "cache_config.num_gpu_blocks": 77,
    },
    "versions": {"vllm": "0.32.0", "torch": "2.13.0"},
}  # fmt: skip


def test_what_vllm_says_of_itself_overrules_what_was_asked_for(world, tmp_path, weights, installed):
    far = 2**62
    steps = [f"{far} 2 1 8 4 2 0 0 0 0.250000", f"{far + 5} 3 0 4 0 13 1 6 5 0.500000"]
    installed("vllm", says="\n".join([json.dumps(HEADER), *steps, f"{far + 9} 3 0"]))
    outcome = serve_run(
        run_of("vllm", weights, batch_size=8), attempt_dir=tmp_path, world=world, meta={}
    )
    assert outcome.asked["batch_size"] == 8
    effective = outcome.effective
    assert (effective["batch_size"], effective["precision"]) == (4, "bf16")
    assert (effective["memory_share"], effective["prefix_caching"]) == (0.92, True)
    assert effective["cuda_graphs"] == "full-and-piecewise"
    assert effective["engine"]["cache_config.num_gpu_blocks"] == 77
    assert effective["versions"]["vllm"] == "0.32.0"
    # these were there before the window began
    assert not len(read_rank(tmp_path / "rank-00000.h5").engine)


def test_the_steps_of_an_engine_are_read_once_and_whole(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    steps = EngineSteps(["model_config.dtype"])
    environment = steps.environment()
    assert environment["VLLM_PLUGINS"].split(",") == ["other", "llem_engine_steps"]
    assert json.loads(environment["LLEM_ENGINE_TOLD"]) == ["model_config.dtype"]
    file = Path(environment["LLEM_ENGINE_FILE"])
    assert steps.steps() == [] and steps.configuration() == {}
    file.write_text(json.dumps(HEADER) + "\n10 2 1 8 4 2 0 0 0 0.25\n11 2 1 ")
    assert steps.configuration() == HEADER["told"]
    assert steps.steps() == [(10, 2, 1, 8, 4, 2, 0, 0, 0, 0.25)]
    with file.open("a") as more:
        more.write("0 0 2 0 0 0 0.5\n" + json.dumps({"problem": "no such attribute"}) + "\n")
    assert steps.steps() == [(11, 2, 1, 0, 0, 2, 0, 0, 0, 0.5)]
    assert steps.problem == "no such attribute"
    steps.close()
    assert not file.parent.exists()


def test_a_plugin_is_found_by_the_packages_of_its_path():
    steps = EngineSteps([])
    code = (
        "from importlib.metadata import entry_points\n"
        "print([p.value for p in entry_points(group='vllm.stat_logger_plugins')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, **steps.environment()})  # fmt: skip
    assert found.stdout.strip() == "['llem_engine_steps:EngineSteps']"
    steps.close()


@pytest.fixture
def logger(monkeypatch, tmp_path):
    """The module that runs in vLLM, with a base class of the name that it asks for."""
    loggers = ModuleType("vllm.v1.metrics.loggers")
    loggers.StatLoggerBase = object
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, loggers.__name__, loggers)
    monkeypatch.delitem(sys.modules, "llem.serving.servers.vllm_logger", raising=False)
    monkeypatch.setenv("LLEM_ENGINE_FILE", str(tmp_path / "steps"))
    yield import_module("llem.serving.servers.vllm_logger"), tmp_path / "steps"
    del sys.modules["llem.serving.servers.vllm_logger"]


def test_a_step_is_a_line_and_a_configuration_is_told_by_its_names(logger, monkeypatch):
    module, file = logger
    names = ["model_config.dtype", "level", "graphs", "speculative_config.method"]
    monkeypatch.setenv("LLEM_ENGINE_TOLD", json.dumps(names))
    config = SimpleNamespace(
        model_config=SimpleNamespace(dtype="torch.bfloat16"),
        level=IntEnum("Level", {"O2": 2}).O2,
        graphs=Enum("Graphs", {"FULL": (1, 2)}).FULL,
        speculative_config=None,
    )
    told = module.EngineSteps(config)
    told.log_engine_initialized()
    scheduler = SimpleNamespace(
        num_running_reqs=3, num_waiting_reqs=1, num_skipped_waiting_reqs=2, kv_cache_usage=0.125,
        spec_decoding_stats=SimpleNamespace(num_draft_tokens=4, num_accepted_tokens=1),
    )  # fmt: skip
    prompts = SimpleNamespace(computed=30, cached_tokens=16)
    iteration = SimpleNamespace(
        num_generation_tokens=5, num_preempted_reqs=1, prompt_token_stats=prompts
    )
    told.record(scheduler, iteration, None, engine_idx=0)
    told.record(None, None)
    # what the next version of vLLM may lack ends the record, not vLLM
    told.record(SimpleNamespace(), None)
    told.record(scheduler, iteration)
    first, step, idle, problem = file.read_text().splitlines()
    assert json.loads(first)["told"] == {
        "model_config.dtype": "torch.bfloat16", "level": 2, "graphs": "FULL",
        "speculative_config.method": None,
    }  # fmt: skip
    assert step.split()[1:] == ["3", "3", "30", "16", "5", "1", "4", "1", "0.125000"]
    assert idle.split()[1:9] == ["0"] * 8
    assert "num_running_reqs" in json.loads(problem)["problem"]


def test_tensorrt_llm_finds_its_options_in_a_file_that_is_gone_later(
    world, tmp_path, weights, installed
):
    told = installed("trtllm-serve")
    run = run_of("tensorrt-llm", weights, memory_share=0.5, precision="fp16")
    outcome = serve_run(run, attempt_dir=tmp_path, world=world, meta={})
    assert (outcome.status, outcome.tokens_out) == ("completed", 15)
    assert told()["settings"] == {
        "dtype": "float16", "kv_cache_config": {"free_gpu_memory_fraction": 0.5},
    }  # fmt: skip
    words = told()["words"]
    assert not Path(words[words.index("--extra_llm_api_options") + 1]).exists()


def test_without_the_package_the_image_is_named(world, tmp_path, weights, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError, match="no program vllm here") as caught:
        serve_run(run_of("vllm", weights), attempt_dir=tmp_path, world=world, meta={})
    assert "site.container.images" in caught.value.remedy


def test_random_weights_are_not_served_by_them(world, tmp_path):
    with pytest.raises(InputError, match="weights that are on disk"):
        serve_run(run_of("vllm", None), attempt_dir=tmp_path, world=world, meta={})
