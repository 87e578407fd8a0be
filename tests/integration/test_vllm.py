"""A real vLLM serves a study: `vllm` on the path, or the program that LLEM_VLLM names.

On a machine without a GPU its CPU build does (docs/serving.md). A start takes 20 s to minutes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
from llem.campaign import Arrival, Deployment, Layout, Predicted, Prompts, Serving, Warmup
from llem.campaign.options import effective_options
from llem.campaign.study.served import model_from_folder
from llem.errors import LlemError
from llem.records import RequestStatus, read_rank
from llem.serving import serve_run
from llem.training.world import start_world

sys.path.insert(0, str(Path(__file__).parent))
PROGRAM = os.environ.get("LLEM_VLLM") or "vllm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(PROGRAM) is None,
        reason=f"no program {PROGRAM} here: install vLLM, or name its program in LLEM_VLLM",
    ),
    pytest.mark.timeout(1800),
]

COUNT, BEFORE, AFTER = 10, 150, 16
CACHE = 256 * 2**20
STUDY = f"""
name: served
workload: inference
models: {{tiny: {{path: model}}}}
backend: vllm
options: {{eager: true, batch_size: 4, cache_bytes: {CACHE}}}
prompts: {{synthetic: {{input_tokens: {BEFORE}, output_tokens: {AFTER}, count: {COUNT}}}}}
warmup: {{least: 2, most: 2}}
sweep:
  list:
    - {{options.precision: fp32}}
    - {{options.precision: bf16, options.sample: true, options.batch_tokens: 256,
       options.chunked_prefill: true, arrival.poisson: 20.0}}
cycles: 1
site: laptop
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="module")
def environment():
    """On a CPU, one thread where the system puts it: this machine has others on it."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def study(model, environment):
    """The study's folder, and its runs by their precision: (end record, rank's record)."""
    folder = model.parent
    (folder / "study.yaml").write_text(STUDY)
    words = [sys.executable, "-m", "llem", "run", "study.yaml", "--out", "out"]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    logs = "".join(log.read_text() for log in folder.glob("out/jobs/logs/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    found = {}
    for path in folder.glob("out/runs/*/*/end.json"):
        end = json.loads(path.read_text())
        record = read_rank(path.with_name("rank-00000.h5"))
        found[end["effective"]["precision"]] = end, record
    assert set(found) == {"fp32", "bf16"}, logs
    return folder / "out", found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_token_of_every_request_is_there(study, precision):
    end, record = study[1][precision]
    assert (end["status"], end["step"], end["failed"]) == ("completed", COUNT, 0)
    assert (end["tokens_in"], end["tokens_out"]) == (COUNT * BEFORE, COUNT * AFTER)
    assert record.requests["status"].tolist() == [RequestStatus.FINISHED] * COUNT
    assert end["effective"]["token_times"] == "of token ids"
    for row in record.requests:
        tokens = record.tokens[record.tokens["request"] == row["request"]]
        assert tokens["index"].tolist() == list(range(AFTER))
        assert (np.diff(tokens["t_ns"]) >= 0).all()
        assert row["t_arrival_ns"] <= row["t_start_ns"] < row["t_first_ns"] < row["t_last_ns"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_says_which_requests_ran_together(study, precision):
    record = study[1][precision][1]
    engine = record.engine
    assert (np.diff(engine["t_ns"]) > 0).all()
    assert engine["tokens_out"].sum() == COUNT * AFTER
    # every prompt was read, none was found in the cache of the warm-up
    assert (engine["tokens_in"].sum(), engine["tokens_cached"].sum()) == (COUNT * BEFORE, 0)
    assert 0 < engine["running"].max() <= 4
    assert (engine["tokens_out"] <= 4).all()
    first, last = record.requests["t_start_ns"].min(), record.requests["t_last_ns"].max()
    assert first < engine["t_ns"][0] and engine["t_ns"][-1] <= last + 50e6


def test_the_options_are_those_that_vllm_resolved(study):
    end, _ = study[1]["bf16"]
    asked, effective = end["asked"], end["effective"]
    assert asked["batch_tokens"] == effective["batch_tokens"] == 256
    assert (effective["batch_size"], effective["eager"]) == (4, True)
    assert effective["cache_bytes"] == CACHE
    # not asked for: vLLM's own
    assert effective["prefix_caching"] is True and effective["block_size"] > 0
    assert effective["engine"]["model_config.architecture"] == "LlamaForCausalLM"
    assert effective["versions"]["vllm"]


def test_its_memory_is_that_of_the_server(study):
    for end, _ in study[1].values():
        assert end["peak_memory_bytes"] > CACHE and not end["peak_memory_reason"]
        assert end["peak_memory_window_bytes"] <= end["peak_memory_bytes"]


def serving(model, **options):
    found = model_from_folder("tiny", model)
    asked = {"eager": True, "batch_size": 4, "cache_bytes": CACHE, **options}
    nan = float("nan")
    return Serving(
        deployment=Deployment(
            model=found, backend="vllm", options=asked,
            effective=effective_options("vllm", asked, config=found.config),
            prompts=Prompts(kind="synthetic", count=4, input_tokens=8, output_tokens=900),
            arrival=Arrival(), layout=Layout(),
        ),
        cycle=0,
        predicted=Predicted(duration_s=nan, gpu_hours=nan, energy_j=nan, memory_bytes=nan),
        warmup=Warmup(least=0, most=0),
    )  # fmt: skip


def below(pid):
    """The processes that were started below this one, by their ids: what they are."""
    asked = ["ps", "-eo", "pid,ppid,args"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in found.stdout.splitlines()[1:]]
    ours, more = {pid}, True
    while more:
        new = {int(child) for child, parent, _ in rows if int(parent) in ours} - ours
        ours |= new
        more = bool(new)
    return {int(child): name for child, _, name in rows if int(child) in ours - {pid}}


def engine_of(pid):
    """Those whose name says that they are vLLM's engine."""
    return [child for child, name in below(pid).items() if "VLLM::Engine" in name]


