"""vLLM's and TensorRT-LLM's servers, started by their names: stand-ins that keep their words."""

import json
import os
import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from deployments import LLAMA, serving

from llem.campaign.served import model_from_folder
from llem.errors import InputError, UnavailableError
from llem.records import read_rank
from llem.serving import backend_class, serve_run
from llem.serving.backend import backend_names
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
os.execv(sys.executable, [sys.executable, {standin!r}, port])
"""


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

    def install(name):
        told = tmp_path / f"{name}.json"
        program = folder / name
        program.write_text(
            PROGRAM.format(python=sys.executable, told=str(told), standin=str(STANDIN))
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
    assert words[6:] == ["--dtype", "bfloat16", "--max-num-seqs", "8", "--enforce-eager",
                         "--seed", "0"]  # fmt: skip
    assert outcome.effective["engine_arguments"] == {
        "dtype": "bfloat16", "max_num_seqs": 8, "enforce_eager": True,
    }  # fmt: skip
    record = read_rank(tmp_path / "rank-00000.h5")
    assert len(record.tokens) == 15
    # all three were sent at once: what runs together is the engine's choice
    starts, lasts = record.requests["t_start_ns"], record.requests["t_last_ns"]
    assert starts.max() < lasts.min()


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
