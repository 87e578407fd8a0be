"""A rehearsed folder: every ordinary function takes it, and all of them say what it is."""

import csv
import json
from collections import Counter
from dataclasses import asdict, replace

import h5py
import pytest

from llem.cluster import (
    CampaignFolder,
    campaign_state,
    cancel,
    resubmit,
    run_locally,
    submit,
    summarise,
)
from llem.errors import InputError
from llem.pipeline import (
    aggregate_campaign,
    finish,
    fit_observations,
    refine_campaign,
    rehearse,
    show_run,
)
from llem.records import read_node, read_rank
from llem.rehearsal import Failures, World, planted, play
from llem.rehearsal.measure import FLUSH_S

LAW = planted("chinchilla")
TROUBLE = Failures(preemption=0.2, node_failure=0.2, exception=0.1, divergence=0.1, meter=0.0)


@pytest.fixture(scope="module")
def played(gpu_plan, tmp_path_factory):
    wanted = {"completed", "killed", "interrupted", "diverged", "failed"}
    worlds = (World(plan=gpu_plan, planted=LAW, seed=s, failures=TROUBLE) for s in range(100))
    world = next(w for w in worlds if wanted <= {a.status for a in play(w)})
    return rehearse(world, out=tmp_path_factory.mktemp("rehearsal") / "out", interval_s=0.5)


@pytest.fixture(scope="module")
def finished(played):
    with pytest.MonkeyPatch.context() as patch:
        # Plots take long and are tested elsewhere.
        patch.setattr("llem.report.page.can_plot", lambda: False)
        return finish(played.folder, bootstrap=100)


@pytest.fixture(scope="module")
def rows(played, finished):
    with open(played.folder.results / "observations.csv", newline="") as file:
        return {row["run_id"]: row for row in csv.DictReader(file)}


def test_a_run_that_is_shown_has_its_attempts_as_they_ended(played, finished):
    for run_id in {a.run.run_id for a in played.attempts}:
        ended = [a.status for a in played.attempts if a.run.run_id == run_id]
        shown = [each["status"] for each in show_run(played.folder, run_id)["attempts"]]
        # a killed attempt leaves no end record
        assert shown == ["unfinished" if s == "killed" else s for s in ended]


def test_every_run_is_aggregated_without_a_problem(played, finished, rows):
    assert finished.problems == ()
    last = {a.run.run_id: a.status for a in played.attempts}
    assert {name: row["status"] for name, row in rows.items()} == last


def test_losses_are_those_that_were_played(played, rows):
    for name, row in rows.items():
        if row["status"] == "completed":
            assert float(row["loss"]) == pytest.approx(played.truth[name]["loss"], rel=1e-12)


def test_joules_are_the_simulators_but_for_what_a_killed_sampler_had_not_flushed(played, rows):
    assert all(row["energy_quality"] == "counter" for row in rows.values())
    unflushed = dict.fromkeys(rows, 0.0)
    for a in played.attempts:
        if a.status == "killed":
            watts = sum(board.busy_w for boards in a.boards for board in boards)
            unflushed[a.run.run_id] += 1.05 * watts * (FLUSH_S + played.interval_s)
    for name, row in rows.items():
        seen, true = float(row["energy_j"]), played.truth[name]["energy_j"]
        assert true * (1 - 1e-3) - unflushed[name] <= seen <= true * (1 + 1e-3)
    whole = [name for name in rows if not unflushed[name]]
    assert len(whole) > len(rows) / 2


def test_tokens_trained_again_after_a_failure_count_once(played, rows):
    for row in rows.values():
        if row["status"] == "completed":
            assert float(row["tokens"]) == float(row["tokens_planned"])
            assert float(row["coverage"]) > 0.95
    assert any(int(row["attempts"]) > 1 for row in rows.values())


def test_speed_power_and_memory_belong_to_one_machine(played, rows):
    plan = played.world.plan
    for row in rows.values():
        if row["status"] != "completed":
            continue
        run = plan.run(row["run_id"])
        rate = float(row["tokens_per_s"]) * run.model.flops_per_token
        assert rate / run.layout.ranks / plan.device.peak_flops == pytest.approx(
            float(row["mfu"]), rel=1e-6
        )
        watts = float(row["energy_j"]) / float(row["gpu_seconds"])
        assert 0.5 * plan.device.power_w < watts < 1.15 * plan.device.power_w
        assert float(row["peak_memory_bytes"]) == pytest.approx(
            run.predicted.memory_bytes, rel=0.15
        )


def test_clocks_of_nodes_are_tied_to_each_other(played):
    from llem.results import aggregate

    assert aggregate(played.folder.root).problems == ()
    attempt = next(a for a in played.attempts if a.status == "completed")
    place = played.folder.run(attempt.run.run_id) / f"attempt-{attempt.number}"
    boots = {read_rank(p).meta["boot_id"] for p in place.glob("rank-*.h5")}
    assert len(boots) == 2


def test_a_killed_attempt_leaves_what_a_killed_process_leaves(played):
    killed = next(a for a in played.attempts if a.status == "killed")
    place = played.folder.run(killed.run.run_id) / f"attempt-{killed.number}"
    assert not (place / "end.json").exists()
    records = [read_rank(p) for p in place.glob("rank-*.h5")]
    records += [read_node(p) for p in place.glob("node-*.h5")]
    assert records and not any(r.closed or r.problems for r in records)


