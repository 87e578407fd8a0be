"""A run from its beginning to its end: warm-up, window, what is on disk, and who has to leave."""

import json
import math
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from deployments import serving

from llem.campaign import Serving
from llem.errors import InputError, UnavailableError
from llem.records import Phase, RequestStatus, read_rank
from llem.serving import backend_class, serve_run
from llem.training.world import start_world


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


def serve(run, folder, world, **more):
    outcome = serve_run(run, attempt_dir=folder, world=world, meta={"attempt": 3}, **more)
    return outcome, read_rank(folder / "rank-00000.h5")


def span_of(record, phase):
    [span] = record.spans[record.spans["phase"] == phase]
    return span


class Ticks:
    """A counter that counts a millijoule a reading."""

    uuid, reason = "GPU-test", ""

    def __init__(self):
        self.value = 0.0

    def read(self):
        self.value += 1.0
        return self.value


def test_a_run_leaves_a_whole_record_and_tells_what_it_did(world, tmp_path):
    run = serving(options={"batch_size": 4}, warmup={"least": 2, "most": 2}, cycle=2)
    outcome, record = serve(run, tmp_path, world, counter=Ticks())
    assert record.closed and not record.problems and record.workload == "inference"
    meta = record.meta
    assert (meta["run_id"], meta["cycle"], meta["attempt"]) == (run.run_id, 2, 3)
    assert meta["deployment_id"] == run.deployment.deployment_id
    assert (meta["replica"], meta["replicas"], meta["device_uuid"]) == (0, 1, "GPU-test")
    assert meta["versions"]["transformers"]

    assert (outcome.status, outcome.step, outcome.steps, outcome.failed) == ("completed", 6, 6, 0)
    assert (outcome.tokens_in, outcome.tokens_out) == (6 * 9, 6 * 7)
    assert outcome.asked == {"batch_size": 4} and outcome.effective["batch_size"] == 4
    assert outcome.effective["precision"] == "fp32" and outcome.effective["attention"] == "sdpa"
    assert outcome.effective["parameters"] == run.params
    assert outcome.warmup.rounds == 2 and outcome.load_s > 0

    forwards, requests = record.forwards, record.requests
    warm, inside = (forwards[forwards["phase"] == p] for p in (Phase.WARMUP, Phase.DECODE))
    assert warm["batch"].tolist() == [-1] * 7 + [-2] * 7 and len(inside) == 2 * 6
    window = span_of(record, Phase.SERVE)
    of_window = forwards[forwards["batch"] >= 0]
    assert window["t0_ns"] <= of_window["t0_ns"].min() < of_window["t1_ns"].max() <= window["t1_ns"]
    assert span_of(record, Phase.WARMUP)["t1_ns"] <= window["t0_ns"]
    assert span_of(record, Phase.LOAD)["t1_ns"] <= span_of(record, Phase.WARMUP)["t0_ns"]
    assert (window["t0_ns"], window["t1_ns"]) == (outcome.window_t0_ns, outcome.window_t1_ns)
    assert (forwards["e1_mj"] > forwards["e0_mj"]).all() and window["e1_mj"] > window["e0_mj"]
    assert requests["request"].tolist() == [0, 1, 2, 3, 4, 5]
    assert requests["batch"].tolist() == [0, 0, 0, 0, 1, 1]
    assert (requests["t_arrival_ns"] == window["t0_ns"]).all()
    assert outcome.tokens_per_s == pytest.approx(
        outcome.tokens_out / (int(window["t1_ns"]) - int(window["t0_ns"])) * 1e9, rel=0.05
    )
    json.dumps(outcome.to_dict())


def test_each_request_has_its_tokens_by_the_passes_of_its_batch(world, tmp_path):
    """What late aggregation stands on: the times of a request's tokens are those of its passes."""
    run = serving(options={"batch_size": 2}, prompts={"output_tokens": 5})
    _, record = serve(run, tmp_path, world)
    for request in record.requests:
        times = record.forwards["t1_ns"][record.forwards["batch"] == request["batch"]]
        assert len(times) == request["tokens_out"] == 5
        assert (request["t_first_ns"], request["t_last_ns"]) == (times[0], times[-1])
        assert request["t_arrival_ns"] <= request["t_start_ns"] < request["t_first_ns"]


