"""Budget → model ladder → runs → cost → array jobs."""

from llem.planning.anyplan import AnyPlan
from llem.planning.arrays import ArrayJob, pack
from llem.planning.calibration import (
    CALIBRATION_FILE,
    LAYOUT,
    Calibration,
    DeviceFound,
    LeftOut,
    ShapeFound,
    load_calibration,
)
from llem.planning.cells import Bench, Cell, Dropped, OwnModel
from llem.planning.corpus import write_python_sources
from llem.planning.fill import BudgetError, fill
from llem.planning.hardware import (
    ACCELERATORS,
    Accelerator,
    Measured,
    accelerator_of,
    measured_from_observations,
    measured_from_runs,
    weighted_mean,
)
from llem.planning.ladder import nearest_decoder
from llem.planning.limits import ClusterLimits
from llem.planning.plan import Plan, WavePlan, make_plan
from llem.planning.refine import refine_plan
from llem.planning.shapes import SHAPES, calibration_plan, choose_shapes
from llem.planning.spend import spend, target_flops
from llem.planning.steptime import StepLaw, StepTime, fit_steps
from llem.planning.study.plan import StudyPlan, make_study_plan, plan_from_dict

__all__ = [
    "ACCELERATORS",
    "CALIBRATION_FILE",
    "LAYOUT",
    "SHAPES",
    "Accelerator",
    "AnyPlan",
    "ArrayJob",
    "Bench",
    "BudgetError",
    "Calibration",
    "Cell",
    "ClusterLimits",
    "DeviceFound",
    "Dropped",
    "LeftOut",
    "Measured",
    "OwnModel",
    "Plan",
    "ShapeFound",
    "StepLaw",
    "StepTime",
    "StudyPlan",
    "WavePlan",
    "accelerator_of",
    "calibration_plan",
    "choose_shapes",
    "fill",
    "fit_steps",
    "load_calibration",
    "make_plan",
    "make_study_plan",
    "measured_from_observations",
    "measured_from_runs",
    "nearest_decoder",
    "pack",
    "plan_from_dict",
    "refine_plan",
    "spend",
    "target_flops",
    "weighted_mean",
    "write_python_sources",
]
