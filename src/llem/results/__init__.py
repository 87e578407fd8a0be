"""Late aggregation: records -> observations.

Public: `aggregate`, `Aggregation` (aggregate), `LateOptions` (row), `Observation`, `COLUMNS`,
`read_observations`, `write_observations` (observation), `device_energies`, `NodeEnergy`,
`DeviceEnergy` (devices), `steady_runs`, `Steady` (steady).
"""

from llem.results.aggregate import Aggregation, aggregate
from llem.results.devices import DeviceEnergy, NodeEnergy, device_energies
from llem.results.observation import COLUMNS, Observation, read_observations, write_observations
from llem.results.row import LateOptions
from llem.results.steady import Steady, steady_runs

__all__ = [
    "COLUMNS",
    "Aggregation",
    "DeviceEnergy",
    "LateOptions",
    "NodeEnergy",
    "Observation",
    "Steady",
    "aggregate",
    "device_energies",
    "read_observations",
    "steady_runs",
    "write_observations",
]