def test_requests_are_not_begun_before_they_arrive(world, tmp_path):
    run = serving(
        options={"batch_size": 2, "batching": "dynamic"},
        prompts={"count": 8, "output_tokens": 2},
        arrival={"kind": "poisson", "rate": 40.0},
    )
    _, record = serve(run, tmp_path, world)
    requests = record.requests
    assert (requests["t_start_ns"] >= requests["t_arrival_ns"]).all()
    gaps = np.diff(requests["t_arrival_ns"]) / 1e9
    again = np.random.default_rng([run.seed, 0xA221]).exponential(1 / 40.0, 8)
    assert gaps == pytest.approx(again[1:], abs=1e-6)


def test_the_warm_up_ends_when_rounds_take_equally_long_or_are_too_many(world, tmp_path):
    easy = serving(warmup={"least": 3, "most": 50, "window": 2, "spread": 1e9})
    outcome, _ = serve(easy, tmp_path / "a", world)
    assert (outcome.warmup.rounds, outcome.warmup.converged) == (3, True)
    never = serving(warmup={"least": 1, "most": 4, "window": 3, "spread": 0.0})
    outcome, record = serve(never, tmp_path / "b", world)
    assert (outcome.warmup.rounds, outcome.warmup.converged) == (4, False)
    assert math.isfinite(outcome.warmup.spread)
    [told] = [e["text"].decode() for e in record.events if e["code"] == b"warmup"]
    assert told.startswith("not converged after 4 rounds")


def test_the_warm_up_lasts_as_long_as_it_is_asked_to(world, tmp_path):
    run = serving(warmup={"least": 1, "most": 10_000, "window": 2, "spread": 1e9, "floor_s": 0.3})
    outcome, _ = serve(run, tmp_path, world)
    assert 0.3 <= outcome.warmup.duration_s < 5 and outcome.warmup.rounds > 2


def test_without_a_warm_up_there_is_none(world, tmp_path):
    outcome, record = serve(serving(warmup={"least": 0, "most": 0}), tmp_path, world)
    assert outcome.warmup.rounds == 0 and math.isnan(outcome.warmup.spread)
    assert not (record.forwards["phase"] == Phase.WARMUP).any()


def test_a_run_that_has_to_leave_before_it_begins_loads_nothing(world, tmp_path):
    outcome, record = serve(serving(), tmp_path, world, should_stop=lambda: "asked to leave")
    assert (outcome.status, outcome.reason, outcome.step) == ("interrupted", "asked to leave", 0)
    assert record.closed and not len(record.forwards) and outcome.load_s == 0
    assert record.spans["phase"].tolist() == [Phase.SERVE]
    assert (record.requests["status"] == RequestStatus.LEFT).all() and len(record.requests) == 6


@pytest.mark.parametrize("after", [1, 12, 30])
def test_a_run_that_has_to_leave_says_so_and_keeps_what_it_recorded(
    world, tmp_path, after, monkeypatch
):
    monkeypatch.setattr("llem.serving.log.ASK_NS", 0)
    left = iter([None] * after)
    run = serving(options={"batch_size": 2})
    outcome, record = serve(
        run, tmp_path, world, should_stop=lambda: next(left, "asked to stop by SIGUSR1")
    )
    assert (outcome.status, outcome.reason) == ("interrupted", "asked to stop by SIGUSR1")
    assert record.closed and len(record.requests) == 6
    done = record.requests["status"] == RequestStatus.FINISHED
    assert done.sum() == outcome.step < 6
    assert (record.requests["status"][~done] == RequestStatus.LEFT).all()


def test_the_same_run_again_serves_the_same_requests(world, tmp_path):
    run = serving(arrival={"kind": "poisson", "rate": 1e4})
    _, one = serve(run, tmp_path / "a", world)
    _, two = serve(Serving.from_dict(json.loads(json.dumps(run.to_dict()))), tmp_path / "b", world)
    for column in ("request", "prompt", "batch", "tokens_in", "tokens_out", "status"):
        assert (one.requests[column] == two.requests[column]).all()


