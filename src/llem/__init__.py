"""llem: how big should the model be, on how many tokens, and what will it cost?

    planned = llem.plan_campaign(llem.load_campaign("campaign.yaml"), out="runs/first")
    llem.run_campaign(planned.folder, planned.plan)
    done = llem.finish(planned.folder)

    find_optimal                       a law and an optimum for any model, data set and loss
    load_campaign, plan_campaign,      a campaign from its file to its end, step by step; `help` of
    calibrate, run_campaign,           each tells more
    refine_campaign, aggregate_campaign,
    fit_campaign, report_campaign, finish
    run_experiment, run_study          what serving a model costs
    measure                            the energy of a block of one's own
    fit_law, prepare_data              a law from arrays; a token file from text
    Campaign, Result, ExperimentResult, StudyResult
    LlemError, InputError              what is raised on purpose; an InputError has every fault

Names load on first use: `import llem` costs next to nothing, and a login node needs no torch.
"""

from __future__ import annotations

from llem._version import __version__

# Not typing's: importing that would double the time that `import llem` takes. Checkers know it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from llem.campaign import Campaign, load_campaign
    from llem.data import prepare_data
    from llem.errors import InputError, LlemError
    from llem.pipeline import (
        ExperimentResult,
        Result,
        StudyResult,
        aggregate_campaign,
        calibrate,
        find_optimal,
        finish,
        fit_campaign,
        measure,
        plan_campaign,
        refine_campaign,
        report_campaign,
        run_campaign,
        run_experiment,
        run_study,
    )
    from llem.scaling import fit_law

__all__ = [
    "Campaign",
    "ExperimentResult",
    "InputError",
    "LlemError",
    "Result",
    "StudyResult",
    "__version__",
    "aggregate_campaign",
    "calibrate",
    "find_optimal",
    "finish",
    "fit_campaign",
    "fit_law",
    "load_campaign",
    "measure",
    "plan_campaign",
    "prepare_data",
    "refine_campaign",
    "report_campaign",
    "run_campaign",
    "run_experiment",
    "run_study",
]

_HOME = {
    "Campaign": "campaign",
    "load_campaign": "campaign",
    "InputError": "errors",
    "LlemError": "errors",
    "fit_law": "scaling",
    "prepare_data": "data",
}


if not TYPE_CHECKING:  # a checker would take every name for one of llem's

    def __getattr__(name: str) -> object:
        if name.startswith("_") or name not in __all__:
            raise AttributeError(f"module 'llem' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"llem.{_HOME.get(name, 'pipeline')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
