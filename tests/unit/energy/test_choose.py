"""Meters are picked by what they find, and every rejection has its reason."""

from __future__ import annotations

from llem.energy import Device, Probe, Reading, choose


class Pretended:
    def __init__(self, name, *devices, reasons=(), accelerators=None):
        self.name = name
        self._probe = Probe(devices=devices, reasons=reasons, accelerators=accelerators)

    def probe(self):
        return self._probe

    def read(self, device):
        return Reading()

    def close(self):
        pass


def gpu(uuid, **more):
    return Device(uuid=uuid, name="gpu", domain="gpu", source="nvml", **more)


MODEL = Pretended(
    "cpu-model",
    Device(uuid="cpu", name="m", domain="package", source="cpu-model", quality="model", reason="r"),
)


def test_measured_devices_leave_the_model_out():
    chosen = choose([Pretended("nvml", gpu("a"), accelerators=1)], model=MODEL)
    assert [d.uuid for _, d in chosen.devices] == ["a"]
    assert (chosen.meters, chosen.events, chosen.gpus_held) == (("nvml",), (), 1)


def test_without_a_meter_the_model_estimates_and_says_why():
    chosen = choose([Pretended("nvml", reasons=("nvml: no library",))], model=MODEL)
    assert chosen.meters == ("cpu-model",) and chosen.gpus_held == -1
    assert [code for code, _ in chosen.events] == ["meter-reason", "estimate"]
    assert chosen.reasons == ("nvml: no library",)


def test_gpus_of_the_job_that_nobody_sees_are_an_event_of_their_own():
    chosen = choose([Pretended("nvml", reasons=("nvml: no library",), accelerators=4)], model=MODEL)
    assert ("gpu-unmeasured", "the job holds 4 GPUs here, 0 are measured") in chosen.events
    assert (chosen.gpus_held, chosen.gpus_measured) == (4, 0)
    assert all(d.domain == "package" for _, d in chosen.devices)


def test_one_gpu_short_is_told():
    chosen = choose([Pretended("nvml", gpu("a"), accelerators=2)], model=MODEL)
    assert chosen.events == (("gpu-unmeasured", "the job holds 2 GPUs here, 1 are measured"),)


def test_a_gpu_that_reads_neither_counter_nor_power_is_unmeasured():
    dumb = gpu("a", quality="none", counter=False, reason="no sensor")
    chosen = choose([Pretended("nvml", dumb, accelerators=1)], model=MODEL)
    assert "gpu-unmeasured" in dict(chosen.events)


def test_a_part_of_a_gpu_is_not_called_missing():
    chosen = choose([Pretended("nvml", gpu("a", share=0.4), accelerators=3)], model=MODEL)
    assert chosen.events == ()


def test_a_device_that_two_meters_see_is_measured_by_the_first():
    first, second = Pretended("one", gpu("a")), Pretended("two", gpu("a"), gpu("b"))
    chosen = choose([first, second], model=MODEL)
    assert [(m.name, d.uuid) for m, d in chosen.devices] == [("one", "a"), ("two", "b")]


def test_no_meter_at_all_is_no_device_and_no_crash():
    assert choose([], model=None).devices == ()
