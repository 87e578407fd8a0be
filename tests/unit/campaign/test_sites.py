"""Sites: one key of a shipped profile changed by its user, and what the shipped ones hold."""

import pytest
import yaml

from llem.campaign import campaign_from, campaign_to_dict, load_campaign, load_site, site_names
from llem.errors import InputError
from llem.planning.hardware import accelerator_of

SHIPPED = sorted(set(site_names()) - {"laptop", "slurm"})


def site_of(**site):
    return campaign_from({"name": "x", "target": "1e20", "site": site}).site


def faults_of(**site):
    with pytest.raises(InputError) as caught:
        site_of(**site)
    return {fault.path: fault for fault in caught.value.faults}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of the user's own profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "llem" / "sites"
    folder.mkdir(parents=True)
    return folder


def test_a_key_given_with_a_base_changes_that_key_alone():
    shipped, mine = load_site("lumi-g"), site_of(base="lumi-g", account="project_465")
    assert mine.account == "project_465"
    assert mine.model_copy(update={"account": None}) == shipped


def test_mappings_are_merged_key_by_key_and_lists_replaced():
    mine = site_of(
        base="lumi-g",
        container={"image": "/project/x.sif"},
        limits={"throttle": 3},
        environment={"NCCL_DEBUG": "INFO"},
        modules=["a"],
    )
    shipped = load_site("lumi-g")
    assert (mine.container.runtime, mine.image) == ("singularity", "/project/x.sif")
    assert (mine.limits.throttle, mine.limits.time) == (3, shipped.limits.time)
    assert mine.environment == {**shipped.environment, "NCCL_DEBUG": "INFO"}
    assert mine.modules == ("a",)


def test_null_clears_a_key_and_none_a_container():
    assert site_of(base="lumi-g", cpu_bind=None).cpu_bind is None
    assert site_of(base="lumi-g", container=None).container is None
    assert site_of(base="lumi-g", container="none").container is None


def test_a_wrong_base_is_told_with_all_else_that_is_wrong():
    faults = faults_of(base="lumi", acount="p", limits={"throttle": 0})
    assert set(faults) == {"site.base", "site.acount", "site.limits.throttle"}
    assert faults["site.base"].hint == "did you mean 'lumi-g'?"
    assert faults["site.acount"].hint == "did you mean 'account'?"
    assert "not the name of a site" in faults_of(base=3)["site.base"].message
    assert faults_of(bas="lumi-g")["site.bas"].hint == "did you mean 'base'?"


def test_an_own_profile_may_stand_on_the_shipped_one_of_its_name(own):
    (own / "lumi-g.yaml").write_text("base: lumi-g\naccount: project_1\n")
    assert (load_site("lumi-g").account, load_site("lumi-g").nodes) == ("project_1", 1024)


def test_profiles_stand_on_one_another_and_take_their_files_name(own):
    (own / "ours.yaml").write_text("base: lumi-g\naccount: project_1\n")
    (own / "mine.yaml").write_text("base: ours\nnodes: 4\n")
    mine = load_site("mine")
    assert (mine.account, mine.nodes, mine.gpu.name) == ("project_1", 4, "MI250X")
    assert load_site("ours").name == "ours"


def test_profiles_that_stand_on_each_other_in_a_circle_are_refused(own):
    (own / "a.yaml").write_text("base: b\n")
    (own / "b.yaml").write_text("base: a\n")
    with pytest.raises(InputError, match="'a' stands on itself"):
        load_site("a")


def test_a_template_is_found_beside_the_file_that_names_it(own, tmp_path):
    (own / "ours.yaml").write_text("base: lumi-g\ntemplate: ours.sbatch.j2\n")
    assert load_site("ours").template == str(own / "ours.sbatch.j2")
    path = tmp_path / "campaign.yaml"
    path.write_text("name: x\ntarget: 1e20\nsite: {base: ours, template: t/mine.j2}\n")
    campaign = load_campaign(path)
    assert campaign.site.template == str(tmp_path / "t" / "mine.j2")
    assert campaign_from(campaign_to_dict(campaign)).site == campaign.site


