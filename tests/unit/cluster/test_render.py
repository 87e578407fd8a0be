"""Rendering is a pure function of the plan; one golden script per template."""

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llem.campaign import CustomModel, Replicates, Run, load_site, mixture_of, site_names
from llem.cluster.disk.files import json_line
from llem.cluster.disk.plan_text import render_plan, run_texts
from llem.cluster.render import (
    render_array,
    render_doctor,
    render_files,
    render_finish,
    render_manifest,
    render_reduce,
)
from llem.errors import InputError

from .conftest import CLUSTER

GOLDEN = Path(__file__).parent / "golden"


def normal(script, plan):
    """A script without what changes from one version of llem or machine to the next."""
    script = re.sub(r"llem \d+\.\d+\.\S+ from", "llem VERSION from", script)
    return script.replace(plan.digest, "DIGEST").replace(shlex.quote(sys.executable), "PYTHON")


# The sites that llem ships for real clusters, as their user would name them.
SITES = sorted(set(site_names()) - {"laptop", "slurm"})


@pytest.mark.parametrize("name", SITES)
def test_the_script_for_each_shipped_site_is_the_one_that_was_reviewed(make, name):
    plan = site_plan(make, name)
    assert (
        normal(render_array(plan, plan.arrays[0]), plan) == (GOLDEN / f"{name}.sbatch").read_text()
    )


def site_plan(make, name):
    """A plan of two nodes for a shipped site, with what only its user knows."""
    site = {"base": name, "account": "project_1"}
    if load_site(name).container:
        site["container"] = {"image": "/project/llem.sif"}
    layout = {"nodes": 2, "gpus_per_node": load_site(name).gpus_per_node, "zero_stage": 1}
    return make(site=site, layout=layout)


def test_a_plan_for_a_site_tells_what_its_user_has_not_given(make):
    told = [w for w in make(site="lumi-g").warnings if w.startswith("site lumi-g")]
    assert [w.split("`")[1] for w in told] == ["account", "container.image"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sbatch")), ids=lambda p: p.stem)
def test_bash_reads_every_script(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_doctors_script_is_the_one_that_was_reviewed(make):
    plan = make(site={**CLUSTER, "cpu_bind": "cores", "gpu_request": "gpus-per-task"})
    script = render_doctor(plan.site, nodes=2)
    assert normal(script, plan) == (GOLDEN / "doctor.sbatch").read_text()


@pytest.mark.parametrize("kind", ["array", "finish", "array_bare"])
def test_scripts_are_those_that_were_reviewed(make, kind, request):
    changes = {}
    if kind == "array_bare":
        bare = {k: v for k, v in CLUSTER.items() if k not in ("container", "modules", "account")}
        changes = {"site": {**bare, "overlap": False, "gpu_request": "none"}}
    plan = make(**changes)
    script = render_finish(plan) if kind == "finish" else render_array(plan, plan.arrays[0])
    path = GOLDEN / f"{kind}.sbatch"
    assert normal(script, plan) == path.read_text()


def test_the_script_that_reduces_records_is_the_one_that_was_reviewed(make):
    plan = make()
    manifest = "results/reductions.cache.parts/first/manifest.json"
    script = render_reduce(plan, manifest=manifest, elements=3)
    assert normal(script, plan) == (GOLDEN / "reduce.sbatch").read_text()


def test_a_manifest_holds_every_run_whole(make):
    plan = make()
    files = render_files(plan)
    runs = [
        Run.from_dict(values)
        for array in plan.arrays
        for line in files[f"{array.name}.jsonl"].splitlines()
        for values in json.loads(line)["runs"]
    ]
    assert sorted(r.run_id for r in runs) == sorted(r.run_id for r in plan.runs)


def test_ranks_keep_still_where_the_campaign_asks_for_it_and_nowhere_else(make):
    def told(**changes):
        plan = make(**changes)
        files = render_files(plan)
        return [json.loads(files[f"{a.name}.jsonl"].splitlines()[0])["energy"]["idle"] for a in
                plan.arrays]  # fmt: skip

    assert set(map(str, told())) == {"None"}
    assert told(energy={"thermal_slope": 2})[0] is None
    energy = {"baseline": "5 s", "thermal_floor": "10m"}
    assert told(energy=energy)[0] == {"baseline_s": 5, "cool_s": 600, "slope": 1.0}


def test_a_run_is_written_as_json_would_write_it(make):
    """Seeds are spliced into a text made once a cell: keys in their order, NaN as null."""
    plan = make(seeds=3)
    first = plan.runs[0]
    own = CustomModel(class_path="m:M", size="w", value=3, params=100, vocabulary=256, context=64,
                      arguments={"seed": 5, "run_id": "x", "text": 'é"{}%s\u2028'})  # fmt: skip
    unknown = replace(first.predicted, energy_j=math.nan, memory_bytes=math.inf)
    later = Replicates(replace(first, seed=1000, model=own, predicted=unknown), range(1000, 1003))
    runs = plan.runs + later
    assert run_texts(runs) == {run.run_id: json_line(run.to_dict()) for run in runs}


def test_a_plan_is_written_as_json_would_write_it(make):
    plan = make(seeds=3)
    again = json.loads("".join(render_plan(plan)))
    assert again == json.loads(json.dumps(plan.to_dict()))
    assert list(again) == list(plan.to_dict())


def test_rendering_twice_gives_the_same_files(make):
    assert render_files(make()) == render_files(make())


WILD = st.text(st.sampled_from("ab1 .,:/-_%@\n\r\t'\"`$(){}[];&|<>\\!#*?~=\x00é\u2028"), min_size=1)

# Every place of the site and the campaign where a user may type text.
DIRECTIVES = [
    "partition", "account", "qos", "reservation", "constraint", "memory_per_node", "exclude",
]  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([*DIRECTIVES, "modules", "image", "bind", "variable", "value", "name"]), WILD
)
def test_no_value_of_a_user_becomes_shell_code(make, place, text):
    site = dict(CLUSTER)
    changes = {}
    if place in DIRECTIVES:
        site[place] = text
    elif place == "modules":
        site["modules"] = [text]
    elif place == "image":
        site["container"] = {"image": text}
    elif place == "bind":
        site["container"] = {"image": "/i.sif", "binds": [text]}
    elif place == "variable":
        site["environment"] = {text: "1"}
    elif place == "value":
        site["environment"] = {"A": text}
    else:
        changes = {"name": text}
    try:
        plan = make(site=site, grid={"levels": 1, "sizes": 1}, **changes)
        files = render_files(plan)
    except InputError as error:
        refused = [fault.path for fault in error.faults]
        if not any(refused):
            pytest.fail(f"refused without the path to the key: {error}")
        return
    plain = render_files(make(grid={"levels": 1, "sizes": 1}))
    for name, script in files.items():
        if not name.endswith(".sbatch"):
            continue
        skeleton = shell_skeleton(script)
        # What the shell would execute has the same commands as without the user's text.
        expected = [shell_skeleton(s) for n, s in plain.items() if n.endswith(".sbatch")]
        if place in ("modules", "image", "bind"):
            # The text stands in the script: as one word, in its one place, and nowhere else.
            changed = [line for line in skeleton if line not in {x for e in expected for x in e}]
            assert len(changed) <= 1, script
            bare = [re.sub(r"^LLEM=\((.*)\)$", r"\1", line) for line in changed]
            words = [word for line in bare for word in shlex.split(line)]
            assert words.count(text) == len(changed)
        else:
            assert skeleton in expected, script
        assert len(script.splitlines()) == len(script.split("\n")) - 1
    if place == "value":
        for name, text_of in files.items():
            if name.endswith(".jsonl"):
                assert json.loads(text_of.splitlines()[0])["environment"] == {"A": text}
            elif len(text) > 3:
                assert text not in text_of


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["cpu_bind", "gpu_bind", "gpu_type", "extra", "flag"]), WILD)
def test_no_value_that_binds_or_asks_becomes_shell_code(make, place, text):
    def scripts(value):
        given = {"extra": {"comment-x": value}, "flag": {value: True}}
        site = {**CLUSTER, **({"extra": given[place]} if place in given else {place: value})}
        files = render_files(make(site=site, grid={"levels": 1, "sizes": 1}))
        return "".join(files[name] for name in sorted(files) if name.endswith(".sbatch"))

    try:
        script = scripts(text)
    except InputError as error:
        if not all(fault.path.startswith("site.") for fault in error.faults):
            pytest.fail(f"refused without the path to the key: {error}")
        return
    # As one word, in the places where a plain word would stand, and nowhere else.
    assert re.fullmatch(r"[A-Za-z0-9_.,:=+@%/\[\]*-]+", text)
    plain = scripts("plain9word").splitlines()
    exports = ("export SLURM_CPU_BIND", "export SLURM_GPU_BIND")
    assert script.splitlines() == [
        line.replace("plain9word", shlex.quote(text) if line.startswith(exports) else text)
        for line in plain
    ]


