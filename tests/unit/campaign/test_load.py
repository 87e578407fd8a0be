"""Reading campaigns and sites: every fault at once, with the path to the key."""

import pytest

from llem.campaign import campaign_from, campaign_to_dict, default_campaign, load_site, site_names
from llem.campaign.load import load_campaign
from llem.errors import InputError

MINIMAL = {"name": "x", "target": "1e20", "budget": "1e18"}


def faults_of(values):
    with pytest.raises(InputError) as caught:
        campaign_from(values)
    return {fault.path: fault for fault in caught.value.faults}


def test_every_fault_is_reported_at_once_with_its_path():
    faults = faults_of(
        {
            "nme": "x",
            "target": "3 parsec",
            "seeds": 0,
            "model": {"famly": "llama"},
            "site": {"nodez": 1, "limits": {"tme": 3}, "environment": {"A B": "x"}},
        }
    )
    assert set(faults) == {
        "name",
        "nme",
        "target",
        "seeds",
        "model.famly",
        "site.nodez",
        "site.limits.tme",
        "site.environment.A B",
    }
    assert faults["nme"].hint == "did you mean 'name'?"
    assert faults["model.famly"].hint == "did you mean 'family'?"
    assert faults["site.nodez"].hint == "did you mean 'nodes'?"
    assert faults["site.limits.tme"].hint == "did you mean 'time'?"


def test_faults_of_values_are_told_in_words_of_their_own():
    """Not in those of the library that found them."""
    values = {
        **MINIMAL,
        "seeds": "two",
        "waves": 0,
        "law": "chincilla",
        "model": {"vocabulary": -3},
        "site": {"pue": 0.5, "overlap": "perhaps", "utilisation": "half"},
    }
    assert {path: fault.message for path, fault in faults_of(values).items()} == {
        "seeds": "'two' is not a whole number",
        "waves": "0 is below 1",
        "law": "'chincilla': there is only 'chinchilla'",
        "model.vocabulary": "-3 is below 0",
        "site.pue": "0.5 is below 1",
        "site.overlap": "'perhaps' is neither true nor false",
        "site.utilisation": "'half' is not a number",
    }


def test_a_folder_is_no_campaign_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; a YAML file is expected"):
        load_campaign(tmp_path)


def test_a_campaign_reads_back_from_what_it_is_written_as():
    campaign = campaign_from({**MINIMAL, "site": {"name": "s", "limits": {"time": "1:00:00"}}})
    assert campaign_from(campaign_to_dict(campaign)) == campaign
    assert campaign_from(campaign_to_dict(default_campaign())) == default_campaign()


def test_a_class_makes_the_family_custom_and_must_be_complete():
    good = {"class": "pkg.mod:Net", "size": "width", "values": [8, 16]}
    assert campaign_from({**MINIMAL, "model": good}).model.family == "custom"
    assert "needs `size`" in faults_of({**MINIMAL, "model": {"class": "pkg:Net"}})["model"].message


def test_yaml_faults_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "campaign.yaml"
    path.write_text("name: x\ntarget: [1\n")
    with pytest.raises(InputError, match=r"campaign\.yaml.*line 3"):
        load_campaign(path)


def test_a_key_given_twice_is_a_fault(tmp_path):
    path = tmp_path / "campaign.yaml"
    path.write_text("name: x\nname: y\ntarget: 1e20\n")
    with pytest.raises(InputError, match=r"name: given twice \(line 2\)"):
        load_campaign(path)


def test_a_missing_file_and_a_file_that_is_no_mapping_are_told():
    with pytest.raises(InputError, match="no such file"):
        load_campaign("/nonexistent/campaign.yaml")
    with pytest.raises(InputError, match="expected a mapping"):
        campaign_from([1, 2])


@pytest.mark.parametrize("name", site_names())
def test_every_shipped_site_is_valid_and_named_as_its_file(name):
    assert load_site(name).name == name


def test_an_unknown_site_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'laptop'"):
        load_site("laptopp")


def test_a_users_own_site_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "llem" / "sites").mkdir(parents=True)
    (tmp_path / "llem" / "sites" / "laptop.yaml").write_text("name: laptop\nnodes: 7\n")
    assert load_site("laptop").nodes == 7


def test_how_energy_is_measured_is_read_and_checked():
    energy = campaign_from({**MINIMAL, "energy": {"interval": "50 ms", "meters": ["rapl"]}}).energy
    assert (energy.interval, energy.meters) == (0.05, ("rapl",))
    plain = campaign_from(MINIMAL).energy
    assert (plain.interval, plain.meters) == (0.1, ("auto",))
    assert campaign_from({**MINIMAL, "energy": {"meters": "nvml, rapl"}}).energy.meters == (
        "nvml", "rapl")  # fmt: skip
    assert set(faults_of({**MINIMAL, "energy": {"interval": 0, "metres": "auto"}})) == {
        "energy.interval", "energy.metres"
    }  # fmt: skip
    assert "energy" in faults_of({**MINIMAL, "energy": {"meters": []}})
    assert "energy" in faults_of({**MINIMAL, "energy": {"meters": "auto, nvml"}})
    assert set(faults_of({**MINIMAL, "energy": {"meters": "nvlm"}})) == {"energy.meters.0"}


def test_the_meters_of_a_campaign_are_those_that_there_are():
    """The campaign does not know llem.energy; its words must be the same."""
    from typing import get_args

    from llem.campaign.campaign import MeterName
    from llem.energy.meters.choose import METERS, MODELS

    assert get_args(MeterName) == ("auto", *METERS, *MODELS)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: x\nmodel:\n\tvocabulary: 256\n", "line 3, column 1: not YAML: .* never by tabs"),
        ("name: x\n# caf\xe9\n".encode("latin-1"), "line 2: not UTF-8 .save the file in the enc"),
    ],
)
def test_what_an_editor_left_in_the_file_is_told_with_its_line(tmp_path, content, told):
    file = tmp_path / "campaign.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        load_campaign(file)


def test_line_ends_and_a_mark_of_another_system_change_nothing(tmp_path):
    file = tmp_path / "campaign.yaml"
    file.write_text("name: x\ntarget: 1e20\nbudget: 1e18\n")
    before = load_campaign(file)
    file.write_bytes("\ufeffname: x\r\ntarget: 1e20\r\nbudget: 1e18\r\n".encode())
    assert load_campaign(file) == before