def test_carbon_is_a_number_or_a_file_beside_the_one_that_names_it(tmp_path):
    path = tmp_path / "campaign.yaml"
    text = "name: x\ntarget: 1e20\nsite: {base: lumi-g, carbon_g_per_kwh: %s}\n"
    for given, found in (("350", 350), ("grid/fi.csv", str(tmp_path / "grid" / "fi.csv"))):
        path.write_text(text % given)
        campaign = load_campaign(path)
        assert campaign.site.carbon_g_per_kwh == found
        assert campaign_from(campaign_to_dict(campaign)).site == campaign.site


@pytest.mark.parametrize(
    ("site", "path", "words"),
    [
        ({"extra": {"mem": "4G"}}, "site.extra", "use `memory_per_node`"),
        ({"extra": {"array": "1-3"}}, "site.extra", "llem's to write"),
        ({"extra": {"licenses": "a\nb"}}, "site.extra.licenses", "cannot stand"),
        ({"extra": {"exclusive": False}}, "site.extra.exclusive", "text, a number or true"),
        ({"extra": {"Lic enses": "a"}}, "site.extra.Lic enses", "sbatch option"),
        ({"hint": "nomultithred"}, "site.hint", "nomultithread"),
        ({"hint": "nomultithread", "cpu_bind": "cores"}, "site", "exclude each other"),
        ({"gpu_type": "a100", "gpu_request": "none"}, "site", "goes with"),
        ({"carbon_g_per_kwh": -3}, "site.carbon_g_per_kwh", "neither a number"),
        ({"carbon_g_per_kwh": [1]}, "site.carbon_g_per_kwh", "neither a number"),
        ({"gpu_type": "a100:4"}, "site.gpu_type", "gres type"),
        ({"exclude": "n1;id"}, "site.exclude", "list of nodes"),
        ({"environment": {"LD_LIBRARY_PATH": "/x"}}, "site.environment", "template's environment"),
    ],
)
def test_what_a_site_may_not_say_is_refused_with_the_key(site, path, words):
    faults = faults_of(**site)
    assert set(faults) == {path}
    assert words in f"{faults[path].message} {faults[path].hint}"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_site_is_planned_for_and_tells_what_is_left_open(name):
    site = load_site(name)
    device = accelerator_of(site)
    assert device.memory_bytes >= 40e9
    assert site.gpus_per_node in (4, 8)
    left = dict(site.left_open())
    assert ("account" in left) == (name[:8] != "snellius")
    assert ("container.image" in left) == (name != "perlmutter")
    closed = site_of(base=name, account="p", container={"image": "/x.sif"})
    assert closed.left_open() == []


@pytest.mark.parametrize(
    ("time", "words", "setting"),
    [
        ("90 s", "90 s are planned with", "limits: {time: 2m}"),
        ("20 s", "hardly begun (startup_s 30) when it must leave", "limits: {time: 10m}"),
        ("61 s", "is ended after 2 min", "limits: {time: 2m}"),
    ],
)  # fmt: skip
def test_a_time_limit_that_slurm_rounds_is_told(time, words, setting):
    ((key, text, then),) = site_of(base="perlmutter", limits={"time": time}).doubts()
    assert key == "limits.time" and words in text and setting in then


@pytest.mark.parametrize("time", ["1m", "2m", "24h"])
def test_whole_minutes_are_as_slurm_counts_them(time):
    assert site_of(base="perlmutter", limits={"time": time}, startup_s=30).doubts() == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_site_gives_no_cause_for_doubt(name):
    assert site_of(base=name).doubts() == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_site_says_where_its_facts_are_from(name):
    from importlib.resources import files

    text = (files("llem.campaign") / "sites" / f"{name}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Facts:" in line for line in head)
    assert "read 20" in " ".join(head)
    assert "account" not in yaml.safe_load(text)
