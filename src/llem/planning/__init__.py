"""Budget → model ladder → runs → cost → array jobs."""

from llem.planning.arrays import ArrayJob, pack
from llem.planning.corpus import write_python_sources
from llem.planning.grid import OwnModel
from llem.planning.hardware import ACCELERATORS, Accelerator, accelerator_of
from llem.planning.ladder import nearest_decoder
from llem.planning.plan import BudgetError, Plan, make_plan, spend, target_flops

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "ArrayJob",
    "BudgetError",
    "OwnModel",
    "Plan",
    "accelerator_of",
    "make_plan",
    "nearest_decoder",
    "pack",
    "spend",
    "target_flops",
    "write_python_sources",
]
