"""What the README shows is true: its campaign and its site are valid, its commands exist."""

import re
from pathlib import Path

import pytest
import yaml

from llem.campaign import campaign_from
from llem.campaign.site import Site
from llem.cli import COMMANDS

TEXT = (Path(__file__).parents[3] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_its_campaign_its_study_and_its_site_are_valid():
    campaign, study, site = (yaml.safe_load(text) for text in blocks("yaml"))
    assert campaign_from(campaign).name == "llama-de"
    assert campaign_from({**study, "site": site}).workload == "inference"
    assert Site.model_validate(site).name == "mycluster"


def test_every_command_that_it_names_exists():
    words = re.findall(r"`llem ([a-z]+)", TEXT)
    words += re.findall(r"^llem ([a-z]+)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    assert len(words) > 10
    assert set(words) <= set(COMMANDS)


@pytest.mark.parametrize("word", ["python3 dev.py quickstart", "python3 dev.py test"])
def test_the_two_commands_of_the_set_up_stand_alone(word):
    assert word in [text.strip() for text in blocks("bash")]


def test_the_library_that_it_shows_is_public():
    import llem

    for name in re.findall(r"\bllem\.([a-z_]+)\(", "\n".join(blocks("python"))):
        assert name in llem.__all__
        assert getattr(llem, name)
