"""A real llama.cpp serves as `openai`: by the server of llama-cpp-python, of the Python that
LLEM_LLAMACPP names (pip install 'llama-cpp-python[server]' gguf)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
from llem.campaign import Arrival, Deployment, Layout, Predicted, Prompts, Serving, Warmup
from llem.campaign.options import effective_options
from llem.campaign.study.served import model_from_folder
from llem.records import RequestStatus, read_rank
from llem.serving import serve_run
from llem.training.world import start_world

sys.path.insert(0, str(Path(__file__).parent))
PYTHON = os.environ.get("LLEM_LLAMACPP") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON or shutil.which(PYTHON) is None,
        reason="no llama.cpp here: LLEM_LLAMACPP names a Python that has llama_cpp.server and gguf",
    ),
]

COUNT, BEFORE, AFTER = 6, 20, 16
COMMAND = f"{PYTHON} -m llama_cpp.server --model {{path}}/model.gguf --port {{port}} --n_ctx 512"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    folder = write_tiny_llama(tmp_path_factory.mktemp("llamacpp") / "model")
    writer = Path(__file__).with_name("tiny_gguf.py")
    subprocess.run([PYTHON, writer, folder], check=True)
    # Prompts are written as bytes then: llem's own environment may lack transformers.
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


def serve(model, folder, flags=""):
    found = model_from_folder("tiny", model)
    asked = {"command": f"{COMMAND} {flags}", "batch_size": 3}
    nan = float("nan")
    run = Serving(
        deployment=Deployment(
            model=found, backend="openai", options=asked,
            effective=effective_options("openai", asked, config=found.config),
            prompts=Prompts(kind="synthetic", count=COUNT, input_tokens=BEFORE,
                            output_tokens=AFTER),
            arrival=Arrival(), layout=Layout(),
        ),
        cycle=0,
        predicted=Predicted(duration_s=nan, gpu_hours=nan, energy_j=nan, memory_bytes=nan),
        warmup=Warmup(least=0, most=0),
    )  # fmt: skip
    folder.mkdir()
    with start_world() as world:
        outcome = serve_run(run, attempt_dir=folder, world=world, meta={})
    return outcome, read_rank(folder / "rank-00000.h5")


def test_every_token_of_llama_cpp_is_counted_though_it_counts_nothing(model, tmp_path):
    outcome, record = serve(model, tmp_path / "run", "--interrupt_requests false")
    assert (outcome.status, outcome.step, outcome.failed) == ("completed", COUNT, 0)
    effective = outcome.effective
    assert effective["prompts_sent_as"] == "text"
    assert effective["token_times"] == "of pieces"
    for row in record.requests:
        # A text that the model ended is shorter: this server does not look at ignore_eos.
        ended = row["status"] == RequestStatus.STOPPED
        assert ended or row["tokens_out"] == AFTER
        # Random bytes are seldom whole characters, whose pieces come together.
        times = int((record.tokens["request"] == row["request"]).sum())
        assert AFTER // 2 <= times <= AFTER or ended


def test_requests_that_it_breaks_off_for_others_are_failed_ones(model, tmp_path):
    """Its default, for a user at a prompt: the request that comes interrupts the one before it."""
    outcome, record = serve(model, tmp_path / "run")
    assert outcome.failed > 0 and outcome.step + outcome.failed == COUNT
    said = [e["text"].decode() for e in record.events if e["code"] == b"request"]
    assert all("the stream ended before its text did" in text for text in said)
