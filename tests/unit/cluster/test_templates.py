"""A site's own template: a few blocks in the place of the shipped ones."""

import re
import subprocess

import pytest

from llem.cluster.render import render_array, render_doctor, render_files, render_finish
from llem.cluster.templates import BLOCKS
from llem.errors import InputError

from .conftest import CLUSTER

HEAD = '{% extends "array.sbatch.j2" %}\n'


@pytest.fixture
def scripts(make, tmp_path):
    """Render the array's, the last and the doctor's script with a site's template of this text."""

    def scripts(text):
        path = tmp_path / "mysite.sbatch.j2"
        path.write_text(text)
        plan = make(site={**CLUSTER, "template": str(path)})
        doctor = render_doctor(plan.site, nodes=1)
        return render_array(plan, plan.arrays[0]), render_finish(plan), doctor

    return scripts


def fault_of(scripts, text):
    with pytest.raises(InputError) as caught:
        scripts(text)
    assert caught.value.source.endswith("mysite.sbatch.j2")
    return [str(fault) for fault in caught.value.faults]


def test_a_block_of_three_lines_changes_those_lines_alone(make, scripts):
    array, *_ = scripts(
        HEAD + "{% block environment %}\n{{ super() }}\nexport A=1\n{% endblock %}\n"
    )
    plan = make()
    shipped = render_array(plan, plan.arrays[0]).splitlines()
    more = [line for line in array.splitlines() if line not in shipped]
    assert more[0].startswith("# Rendered by llem") and "mysite.sbatch.j2" in more[0]
    assert more[1:] == ["export A=1"]
    assert [x for x in shipped if x not in array.splitlines()] == [shipped[1]]


def test_what_is_common_holds_for_the_last_job_and_the_ranks_blocks_do_not(scripts):
    blocks = "".join(
        f"{{% block {name} %}}\nexport B_{name}=1\n{{% endblock %}}\n" for name in BLOCKS
    )
    array, finish, doctor = scripts(HEAD + blocks)
    assert set(re.findall(r"B_(\w+)=", array)) == set(BLOCKS)
    assert set(re.findall(r"B_(\w+)=", finish)) == set(BLOCKS) - {"launch", "work"}
    assert set(re.findall(r"B_(\w+)=", doctor)) == set(BLOCKS) - {"work"}
    assert "llem finish ." in finish and "doctor.probe" in doctor


def test_the_plans_values_are_at_hand(scripts):
    array, *_ = scripts(
        HEAD + "{% block launch %}\nexport N={{ nodes * ranks_per_node }}\n{% endblock %}\n"
    )
    assert "export N=4" in array


def test_an_empty_override_takes_a_block_away(scripts):
    array, *_ = scripts(HEAD + "{% block modules %}{% endblock %}\n")
    assert "module load" not in array


def test_every_fault_of_a_template_is_told_with_its_line(scripts):
    text = (
        HEAD
        + "{% block enviroment %}{% endblock %}\n\nexport LOST=1\n{% block wrok %}{% endblock %}\n"
    )
    assert fault_of(scripts, text) == [
        "line 2: no block 'enviroment' (did you mean 'environment'?)",
        "line 5: no block 'wrok' (did you mean 'work'?)",
        "line 4: stands in no block and would be dropped",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEAD + "{% block work %}\n{% if %}\n", "line 3: Expected an expression"),
        (HEAD + "{% block work %}\n{{ nodez }}\n{% endblock %}", "line 3: 'nodez' is undefined"),
        (HEAD + "{% block work %}\n\n{{ 1 / 0 }}\n{% endblock %}", "line 4: division by zero"),
        ('{% extends "base.sbatch.j2" %}\n', 'line 1: must say {% extends "array.sbatch.j2" %}'),
        ("{% block work %}{% endblock %}\n", 'line 1: must say {% extends "array.sbatch.j2" %}'),
        (HEAD + '{% block work %}{% include "x" %}{% endblock %}', "line 2: "),
    ],
)
def test_a_wrong_template_is_a_fault_of_the_users_with_the_line(scripts, text, fault):
    (told,) = fault_of(scripts, text)
    assert told.startswith(fault)


def test_a_template_that_is_not_there_is_told(make):
    with pytest.raises(InputError, match=r"/no/such\.j2: site\.template: there is no such file"):
        render_files(make(site={**CLUSTER, "template": "/no/such.j2"}))


def test_nothing_that_a_template_is_handed_can_become_shell_code(make, tmp_path, monkeypatch):
    """Even unquoted: values of keys have passed the guards before they are handed over."""
    handed = {}

    def catch(template, *, own, values):
        handed.update(values)
        return ""

    monkeypatch.setattr("llem.cluster.render.render_template", catch)
    plan = make(site={**CLUSTER, "environment": {"FREE": "$(id)"}, "cpu_bind": "cores"})
    render_array(plan, plan.arrays[0])

    def leaves(value):
        if isinstance(value, dict):
            return [x for v in value.values() for x in leaves(v)]
        if isinstance(value, (list, tuple)):
            return [x for v in value for x in leaves(v)]
        return [] if value is None else [str(value)]

    words = leaves(handed)
    assert {"cores", "/images/llem.sif", "Apptainer/1.4"} <= set(words)
    assert [w for w in words if re.search(r"[\n'\"`$\\;&|<>(){}!]", w)] == []


def test_a_site_with_a_template_gives_a_script_that_bash_reads(scripts):
    for script in scripts(
        HEAD + "{% block container %}\n{{ super() }}\nX=$(date)\n{% endblock %}\n"
    ):
        done = subprocess.run(
            ["bash", "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