def test_a_model_on_disk_gives_the_tokens_of_the_one_it_was_saved_from(world, tmp_path):
    from llem.campaign.study.served import model_from_folder
    from llem.serving.replica import Replica
    from llem.serving.requests import make_requests

    replica = Replica(world, ranks=1)
    run = serving(options={"batch_size": 6})
    drawn = backend_class("transformers")(run, replica)
    drawn.load()
    drawn.model.save_pretrained(tmp_path / "model")
    folder = model_from_folder("saved", tmp_path / "model")
    stored_run = serving(model=folder, options={"batch_size": 6, "precision": "fp32"})
    stored = backend_class("transformers")(stored_run, replica)
    stored.load()
    assert all(
        (a == b).all()
        for a, b in zip(drawn.model.parameters(), stored.model.parameters(), strict=True)
    )
    assert len(make_requests(stored_run, stored.tokenizer)) == 6


def test_half_precision_takes_half_the_memory_of_weights(world, tmp_path):
    for name, size in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        backend = backend_class("transformers")(serving(options={"precision": name}), _alone(world))
        backend.load()
        assert {p.element_size() for p in backend.model.parameters()} == {size}
        assert backend.effective()["precision"] == name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantisation": "nf4"}, "options.quantisation: 'nf4' needs bitsandbytes"),
        ({"attention": "flash_attention_2"}, "options.attention: 'flash_attention_2' runs on GPUs"),
        ({"cache": "offloaded"}, "options.cache: 'offloaded' moves keys and values"),
        ({"beams": 4, "sample": True}, "options.beams: a beam search looks for the likeliest"),
        ({"tf32": True}, "options.tf32: TF32 is of GPUs"),
        ({"quantisation": "quanto-int4"}, "options.quantisation: 'quanto-int4' needs optimum"),
    ],
)
def test_what_cannot_be_had_here_is_refused_before_anything_is_loaded(
    world, tmp_path, options, said, monkeypatch
):
    import llem.serving.generating.abilities as module

    real, absent = module.find_spec, ("bitsandbytes", "optimum.quanto")
    monkeypatch.setattr(module, "find_spec", lambda n: None if n in absent else real(n))
    with pytest.raises(InputError) as error:
        serve_run(serving(options=options), attempt_dir=tmp_path / "a", world=world, meta={})
    assert said in str(error.value) and not (tmp_path / "a").exists()


def test_a_package_that_is_missing_is_named_with_what_installs_it(world, monkeypatch):
    import llem.serving.generating.abilities as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="torch and transformers") as error:
        backend_class("transformers")(serving(), _alone(world))
    assert "llem[serve]" in error.value.remedy


def test_a_backend_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'transformers'"):
        backend_class("transformer")


def test_a_configuration_that_transformers_refuses_is_told_in_its_words(world, tmp_path):
    run = serving()
    model = replace(run.deployment.model, config={**run.deployment.model.config, "hidden_act": "x"})
    with pytest.raises(InputError, match="model tiny"):
        serve_run(serving(model=model), attempt_dir=tmp_path, world=world, meta={})


def _alone(world):
    from llem.serving.replica import Replica

    return Replica(world, ranks=1)