def test_the_fit_names_the_planted_law(played, finished):
    assert finished.fit["provenance"]["rehearsal"] == {"law": LAW.text}
    assert finished.fit["warnings"][0].startswith("REHEARSED")
    assert json.loads((played.folder.results / "fit.json").read_text()) == finished.fit


def test_rows_records_ends_plan_and_page_say_that_it_was_rehearsed(played, rows, finished):
    assert {row["rehearsal"] for row in rows.values()} == {LAW.text}
    for path in played.folder.runs.glob("*/attempt-*/*.h5"):
        with h5py.File(path, locking=False) if _closed(path) else _nothing() as file:
            if file is not None:
                assert LAW.text in file["meta"].attrs["rehearsal"].decode()
    for path in played.folder.runs.glob("*/attempt-*/end.json"):
        assert json.loads(path.read_text())["rehearsal"]["law"] == LAW.text
    assert played.folder.load_plan().rehearsal["law"] == LAW.text
    assert "REHEARSED" in finished.report.read_text()


def _closed(path):
    from llem.records.unclosed import is_unclosed

    return not is_unclosed(path)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_status_says_so_and_asks_for_no_submission(played, finished):
    plan = played.folder.load_plan()
    summary = summarise(played.folder, plan, campaign_state(played.folder, plan))
    assert "REHEARSED" in summary.notes[0] and LAW.text in summary.notes[0]
    assert summary.next == f"llem report {played.folder.root}"
    counts = Counter(a.status for a in played.attempts)
    assert summary.tally.done == counts["completed"]


@pytest.mark.parametrize("act", [submit, resubmit, run_locally, cancel])
def test_nothing_that_acts_takes_it(played, act):
    plan = played.folder.load_plan()
    with pytest.raises(InputError, match="was rehearsed"):
        act(played.folder, plan)


def test_no_wave_is_planned_from_it(played):
    with pytest.raises(InputError, match="was rehearsed"):
        refine_campaign(played.folder)


def test_a_plan_to_be_run_is_not_written_into_it(played, gpu_plan):
    with pytest.raises(InputError, match="was rehearsed"):
        played.folder.write_plan(gpu_plan, {}, replace=True)


def test_the_plan_alone_is_refused_as_well(played, tmp_path):
    copy = CampaignFolder(tmp_path)
    copy.plan_file.write_bytes(played.folder.plan_file.read_bytes())
    with pytest.raises(InputError, match="was rehearsed"):
        submit(copy, copy.load_plan())


def test_rehearsed_rows_are_not_fitted_together_with_measured_ones(played, finished):
    from llem.pipeline.fitting import campaign_table
    from llem.results import read_observations

    own = read_observations(played.folder.results / "observations.csv")
    mixed = [asdict(row) for row in (*own[:-1], replace(own[-1], rehearsal=""))]
    with pytest.raises(InputError, match="several worlds"):
        fit_observations(mixed, allow_edge_minima=True)
    assert campaign_table(played.folder).text("rehearsal")[0] == LAW.text


def test_rehearsed_records_in_a_real_campaign_are_left_out_by_name(played, gpu_plan, tmp_path):
    import shutil

    real = CampaignFolder(tmp_path / "real")
    real.write_plan(gpu_plan, {})
    name = gpu_plan.runs.run_ids[0]
    shutil.copytree(played.folder.run(name), real.run(name))
    found = aggregate_campaign(real, write=False)
    assert any("was rehearsed, in a real campaign" in text for text in found.problems)
    row = next(r for r in found.observations if r.run_id == name)
    assert row.status == "missing" and row.loss != row.loss


def test_a_folder_that_is_no_rehearsal_is_never_written_over(gpu_plan, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is no rehearsal"):
        rehearse(World(plan=gpu_plan, planted=LAW), out=tmp_path, replace_old=True)


def test_the_same_seed_writes_the_same_records(laptop_plan, tmp_path):
    world = World(plan=laptop_plan, planted=LAW, seed=1)
    one, two = (rehearse(world, out=tmp_path / name) for name in "ab")
    files = sorted(p.relative_to(one.folder.root) for p in one.folder.root.rglob("*.h5"))
    assert files
    for path in files:
        assert (one.folder.root / path).read_bytes() == (two.folder.root / path).read_bytes()


def test_the_energy_of_its_records_is_told_with_their_origin(played):
    from llem.results import device_energies

    name = next(iter(played.truth))
    assert any("REHEARSED" in text for text in device_energies(played.folder.run(name)).problems)


@pytest.mark.slow
def test_it_can_be_sealed_and_gives_the_same_rows(played, tmp_path):
    import shutil

    from llem.pipeline import seal_campaign

    copy = CampaignFolder(tmp_path / "copy")
    shutil.copytree(played.folder.root, copy.root)
    before = repr(aggregate_campaign(copy, write=False).observations)
    seal_campaign(copy)
    assert repr(aggregate_campaign(copy, write=False).observations) == before
