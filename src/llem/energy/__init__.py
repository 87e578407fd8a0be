"""Energy: meters, and one sampling process for each node.

Public: `SamplerLink`, `Answer`, `start_sampler`, `SamplerProcess` (link), `measure`,
`Measurement` (measure), `Meter`, `MeterError`, `Device`, `Probe`, `Reading` (meter), `choose`,
`Chosen`, `make_meters`, `parse_meters` (choose), and the meters: `NvmlMeter` (nvml), `ZeusMeter`
(zeus_readers), `RaplMeter` (rapl), `PmCountersMeter` (pm_counters), `HwmonMeter`, `IpmiMeter`
(node_power), `CpuModel` (cpu_model), `CodeCarbonModel` (carbon_model); `step_counter`,
`StepCounter` (stamps), `Launch`, `find_launch` (launch). The process is
`python -m llem.energy.sampler`.
"""

from llem.energy.carbon_model import CodeCarbonModel
from llem.energy.choose import Chosen, choose, make_meters, parse_meters
from llem.energy.cpu_model import CpuModel
from llem.energy.launch import Launch, find_launch
from llem.energy.link import Answer, SamplerLink, SamplerProcess, start_sampler
from llem.energy.measure import Measurement, measure
from llem.energy.meter import Device, Meter, MeterError, Probe, Reading
from llem.energy.node_power import HwmonMeter, IpmiMeter
from llem.energy.nvml import NvmlMeter
from llem.energy.pm_counters import PmCountersMeter
from llem.energy.rapl import RaplMeter
from llem.energy.stamps import StepCounter, step_counter
from llem.energy.zeus_readers import ZeusMeter

__all__ = [
    "Answer",
    "Chosen",
    "CodeCarbonModel",
    "CpuModel",
    "Device",
    "HwmonMeter",
    "IpmiMeter",
    "Launch",
    "Measurement",
    "Meter",
    "MeterError",
    "NvmlMeter",
    "PmCountersMeter",
    "Probe",
    "RaplMeter",
    "Reading",
    "SamplerLink",
    "SamplerProcess",
    "StepCounter",
    "ZeusMeter",
    "choose",
    "find_launch",
    "make_meters",
    "measure",
    "parse_meters",
    "start_sampler",
    "step_counter",
]