def start(folder, ranks, *, tokens=False, **run):
    """Serve a run on ranks of their own; what each told (`tokens`: a batch's tokens alone)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    job = folder / "job.json"
    job.write_text(json.dumps({"run": run, "ranks": ranks, "port": port, "tokens": tokens}))
    worker = Path(__file__).with_name("rank.py")
    started = [
        subprocess.Popen([sys.executable, str(worker), str(job), str(rank)], stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]
    for process in started:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said.decode()[-2000:]
    return [json.loads(Path(f"{job}.{rank}").read_text()) for rank in range(ranks)]


@pytest.mark.slow
def test_replicas_divide_the_requests_and_tell_the_same_end(tmp_path):
    told = start(
        tmp_path, 2, options={"batch_size": 2}, prompts={"count": 7},
        layout={"gpus_per_node": 2},
    )  # fmt: skip
    assert [t["step"] for t in told] == [7, 7] and told[0]["replicas"] == 2
    assert told[0]["tokens_out"] == 7 * 7 and told[0]["tokens_per_s"] == told[1]["tokens_per_s"]
    records = [read_rank(tmp_path / "attempt-1" / f"rank-{rank:05d}.h5") for rank in range(2)]
    assert [r.requests["request"].tolist() for r in records] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [r.meta["replica"] for r in records] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"sample": True, "top_k": 20}])
def test_ranks_that_split_a_model_hold_half_of_its_layers_and_give_its_tokens(tmp_path, more):
    options = {"batch_size": 4, **more}
    config = {"vocab_size": 4096}
    (tmp_path / "one").mkdir()
    [whole] = start(tmp_path / "one", 1, tokens=True, options=options, config=config)
    told = start(
        tmp_path, 2, tokens=True, options={**options, "tensor_parallel": 2}, config=config,
        layout={"gpus_per_node": 2},
    )  # fmt: skip
    assert told[0]["tokens"] == told[1]["tokens"]
    if not more:  # what is drawn follows the generator, which ranks do not share
        assert told[0]["tokens"] == whole["tokens"]
    assert told[0]["held"] < 0.8 * whole["held"]


@pytest.mark.slow
def test_ranks_that_split_a_model_record_one_set_of_requests(tmp_path):
    told = start(
        tmp_path, 2, options={"batch_size": 4, "tensor_parallel": 2},
        layout={"gpus_per_node": 2}, arrival={"kind": "poisson", "rate": 500.0},
    )  # fmt: skip
    assert [t["step"] for t in told] == [6, 6] and told[0]["replicas"] == 1
    records = [read_rank(tmp_path / "attempt-1" / f"rank-{rank:05d}.h5") for rank in range(2)]
    assert [len(r.requests) for r in records] == [6, 0]
    columns = ("batch", "sequences", "tokens_in", "tokens_out", "phase")
    for column in columns:
        assert (records[0].forwards[column] == records[1].forwards[column]).all()


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"beams": 2}, {"prompt_lookup_tokens": 3, "batch_size": 1}])
def test_replicas_that_are_split_give_the_logits_of_the_whole_model(tmp_path, more):
    """Four ranks: two replicas of two, each with half of the requests."""
    options = {"batch_size": 4, **more}
    config = {"vocab_size": 4096}
    (tmp_path / "one").mkdir()
    [whole] = start(tmp_path / "one", 1, tokens=True, options=options, config=config)
    told = start(
        tmp_path, 4, tokens=True, options={**options, "tensor_parallel": 2}, config=config,
        layout={"gpus_per_node": 4},
    )  # fmt: skip
    assert [t["replica"] for t in told] == [0, 0, 1, 1]
    for rank in told:
        assert rank["held"] < 0.8 * whole["held"]
        assert np.allclose(rank["logits"], whole["logits"], rtol=1e-4, atol=1e-5)
        assert rank["tokens"] == whole["tokens"]


@pytest.mark.slow
def test_replicas_that_are_split_record_their_own_requests_and_all_devices(tmp_path):
    told = start(
        tmp_path, 4, options={"batch_size": 2, "tensor_parallel": 2}, prompts={"count": 7},
        layout={"gpus_per_node": 4}, arrival={"kind": "poisson", "rate": 500.0},
    )  # fmt: skip
    assert [t["step"] for t in told] == [7] * 4 and told[0]["replicas"] == 2
    assert told[0]["tokens_out"] == 7 * 7
    records = [read_rank(tmp_path / "attempt-1" / f"rank-{rank:05d}.h5") for rank in range(4)]
    assert [r.requests["request"].tolist() for r in records] == [[0, 2, 4, 6], [], [1, 3, 5], []]
    assert [r.meta["replica"] for r in records] == [0, 0, 1, 1]
    for lead, other in ((0, 1), (2, 3)):
        for column in ("batch", "sequences", "live", "tokens_in", "tokens_out", "phase"):
            assert (records[lead].forwards[column] == records[other].forwards[column]).all()


@pytest.mark.slow
def test_a_split_that_the_ranks_cannot_make_is_refused_on_every_rank(tmp_path):
    told = start(tmp_path, 2, options={"tensor_parallel": 4}, layout={"gpus_per_node": 2})
    assert all("2 rank(s) cannot be divided into replicas of 4" in t["error"] for t in told)
