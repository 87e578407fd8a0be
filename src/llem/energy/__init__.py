"""Energy: meters, and one sampling process for each node.

Public: `SamplerLink`, `Answer`, `start_sampler`, `SamplerProcess` (link), `measure`,
`Measurement` (measure), `Meter`, `MeterError`, `Device`, `Probe`, `Reading` (meter), `choose`,
`Chosen` (choose), `NvmlMeter` (nvml), `CpuModel` (cpu_model), `step_counter`, `StepCounter`
(stamps), `Launch`, `find_launch` (launch). The process is
`python -m llem.energy.sampler`.
"""

from llem.energy.choose import Chosen, choose
from llem.energy.cpu_model import CpuModel
from llem.energy.launch import Launch, find_launch
from llem.energy.link import Answer, SamplerLink, SamplerProcess, start_sampler
from llem.energy.measure import Measurement, measure
from llem.energy.meter import Device, Meter, MeterError, Probe, Reading
from llem.energy.nvml import NvmlMeter
from llem.energy.stamps import StepCounter, step_counter

__all__ = [
    "Answer",
    "Chosen",
    "CpuModel",
    "Device",
    "Launch",
    "Measurement",
    "Meter",
    "MeterError",
    "NvmlMeter",
    "Probe",
    "Reading",
    "SamplerLink",
    "SamplerProcess",
    "StepCounter",
    "choose",
    "find_launch",
    "measure",
    "start_sampler",
    "step_counter",
]
