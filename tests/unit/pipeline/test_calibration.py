"""From the records of a calibration to the plans that rest on it: a device whose truth is known."""

import json
import math
import time

import numpy as np
import pytest

from llem.campaign import campaign_from
from llem.cluster import CampaignFolder, LocalOutcome, write_json
from llem.errors import InputError, LlemError
from llem.pipeline import calibration as module
from llem.pipeline import plan_calibration, plan_campaign, run_calibration
from llem.planning import load_calibration, measured_from_observations
from llem.records import node_writer, rank_writer, samples_table

UTILISATION, OVERHEAD_S, POWER_W, START_S = 0.22, 0.03, 310.0, 41.0
WARM_STEPS, STEPS = 10, 60
SECOND = 1_000_000_000


def campaign(**changes):
    site = {"name": "big", "nodes": 4, "gpus_per_node": 4, "gpu": {"name": "A100-40GB"},
            **changes.pop("site", {})}  # fmt: skip
    return campaign_from({"name": "c", "target": "1e22 FLOP", "budget": "200 GPUh", "seeds": 2,
                          "model": {"vocabulary": 32000, "context": 1024},
                          "data": {"builtin": "python-sources", "dtype": "uint8",
                                   "evaluation_tokens": 65536},
                          "site": site, **changes})  # fmt: skip


