"""Submitting, with a stand-in sbatch that answers job ids and notes how it was called."""

import pytest

from llem.cluster import CampaignFolder, render_files, submit
from llem.cluster.submit import resubmit

LONG = {"budget": "1e17", "layout": None, "grid": {"levels": 2, "sizes": 2}}


@pytest.fixture
def planned(make, tmp_path):
    plan = make(**LONG)
    folder = CampaignFolder(tmp_path / "c")
    folder.write_plan(plan, {folder.jobs / n: t for n, t in render_files(plan).items()})
    return folder, plan


def test_a_long_run_is_a_chain_of_jobs_each_after_the_one_before(planned, sbatch):
    folder, plan = planned
    chained = [a for a in plan.arrays if a.segments > 1]
    assert chained
    submit(folder, plan, finish=False)
    calls = sbatch()
    assert len(calls) == sum(a.segments for a in plan.arrays)
    for array in plan.arrays:
        numbers = [i for i, c in enumerate(calls, 1) if c[-1] == f"jobs/{array.name}.sbatch"]
        waits = [[w for w in calls[i - 1] if "dependency" in w] for i in numbers]
        assert waits == [[], *([f"--dependency=afterany:{i}"] for i in numbers[:-1])]
    before = len(sbatch())
    submit(folder, plan, finish=False)
    assert len(sbatch()) == before


def test_a_chain_that_was_cut_off_while_it_was_submitted_goes_on_where_it_ended(planned, sbatch):
    import json

    folder, plan = planned
    submit(folder, plan, finish=False)
    name = next(a.name for a in plan.arrays if a.segments > 1)
    jobs = json.loads(folder.submitted_file.read_text())
    kept = jobs[name] = jobs[name][:1]
    folder.submitted_file.write_text(json.dumps(jobs))
    before = len(sbatch())
    submit(folder, plan, finish=False)
    assert f"--dependency=afterany:{kept[0]['job_id']}" in sbatch()[before]


def test_submitting_again_what_is_missing_begins_a_new_chain(planned, sbatch):
    folder, plan = planned
    submit(folder, plan, finish=False)
    before = len(sbatch())
    resubmit(folder, plan, finish=False)
    again = sbatch()[before:]
    assert len(again) == sum(a.segments for a in plan.arrays)
    first = {}
    for call in again:
        first.setdefault(call[-1], call)
    assert not any("dependency" in word for call in first.values() for word in call)
