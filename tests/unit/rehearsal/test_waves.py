"""Waves and branches of a rehearsal are planned by the code that plans real ones."""

from dataclasses import replace

import numpy as np
import pytest

from llem.pipeline import aggregate_campaign, play_waves, rehearse, repeat_rehearsal
from llem.planning import refine_plan
from llem.rehearsal import Failures, Film, World, planted, play, tell

from .conftest import GPU, planned

LAW = planted("chinchilla")
WAVES = {
    **GPU, "budget": "4 GPUh", "waves": 2, "grid": {"levels": 3, "sizes": 4},
    "training": {**GPU["training"], "evaluate_at": []},
}  # fmt: skip
BRANCHES = {
    **GPU,
    "training": {**GPU["training"], "schedule": "wsd", "evaluate_at": [], "branch_at": [0.5]},
}


def place_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    with open(folder / "tokens.bin", "wb") as file:
        file.truncate(64 << 30)  # a hole: a rehearsal reads no token
    return folder


@pytest.fixture(scope="module")
def waves_plan(tmp_path_factory):
    folder = place_of(tmp_path_factory)
    return planned({**WAVES, "data": {**GPU["data"], "path": "tokens.bin"}}, folder)


@pytest.fixture(scope="module")
def branches_plan(tmp_path_factory):
    folder = place_of(tmp_path_factory)
    return planned({**BRANCHES, "data": {**GPU["data"], "path": "tokens.bin"}}, folder)


@pytest.fixture(scope="module")
def waves(waves_plan, tmp_path_factory):
    world = World(plan=waves_plan, planted=LAW, seed=1)
    return rehearse(world, out=tmp_path_factory.mktemp("waves") / "out", interval_s=5.0)


@pytest.fixture(scope="module")
def found(waves):
    return aggregate_campaign(waves.folder, write=False)


def test_every_wave_is_played_and_none_before_those_before_it_have_ended(waves):
    world, attempts = waves.world, waves.attempts
    assert not waves.unplanned
    assert [wave.number for wave in world.plan.waves] == [1, 2]
    assert {a.run.run_id for a in attempts} == set(world.plan.runs.run_ids)
    second = {array.name for array in world.plan.arrays[world.begins[1].arrays :]}
    ended_s = max(a.t1_s for a in attempts if a.array not in second)
    assert second and min(a.t0_s for a in attempts if a.array in second) > ended_s


def test_a_later_wave_is_what_planning_makes_of_the_records(waves, waves_plan, found):
    from dataclasses import asdict

    from llem.planning import measured_from_observations

    first = set(waves_plan.runs.run_ids)
    assert found.problems == ()
    rows = [asdict(row) for row in found.observations if row.run_id in first]
    completed = [row for row in rows if row["status"] == "completed"]
    seen = measured_from_observations(completed, peak_flops=waves_plan.device.peak_flops)
    again = refine_plan(waves_plan, rows, measured=[seen])
    assert again.runs.run_ids == waves.world.plan.runs.run_ids


def test_the_folder_holds_the_grown_plan_and_says_what_it_is(waves, found):
    plan = waves.folder.load_plan()
    assert len(plan.waves) == 2 and plan.rehearsal == waves.world.mark()
    assert {row.status for row in found.observations} <= {"completed", "diverged"}


def test_what_a_wave_has_learnt_of_the_machine_does_not_change_the_machine(waves, waves_plan):
    world, before = waves.world, World(plan=waves_plan, planted=LAW, seed=1)
    assert world.plan.device != waves_plan.device
    run = waves_plan.runs[0]
    assert world.step_s(run) == before.step_s(run)
    # what one plan thinks of the next run comes closer to what the machine really takes
    assert world.nodes[0] == before.nodes[0]


def test_a_frame_counts_the_runs_that_are_planned_by_then(waves, waves_plan):
    film = Film(waves.world, waves.attempts)
    early, late = film.at(1.0), film.at(film.end_s)
    assert (early.wave, early.runs) == (1, len(waves_plan.runs))
    assert (late.wave, late.runs) == (2, len(waves.world.plan.runs))
    # A run that diverges never does all of its tokens.
    completed = sum(a.run.tokens for a in waves.attempts if a.status == "completed")
    assert early.tokens < completed <= late.tokens_done <= late.tokens
    assert late.tokens == sum(run.tokens for run in waves.world.plan.runs)
    told = [e for e in tell(waves.world, waves.attempts) if e.kind == "wave"]
    assert [e.t_s for e in told] == [waves.world.begins[1].at_s]
    assert told[0].text.startswith("wave 2 of 2: ")


