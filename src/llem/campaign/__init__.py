"""A user's words: the campaign file, the site, one run's specification, quantities."""

from typing import TYPE_CHECKING

from llem._lazy import lazy
from llem.campaign.architecture import (
    Architecture,
    CustomModel,
    Decoder,
    architecture_from_dict,
)
from llem.campaign.data.sampledata import IN_SESSION, SampleData
from llem.campaign.data.tokendata import Part, TokenData, mixture_of
from llem.campaign.quantities import (
    BUDGET_HELP,
    MONEY,
    Budget,
    parse_budget,
    parse_bytes,
    parse_count,
    parse_duration,
    parse_interval,
    slurm_time,
)
from llem.campaign.run import Layout, Predicted, Recipe, Run
from llem.campaign.runs import AnyRun, Replicates, Runs, run_from_dict
from llem.campaign.study.deployment import (
    Arrival,
    Deployment,
    Prompts,
    ServedModel,
    Serving,
    Warmup,
)

if TYPE_CHECKING:
    from llem.campaign.campaign import MOST_WAVES, Campaign, Energy
    from llem.campaign.load import (
        campaign_from,
        campaign_to_dict,
        default_campaign,
        load_any_campaign,
        load_campaign,
        load_site,
        site_names,
        site_of,
        validated,
    )
    from llem.campaign.site import Site

__all__ = [
    "BUDGET_HELP",
    "IN_SESSION",
    "MONEY",
    "MOST_WAVES",
    "AnyRun",
    "Architecture",
    "Arrival",
    "Budget",
    "Campaign",
    "CustomModel",
    "Decoder",
    "Deployment",
    "Energy",
    "Layout",
    "Part",
    "Predicted",
    "Prompts",
    "Recipe",
    "Replicates",
    "Run",
    "Runs",
    "SampleData",
    "ServedModel",
    "Serving",
    "Site",
    "TokenData",
    "Warmup",
    "architecture_from_dict",
    "campaign_from",
    "campaign_to_dict",
    "default_campaign",
    "load_any_campaign",
    "load_campaign",
    "load_site",
    "mixture_of",
    "parse_budget",
    "parse_bytes",
    "parse_count",
    "parse_duration",
    "parse_interval",
    "run_from_dict",
    "site_names",
    "site_of",
    "slurm_time",
    "validated",
]

_LAZY = {
    "Campaign": "campaign",
    "Energy": "campaign",
    "MOST_WAVES": "campaign",
    "Site": "site",
    **dict.fromkeys(
        (
            "campaign_from",
            "campaign_to_dict",
            "default_campaign",
            "load_any_campaign",
            "load_campaign",
            "load_site",
            "site_names",
            "site_of",
            "validated",
        ),
        "load",
    ),
}

# A rank reads runs, not campaign files: pydantic and YAML are imported only when asked for.
__getattr__ = lazy(__name__, _LAZY)
