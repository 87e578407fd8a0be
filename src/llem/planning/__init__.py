"""Budget → model ladder → runs → cost → array jobs."""

from llem.planning.arrays import ArrayJob, pack
from llem.planning.cells import Bench, Cell, Dropped, OwnModel
from llem.planning.corpus import write_python_sources
from llem.planning.fill import BudgetError, fill
from llem.planning.hardware import (
    ACCELERATORS,
    Accelerator,
    Measured,
    accelerator_of,
    measured_from_runs,
)
from llem.planning.ladder import nearest_decoder
from llem.planning.limits import ClusterLimits
from llem.planning.plan import Plan, WavePlan, make_plan
from llem.planning.refine import refine_plan
from llem.planning.spend import spend, target_flops

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "ArrayJob",
    "Bench",
    "BudgetError",
    "Cell",
    "ClusterLimits",
    "Dropped",
    "Measured",
    "OwnModel",
    "Plan",
    "WavePlan",
    "accelerator_of",
    "fill",
    "make_plan",
    "measured_from_runs",
    "nearest_decoder",
    "pack",
    "refine_plan",
    "spend",
    "target_flops",
    "write_python_sources",
]