def shell_skeleton(script):
    """The lines that bash executes: no comments, names of arrays left out."""
    lines = [line for line in script.splitlines() if not line.startswith("#")]
    return [re.sub(r"jobs/\S+jsonl", "MANIFEST", line) for line in lines]


@pytest.mark.parametrize("key", DIRECTIVES)
@pytest.mark.parametrize("text", ["a\nb", "a'b", 'a"b', "$(id)", "`id`", "a\\b", "a;b"])
def test_dangerous_directives_are_refused_by_name(make, key, text):
    with pytest.raises(InputError) as caught:
        make(site={**CLUSTER, key: text})
    assert [f.path for f in caught.value.faults] == [f"site.{key}"]


def test_a_data_folder_that_no_script_can_name_is_refused(make):
    plan = make()
    runs = tuple(replace(r, data=replace(r.data, path="/a$(id)/x.bin")) for r in plan.runs)
    with pytest.raises(InputError, match=r"data\.path"):
        render_files(replace(plan, runs=runs))


def test_containers_see_the_folder_of_every_file_of_a_mixture(make):
    plan = make()
    data = plan.runs[0].data
    mixed = mixture_of([(replace(data, path=f"/{name}/x.bin"), 1) for name in ("de", "code")])
    plan = replace(plan, runs=tuple(replace(run, data=mixed) for run in plan.runs))
    script = render_array(plan, plan.arrays[0])
    assert "--bind /de" in script and "--bind /code" in script


def first_element(plan):
    manifest = render_manifest(plan, plan.arrays[0], run_texts(plan.runs))
    return json.loads(manifest.splitlines()[0])


def test_how_energy_is_measured_reaches_the_samplers(make):
    """The sampler's own step and the ranks' child read the same words, as data."""
    from llem.cluster.job.environment import sampler_options
    from llem.energy.sampler import _parser

    plan = make(energy={"interval": "50 ms", "meters": ["rapl", "nvml"]},
                site=CLUSTER | {"extra": {"exclusive": True}})  # fmt: skip
    element = first_element(plan)
    assert element["energy"] == {
        "interval_s": 0.05,
        "meters": "rapl,nvml",
        "exclusive": True,
        "idle": None,
    }
    options = _parser().parse_args(["--socket", "/tmp/s", *sampler_options(element)])
    assert options.meters == ("nvml", "rapl") and options.exclusive
    assert first_element(make())["energy"] == {
        "interval_s": 0.1,
        "meters": "auto",
        "exclusive": False,
        "idle": None,
    }
