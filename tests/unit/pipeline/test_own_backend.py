"""A backend of another package, found by its entry point: checked, served, fitted as llem's own."""

import json

import pytest

import llem
from llem.campaign.options import BACKENDS
from llem.errors import InputError

MODULE = '''
import time

from llem.campaign.options import Option
from llem.records import Phase, RequestStatus


class Sleeper:
    """Makes no tokens, but takes its time: more for a larger model."""

    sees_forwards = True
    options = (
        Option(name="batch_size", kind="int", least=1, becomes=1, help="requests at one time"),
        Option(name="mood", kind="choice", choices=("good", "bad"), help="of the sleeper"),
    )

    def __init__(self, run, replica):
        self.run = run
        self.known = run.deployment.effective

    def load(self): pass
    def tokenizer(self): raise AssertionError("synthetic prompts need none")
    def effective(self): return {**self.known, "slept": "yes"}
    def warmup_requests(self, requests): return requests[:1]
    def close(self): pass

    def serve(self, requests, log):
        size, many = self.known["batch_size"], len(requests)
        second = 2e-9 * self.run.params
        for first in range(0, many, size):
            some, batch = requests[first:first + size], log.next_batch()
            now = start = log.now()
            lengths = sum(len(r.tokens) for r in some)
            for index in range(some[0].output_tokens):
                time.sleep(0.001 + second + 2e-5 * len(some))
                now = log.forward(
                    now, batch=batch, phase=Phase.DECODE if index else Phase.PREFILL,
                    sequences=len(some), tokens_in=len(some) if index else lengths,
                    tokens_out=len(some), context=lengths + (index + 1) * len(some), live=len(some),
                    attended=lengths + (index + 1) * len(some),
                )
                begun = begun if index else now
            for request in some:
                log.request(
                    request, batch=batch, tokens_out=request.output_tokens, t_start_ns=start[0],
                    t_first_ns=begun[0], t_last_ns=now[0], status=RequestStatus.FINISHED,
                )
'''


def model(width):
    return {"config": {"model_type": "llama", "hidden_size": width, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "intermediate_size": 2 * width,
                       "vocab_size": 256, "max_position_embeddings": 512}}  # fmt: skip


STUDY = {
    "models": {"small": model(64), "middle": model(160), "large": model(320)},
    "backend": "sleeper",
    "prompts": {"synthetic": {"input_tokens": 8, "output_tokens": 6, "count": 8}},
    "sweep": {"grid": {"options.batch_size": [1, 4]}},
    "cycles": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "sleeping.py").write_text(MODULE)
    info = folder / "sleeping-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeping\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llem.backends]\nsleeper = sleeping:Sleeper\nbroken = nowhere:Nothing\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield folder
    BACKENDS._read.pop("sleeper", None)


def test_its_options_are_checked_as_llems_own(installed, tmp_path):
    assert set(BACKENDS["sleeper"]) == {"batch_size", "mood"} and "sleeper" in list(BACKENDS)
    with pytest.raises(InputError) as caught:
        llem.run_study(**{**STUDY, "options": {"mod": 1}, "sweep": {
            "grid": {"options.mood": ["good", "bda"]}}}, out=tmp_path / "s")  # fmt: skip
    told = [str(fault) for fault in caught.value.faults]
    assert len(told) == 2
    assert any("did you mean 'mood'" in text for text in told)
    assert any("did you mean 'bad'" in text for text in told)


def test_an_unknown_backend_and_one_that_cannot_be_imported_are_told(installed, tmp_path):
    for name, text in (("sleper", "did you mean 'sleeper'"), ("broken", "cannot be asked")):
        with pytest.raises(InputError, match=text):
            llem.run_study(**{**STUDY, "backend": name}, out=tmp_path / "s")


@pytest.mark.slow
def test_its_runs_are_served_and_carry_a_law(installed, tmp_path):
    study = llem.run_study(**STUDY, out=tmp_path / "s")
    assert study.completed == 6
    assert {row["effective.slept"] for row in study.rows} == {"yes"}
    assert {row["tokens_out"] for row in study.rows} == {48}
    law = study.law()
    assert set(law.laws) == {"energy_j", "gpu_seconds"}
    assert "sleeper: 6 runs" in str(law)
    told = json.loads(study.to_json())
    assert set(told["laws"][0]["laws"]) == set(law.laws)
    with pytest.raises(InputError, match="there is no"):
        study.law("another")