def test_an_engine_that_is_killed_fails_the_run(model, tmp_path, monkeypatch, environment):
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, environment[name])

    # A rank that was killed before leaves its folder.
    others = {*Path("/tmp").glob("llem-engine-*")}

    def kill():
        for _ in range(6000):
            record = tmp_path / "rank-00000.h5"
            steps = [s for s in Path("/tmp").glob("llem-engine-*/steps") if s.parent not in others]
            if record.exists() and any(s.read_bytes().count(b"\n") > 20 for s in steps):
                for pid in engine_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    with start_world() as world, pytest.raises(LlemError, match="the server ended with status"):
        serve_run(serving(model), attempt_dir=tmp_path, world=world, meta={})
    killer.join()
    assert not engine_of(os.getpid())


def test_a_warning_that_reaches_vllm_too_leaves_an_end_in_time(
    model, tmp_path, monkeypatch, environment
):
    """As SLURM sends it before it preempts a job, to every process of a step: 20 s are left."""
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    warned_s = []

    def should_stop():
        told = sum(s.read_bytes().count(b"\n") for s in tmp_path.glob("llem-engine-*/steps"))
        if not warned_s and told > 20:
            for pid in below(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            warned_s.append(time.monotonic())
        return "signal SIGTERM" if warned_s else None

    with start_world() as world:
        outcome = serve_run(
            serving(model), attempt_dir=tmp_path, world=world, meta={}, should_stop=should_stop
        )
    assert (outcome.status, outcome.reason) == ("interrupted", "signal SIGTERM")
    assert time.monotonic() - warned_s[0] < 15
    assert len(read_rank(tmp_path / "rank-00000.h5").requests) == 4
    assert not engine_of(os.getpid())


def test_what_vllm_refuses_is_told_in_its_words(model, tmp_path):
    with start_world() as world, pytest.raises(LlemError, match="max_model_len"):
        serve_run(serving(model, context=4096), attempt_dir=tmp_path, world=world, meta={})