def test_rows_in_memory_are_those_of_the_records(waves, found):
    from llem.pipeline.rehearsing import _rows

    once = [a for a in waves.attempts if a.status == "completed" and not a.number]
    seen = {row.run_id: row for row in found.observations}
    for row in _rows(waves.world, once):
        real = seen[row["run_id"]]
        for name in ("status", "params", "tokens", "flops", "steps_seen", "expected_ranks",
                     "tokens_trunk"):  # fmt: skip
            assert row[name] == getattr(real, name)
        assert row["loss"] == pytest.approx(real.loss, rel=1e-12)
        assert row["gpu_seconds"] == pytest.approx(real.gpu_seconds, rel=1e-3)
        if real.energy_j > 0:
            assert row["energy_j"] == pytest.approx(real.energy_j, rel=0.05)


def test_waves_are_played_in_memory_as_well(waves_plan):
    world, attempts, unplanned = play_waves(World(plan=waves_plan, planted=LAW, seed=1))
    assert not unplanned and len(world.plan.waves) == 2
    assert {a.run.run_id for a in attempts} == set(world.plan.runs.run_ids)


def test_repeats_play_all_waves(waves_plan):
    found = repeat_rehearsal(lambda k: World(plan=waves_plan, planted=LAW, seed=k), 2, bootstrap=20)
    assert found.runs > len(waves_plan.runs)


def test_a_wave_that_cannot_be_planned_is_told(waves_plan):
    hopeless = World(
        plan=waves_plan, planted=LAW, failures=replace(Failures.none(), divergence=1.0)
    )
    world, _, unplanned = play_waves(hopeless)
    assert unplanned.startswith("wave 2 cannot be planned: ") and len(world.plan.waves) == 1


def test_a_branch_begins_where_it_parts_from_its_trunk(branches_plan):
    world = World(plan=branches_plan, planted=LAW, failures=Failures.none())
    attempts = play(world)
    branches = [a for a in attempts if a.run.trunk_steps]
    assert branches
    for a in branches:
        trunk = world.trunks[a.run.run_id]
        before = next(b for b in attempts if b.run.run_id == trunk.run_id)
        assert before.t1_s < a.t0_s and a.start_step == a.trunk_steps == a.run.trunk_steps
        own, theirs = world.curve(a.run), world.curve(trunk)
        shared = slice(0, a.trunk_steps)
        assert np.array_equal(own.loss[shared], theirs.loss[shared])
        assert np.array_equal(own.learning_rate[shared], theirs.learning_rate[shared])
        assert not np.array_equal(own.loss[: a.run.steps], theirs.loss[: a.run.steps])


def test_a_branch_shares_its_trunks_luck(branches_plan):
    def luck(world, run):
        return np.log(world.fate(run).loss / LAW.loss(run)) / world.noise

    branch = next(r for r in branches_plan.runs if r.trunk_steps)
    pairs = []
    for seed in range(400):
        world = World(plan=branches_plan, planted=LAW, seed=seed, failures=Failures.none())
        pairs.append((luck(world, world.trunks[branch.run_id]), luck(world, branch)))
    shared = branch.trunk_steps / branch.steps
    assert np.corrcoef(np.transpose(pairs))[0, 1] == pytest.approx(shared**0.5, abs=0.1)
    assert np.std(pairs, axis=0) == pytest.approx([1.0, 1.0], rel=0.1)


def test_records_of_branches_tell_of_their_trunks(branches_plan, tmp_path):
    trouble = Failures(preemption=0.1, node_failure=0.1, meter=0.0)
    played = rehearse(
        World(plan=branches_plan, planted=LAW, seed=2, failures=trouble), out=tmp_path / "out",
        interval_s=5.0,
    )  # fmt: skip
    found = aggregate_campaign(played.folder, write=False)
    assert found.problems == ()
    runs = played.world.plan.by_id
    for row in found.observations:
        run = runs[row.run_id]
        if row.status != "completed":
            continue
        assert row.tokens == run.tokens
        first = next(a for a in played.attempts if a.run.run_id == row.run_id)
        assert row.tokens_trunk == first.trunk_steps * run.recipe.batch_tokens
        assert row.loss == pytest.approx(played.truth[row.run_id]["loss"], rel=1e-12)
    assert any(row.tokens_trunk > 0 for row in found.observations)
