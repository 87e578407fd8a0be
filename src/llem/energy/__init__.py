"""Energy: meters, and one sampling process for each node.

Public: `SamplerLink`, `Answer`, `start_sampler`, `SamplerProcess` (link), `measure`,
`Measurement` (measure), `Meter`, `MeterError`, `Device`, `Probe`, `Reading` (meter), `choose`,
`Chosen`, `make_meters`, `parse_meters` (choose), and the meters: `NvmlMeter` (nvml), `ZeusMeter`
(zeus_readers), `RaplMeter` (rapl), `PmCountersMeter` (pm_counters), `HwmonMeter`, `IpmiMeter`
(node_power), `CpuModel` (cpu_model), `CodeCarbonModel` (carbon_model); `step_counter`,
`StepCounter` (stamps), `Launch`, `find_launch` (launch). The process is
`python -m llem.energy.sampler`.
"""

from llem.energy.measure import Measurement, measure
from llem.energy.meeting.launch import Launch, find_launch
from llem.energy.meeting.link import Answer, SamplerLink, SamplerProcess, start_sampler
from llem.energy.meters.carbon_model import CodeCarbonModel
from llem.energy.meters.choose import Chosen, choose, make_meters, parse_meters
from llem.energy.meters.cpu_model import CpuModel
from llem.energy.meters.meter import Device, Meter, MeterError, Probe, Reading
from llem.energy.meters.node_power import HwmonMeter, IpmiMeter
from llem.energy.meters.nvml import NvmlMeter
from llem.energy.meters.pm_counters import PmCountersMeter
from llem.energy.meters.rapl import RaplMeter
from llem.energy.meters.zeus_readers import ZeusMeter
from llem.energy.stamps import StepCounter, step_counter

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
