"""Late aggregation: records -> observations.

Public: `aggregate`, `Aggregation`, `keep_sealed` (aggregate), `LateOptions` (energy),
`Observation`, `COLUMNS`, `read_observations`, `write_observations`, `write_rows` (observation),
`PhaseEnergy`, `DeviceRow` (phases), `CarbonSeries`, `read_carbon` (carbon), `Ratio`,
`ratio_of_sums`, `CellRatio`, `ratios_by_cell` (ratio), `device_energies`, `NodeEnergy`,
`DeviceEnergy`, `PhaseTotal`, `RunEnergy` (devices), `power_traces`, `PowerTraces`, `Trace`
(traces), `RankRow` (stragglers), `steady_runs`, `Steady` (steady), `reducer_version` (reduction),
`unreduced`, `deal`, `reduce_slice` (slices), `parts_of` (stored), `carbon_told`, `carbon_heard`
(workers).
"""

from llem.results.aggregate import Aggregation, aggregate, keep_sealed
from llem.results.carbon import CarbonSeries, read_carbon
from llem.results.energy.devices import (
    DeviceEnergy,
    NodeEnergy,
    PhaseTotal,
    RunEnergy,
    device_energies,
)
from llem.results.energy.traces import PowerTraces, Trace, power_traces
from llem.results.ratio import CellRatio, Ratio, ratio_of_sums, ratios_by_cell
from llem.results.reducing.reduction import reducer_version
from llem.results.reducing.stored import parts_of
from llem.results.reducing.workers import carbon_heard, carbon_told
from llem.results.rows.energy import LateOptions
from llem.results.rows.phases import DeviceRow, PhaseEnergy
from llem.results.slices import deal, reduce_slice, unreduced
from llem.results.steady import Steady, steady_runs
from llem.results.stragglers import RankRow
from llem.results.tables.observation import (
    COLUMNS,
    Observation,
    read_observations,
    write_observations,
    write_rows,
)

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
    "PhaseTotal",
    "PowerTraces",
    "RankRow",
    "Ratio",
    "RunEnergy",
    "Steady",
    "Trace",
    "aggregate",
    "carbon_heard",
    "carbon_told",
    "deal",
    "device_energies",
    "keep_sealed",
    "parts_of",
    "power_traces",
    "ratio_of_sums",
    "ratios_by_cell",
    "read_carbon",
    "read_observations",
    "reduce_slice",
    "reducer_version",
    "steady_runs",
    "unreduced",
    "write_observations",
    "write_rows",
]