def write_records(folder: CampaignFolder, plan, *, noise=0.0, quality="counter", only=None):
    """What the ranks and samplers of a machine with the truth above would have written."""
    rng = np.random.default_rng(3)
    for run in plan.runs[:only]:
        attempt = folder.new_attempt(run.run_id)
        work_s = run.flops / run.steps / run.layout.ranks / plan.device.peak_flops
        step_s = work_s / UTILISATION + OVERHEAD_S * run.layout.grad_accum
        step_s *= 1 + noise * rng.standard_normal()
        wall = time.time_ns()
        host = {"host": "n0", "boot_id": "b", "run_id": run.run_id, "attempt": 0}
        meta = {**host, "rank": 0, "job_started_ns": wall}
        with rank_writer(attempt / "rank-00000.h5", meta=meta) as writer:
            zero = time.monotonic_ns() + round(START_S * SECOND)
            at = zero
            for step in range(run.steps):
                end = at + round(step_s * SECOND * (4 if step < WARM_STEPS else 1))
                writer.append("steps", (step, at, end, 1, 1, 3.0, 1.0, 1e-3, math.nan, math.nan, 1))
                at = end
        ranks = run.layout.ranks
        for node in range(run.layout.nodes):
            devices = [f"GPU-{run.run_id}-{node}-{i}" for i in range(run.layout.gpus_per_node)]
            attrs = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
                     "quality": quality, "name": "pretended"}  # fmt: skip
            path = attempt / f"node-n{node}.h5"
            with node_writer(path, meta={**host, "host": f"n{node}"},
                             devices=dict.fromkeys(devices, attrs)) as writer:  # fmt: skip
                for uuid in devices:
                    for t in range(zero, at + SECOND, SECOND // 4):
                        mj = POWER_W * (t - zero) / 1e6
                        row = (t, 1000, mj, POWER_W * 1e3, 40, 90, 1400, 0, 0)
                        writer.append(samples_table(uuid), row)
        write_json(attempt / "end.json", {
            "schema": "llem-end-1", "run_id": run.run_id, "attempt": 0, "status": "completed",
            "reason": "", "step": run.steps, "steps": run.steps, "tokens": run.tokens,
            "t0_ns": zero, "t1_ns": at, "ended_ns": wall, "host": "n0", "boot_id": "b",
            "hosts": [f"n{i}" for i in range(run.layout.nodes)], "ranks": ranks,
            "peak_memory_bytes": 1.1 * run.predicted.memory_bytes,
        })  # fmt: skip


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """Plan a calibration, let `write_records` be the executor, and reduce."""

    def make(name="cal", *, asked=None, records=True, **options):
        planned = plan_calibration(asked or campaign(), out=tmp_path / name, steps=STEPS)

        def pretend(folder, plan, *, watch=None):
            if records:
                write_records(folder, plan, **options)
            return LocalOutcome((), interrupted=False)

        monkeypatch.setattr(module, "run_campaign", pretend)
        return run_calibration(planned)

    return make


def test_the_fitted_device_is_the_true_one(calibrated):
    done = calibrated()
    found = done.calibration.device
    assert found.utilisation == pytest.approx(UTILISATION, rel=1e-4)
    assert found.step_overhead_s == pytest.approx(OVERHEAD_S, rel=1e-4)
    assert found.power_w == pytest.approx(POWER_W, rel=1e-3)
    assert found.energy_quality == "counter"
    assert found.startup_s == pytest.approx(START_S, abs=0.5)
    assert found.scatter < 1e-3
    for shape in done.calibration.shapes:
        assert shape.steps == STEPS - max(5, math.ceil(0.2 * STEPS))
        assert shape.peak_memory_bytes == pytest.approx(1.1 * shape.predicted_memory_bytes)
        assert shape.tokens_per_s == pytest.approx(shape.batch_tokens / shape.step_s)
    assert load_calibration(done.planned.folder.root) == done.calibration
    assert load_calibration(done.file) == done.calibration


def test_with_noise_the_truth_lies_within_three_stated_errors(calibrated):
    found = calibrated(noise=0.05).calibration.device
    assert 0 < found.utilisation_error < 0.3
    assert abs(math.log(found.utilisation / UTILISATION)) < 3 * found.utilisation_error


def test_a_plan_rests_on_it_and_says_so(calibrated, tmp_path):
    done = calibrated()
    prior = plan_campaign(campaign(), out=tmp_path / "a", write=False).plan
    plan = plan_campaign(campaign(), out=tmp_path / "b", calibration=done.file, write=False).plan
    device = plan.device
    assert device.utilisation == pytest.approx(UTILISATION, rel=1e-4)
    assert device.step_overhead_s == pytest.approx(OVERHEAD_S, rel=1e-4)
    assert device.power_w == pytest.approx(POWER_W, rel=1e-3)
    assert plan.site.startup_s == pytest.approx(START_S, abs=0.5)
    for run in plan.runs:
        work_s = float(run.model.flops_per_token) / run.layout.ranks / device.peak_flops
        truth_s = work_s * (run.tokens + 65536 / 3) / UTILISATION
        truth_s += OVERHEAD_S * run.steps * run.layout.grad_accum
        assert run.predicted.duration_s == pytest.approx(truth_s, rel=1e-3)
    source = plan.to_dict()["budget"]["source"]
    assert f"measured: calibration of {len(done.calibration.shapes)} shapes on " in source["power"]
    assert "+- 3 % of the peak and 30 ms a micro-step: measured" in source["utilisation"]
    told = plan.to_dict()["budget"]["uncertainty"]["gpu_hours"]
    assert told < prior.to_dict()["budget"]["uncertainty"]["gpu_hours"] / 5


def test_the_campaign_names_it_relative_to_its_own_file(calibrated, tmp_path):
    calibrated()
    asked = campaign(calibration="cal")
    plan = plan_campaign(asked, out=tmp_path / "b", base=tmp_path, write=False).plan
    assert plan.device.utilisation == pytest.approx(UTILISATION, rel=1e-4)
    # measured again, it is planned without itself
    again = plan_calibration(asked, out=tmp_path / "cal", base=tmp_path, steps=STEPS)
    assert not again.changed


def test_an_estimate_of_power_never_passes_for_a_measurement(calibrated, tmp_path):
    done = calibrated(quality="model")
    assert done.calibration.device.energy_quality == "model"
    plan = plan_campaign(campaign(), out=tmp_path / "b", calibration=done.file, write=False).plan
    assert plan.device.power_source.startswith("estimated by a model, not measured")
    assert plan.device.power_error >= 0.5
    own = campaign(site={"gpu": {"name": "A100-40GB", "power_w": 380}})
    plan = plan_campaign(own, out=tmp_path / "b", calibration=done.file, write=False).plan
    assert (plan.device.power_w, plan.device.power_source) == (380, "from the site")


def test_a_shape_that_failed_is_named_and_the_others_stand(calibrated):
    found = calibrated(only=3).calibration
    assert len(found.shapes) == 3
    assert any("no record" in item.reason for item in found.left_out)


def test_without_any_shape_it_fails(calibrated):
    with pytest.raises(LlemError, match="no shape could be measured"):
        calibrated(records=False)


def test_an_interrupted_calibration_writes_no_result(tmp_path, monkeypatch):
    planned = plan_calibration(campaign(), out=tmp_path / "cal", steps=STEPS)
    stopped = LocalOutcome((), interrupted=True)
    monkeypatch.setattr(module, "run_campaign", lambda *_, **__: stopped)
    done = run_calibration(planned)
    assert done.calibration is None
    assert not done.file.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"site": {"gpu": {"name": "H100"}}}, ["device_name", "'A100-40GB'", "'H100'"]),
        ({"training": {"precision": "fp32"}}, ["precision", "'bf16'", "'fp32'"]),
    ],
)
def test_the_figures_of_another_device_or_precision_are_refused(
    calibrated, tmp_path, changes, says
):
    done = calibrated()
    with pytest.raises(InputError) as error:
        plan_campaign(campaign(**changes), out=tmp_path / "b", calibration=done.file, write=False)
    for word in [*says, "llem calibrate", str(done.file)]:
        assert word in str(error.value)


