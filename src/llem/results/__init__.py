"""Late aggregation: records -> observations.

Public: `aggregate`, `Aggregation` (aggregate), `LateOptions` (energy), `Observation`, `COLUMNS`,
`read_observations`, `write_observations`, `write_rows` (observation), `PhaseEnergy`, `DeviceRow`
(phases), `CarbonSeries`, `read_carbon` (carbon), `Ratio`, `ratio_of_sums`, `CellRatio`,
`ratios_by_cell` (ratio), `device_energies`, `NodeEnergy`, `DeviceEnergy` (devices),
`steady_runs`, `Steady` (steady).
"""

from llem.results.aggregate import Aggregation, aggregate
from llem.results.carbon import CarbonSeries, read_carbon
from llem.results.devices import DeviceEnergy, NodeEnergy, device_energies
from llem.results.energy import LateOptions
from llem.results.observation import (
    COLUMNS,
    Observation,
    read_observations,
    write_observations,
    write_rows,
)
from llem.results.phases import DeviceRow, PhaseEnergy
from llem.results.ratio import CellRatio, Ratio, ratio_of_sums, ratios_by_cell
from llem.results.steady import Steady, steady_runs

__all__ = [
    "COLUMNS",
    "Aggregation",
    "CarbonSeries",
    "CellRatio",
    "DeviceEnergy",
    "DeviceRow",
    "LateOptions",
    "NodeEnergy",
    "Observation",
    "PhaseEnergy",
    "Ratio",
    "Steady",
    "aggregate",
    "device_energies",
    "ratio_of_sums",
    "ratios_by_cell",
    "read_carbon",
    "read_observations",
    "steady_runs",
    "write_observations",
    "write_rows",
]
