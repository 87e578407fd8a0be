"""The library behind the commands: each stage of a campaign as one call on its folder.

    calibrate -> plan_campaign -> run_campaign (submit, wait) -> finish (aggregate -> fit -> report)
                                       ^------ refine_campaign <------'

This is the one package that joins the floors below; the command line calls it and prints. Names
load on first use: to fit a table takes nothing of what plans and runs a campaign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llem._lazy import lazy

if TYPE_CHECKING:
    from llem.pipeline.answers import Answer
    from llem.pipeline.calibration import (
        Calibrated,
        calibrate,
        plan_calibration,
        reduce_calibration,
        run_calibration,
    )
    from llem.pipeline.campaigns import Planned, aggregate_campaign, plan_campaign, run_campaign
    from llem.pipeline.datasets import resolve_data
    from llem.pipeline.files import FIT_FILE, OBSERVATIONS_FILE
    from llem.pipeline.finishing import Finished, finish, report_campaign
    from llem.pipeline.fitting import compare_observations, fit_campaign, fit_observations
    from llem.pipeline.measuring import Measured, measure
    from llem.pipeline.optimal.find import find_optimal
    from llem.pipeline.optimal.result import Preview, Result
    from llem.pipeline.power import draw_energy
    from llem.pipeline.refining import refine_campaign, wave_is_due
    from llem.pipeline.rehearsing import (
        Rehearsed,
        Repeated,
        play_waves,
        rehearse,
        repeat_rehearsal,
    )
    from llem.pipeline.sealing import SealedFile, check_records, seal_campaign, seal_records
    from llem.pipeline.slices import EdgeMinimaError
    from llem.pipeline.study.experiments import run_experiment, run_study
    from llem.pipeline.study.plan import PlannedStudy, plan_study
    from llem.pipeline.study.result import ExperimentResult, StudyResult
    from llem.pipeline.table import Table, TableError, read_table
    from llem.pipeline.viewing import Rows, compare_runs, load_rows, show_run

_HOME = {
    "Answer": "answers",
    "Calibrated": "calibration",
    "EdgeMinimaError": "slices",
    "ExperimentResult": "study.result",
    "FIT_FILE": "files",
    "Finished": "finishing",
    "Measured": "measuring",
    "OBSERVATIONS_FILE": "files",
    "Planned": "campaigns",
    "PlannedStudy": "study.plan",
    "Preview": "optimal.result",
    "Rehearsed": "rehearsing",
    "Repeated": "rehearsing",
    "Result": "optimal.result",
    "Rows": "viewing",
    "SealedFile": "sealing",
    "StudyResult": "study.result",
    "Table": "table",
    "TableError": "table",
    "aggregate_campaign": "campaigns",
    "calibrate": "calibration",
    "check_records": "sealing",
    "compare_observations": "fitting",
    "compare_runs": "viewing",
    "draw_energy": "power",
    "find_optimal": "optimal.find",
    "finish": "finishing",
    "fit_campaign": "fitting",
    "fit_observations": "fitting",
    "load_rows": "viewing",
    "measure": "measuring",
    "plan_calibration": "calibration",
    "plan_campaign": "campaigns",
    "plan_study": "study.plan",
    "play_waves": "rehearsing",
    "read_table": "table",
    "reduce_calibration": "calibration",
    "refine_campaign": "refining",
    "rehearse": "rehearsing",
    "repeat_rehearsal": "rehearsing",
    "report_campaign": "finishing",
    "resolve_data": "datasets",
    "run_calibration": "calibration",
    "run_campaign": "campaigns",
    "run_experiment": "study.experiments",
    "run_study": "study.experiments",
    "seal_campaign": "sealing",
    "seal_records": "sealing",
    "show_run": "viewing",
    "wave_is_due": "refining",
}

__all__ = [
    "FIT_FILE",
    "OBSERVATIONS_FILE",
    "Answer",
    "Calibrated",
    "EdgeMinimaError",
    "ExperimentResult",
    "Finished",
    "Measured",
    "Planned",
    "PlannedStudy",
    "Preview",
    "Rehearsed",
    "Repeated",
    "Result",
    "Rows",
    "SealedFile",
    "StudyResult",
    "Table",
    "TableError",
    "aggregate_campaign",
    "calibrate",
    "check_records",
    "compare_observations",
    "compare_runs",
    "draw_energy",
    "find_optimal",
    "finish",
    "fit_campaign",
    "fit_observations",
    "load_rows",
    "measure",
    "plan_calibration",
    "plan_campaign",
    "plan_study",
    "play_waves",
    "read_table",
    "reduce_calibration",
    "refine_campaign",
    "rehearse",
    "repeat_rehearsal",
    "report_campaign",
    "resolve_data",
    "run_calibration",
    "run_campaign",
    "run_experiment",
    "run_study",
    "seal_campaign",
    "seal_records",
    "show_run",
    "wave_is_due",
]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
