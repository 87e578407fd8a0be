"""Late aggregation: records -> observations.

Public: `aggregate`, `Aggregation`, `LateOptions` (aggregate), `Observation`, `COLUMNS`,
`read_observations`, `write_observations` (observation), `device_energies`, `NodeEnergy`,
`DeviceEnergy` (devices).
"""

from llem.results.aggregate import Aggregation, LateOptions, aggregate
from llem.results.devices import DeviceEnergy, NodeEnergy, device_energies
from llem.results.observation import COLUMNS, Observation, read_observations, write_observations

__all__ = [
    "COLUMNS",
    "Aggregation",
    "DeviceEnergy",
    "LateOptions",
    "NodeEnergy",
    "Observation",
    "aggregate",
    "device_energies",
    "read_observations",
    "write_observations",
]