def test_another_site_and_layouts_that_were_not_measured_are_warned_of(calibrated, tmp_path):
    done = calibrated()
    other = campaign(site={"name": "other", "nodes": 32})
    from llem.campaign import parse_budget

    plan = plan_campaign(other, out=tmp_path / "b", budget=parse_budget("2e5 GPUh"),
                         calibration=done.file, write=False).plan  # fmt: skip
    text = " ".join(plan.warnings)
    assert "the calibration is of site big (slurm), the plan of other (slurm)" in text
    assert "which the calibration did not measure" in text


def test_a_peak_that_the_site_corrects_leaves_the_speed_as_measured(calibrated, tmp_path):
    done = calibrated()
    own = campaign(site={"gpu": {"name": "A100-40GB", "peak_flops": 156e12}})
    plan = plan_campaign(own, out=tmp_path / "b", calibration=done.file, write=False).plan
    speed = plan.device.utilisation * plan.device.peak_flops
    assert speed == pytest.approx(UTILISATION * 312e12, rel=1e-4)


def test_a_file_that_is_missing_torn_or_wrong_is_named_with_its_key(calibrated, tmp_path):
    done = calibrated()

    def fault(text=None):
        if text is not None:
            (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError) as error:
            load_calibration(tmp_path / "x.json")
        assert "x.json" in str(error.value)
        return str(error.value)

    good = done.file.read_text()
    assert "there is no such file" in fault()
    assert "cut off" in fault(good[: len(good) // 2])
    assert "not a calibration" in fault("[]")
    assert "schema" in fault('{"schema": "llem-fit-1"}')
    values = json.loads(good)
    values["device"]["step_overhead_s"] = -1
    del values["shapes"][1]["step_s"]
    both = fault(json.dumps(values))
    assert "device.step_overhead_s" in both and "shapes.1.step_s" in both
    assert "nothing was measured" in fault(json.dumps({**json.loads(good), "shapes": []}))


def test_shapes_and_steps_are_checked_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        plan_calibration(campaign(), out=tmp_path / "cal", shapes=0, steps=3)
    assert len(error.value.faults) == 2


def test_rows_of_earlier_waves_tell_work_and_overhead_apart():
    rows = []
    for flops, steps, ranks in ((1e17, 500, 1), (4e18, 2000, 4), (9e18, 1000, 8), (2e20, 9000, 8)):
        seconds = flops / ranks / 312e12 / UTILISATION + OVERHEAD_S * steps
        rows.append({"flops": str(flops), "steps_seen": steps, "expected_ranks": ranks,
                     "gpu_seconds": ranks * seconds, "energy_j": POWER_W * ranks * seconds,
                     "energy_quality": "counter"})  # fmt: skip
    rows.append({"flops": "", "gpu_seconds": ""})  # a run that never began
    found = measured_from_observations(rows, peak_flops=312e12)
    assert found.kind == "records"
    assert found.utilisation == pytest.approx(UTILISATION)
    assert found.step_overhead_s == pytest.approx(OVERHEAD_S)
    assert found.power_w == pytest.approx(POWER_W)
    assert found.power_metered
    rows[0]["energy_quality"] = "model"
    assert not measured_from_observations(rows, peak_flops=312e12).power_metered
    plain = [{"flops": r["flops"], "gpu_seconds": r["gpu_seconds"]} for r in rows]
    found = measured_from_observations(plain, peak_flops=312e12)
    assert found.step_overhead_s == 0
    assert math.isnan(found.power_w)
    assert measured_from_observations([], peak_flops=1.0) is None
