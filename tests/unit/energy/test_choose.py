"""Meters are picked by what they find, and every rejection has its reason."""

from __future__ import annotations

import pytest

from llem.energy import Device, Probe, Reading, choose, parse_meters


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


def test_gpus_are_missed_also_where_nvml_was_not_asked():
    """Processors alone must not pass for a job with GPUs."""
    rapl = Device(uuid="p", name="p", domain="package", source="rapl", node_wide=True)
    chosen = choose([Pretended("rapl", rapl)], model=MODEL, environ={"SLURM_GPUS_ON_NODE": "2"})
    assert chosen.events == (("gpu-unmeasured", "the job holds 2 GPUs here, 0 are measured"),)


def test_a_nodes_counter_that_holds_the_gpus_measures_them():
    node = Device(uuid="n", name="n", domain="node", source="pm_counters", node_wide=True,
                  contains=("gpu", "package", "dram"))  # fmt: skip
    environ = {"SLURM_GPUS_ON_NODE": "8"}
    assert choose([Pretended("pm", node)], model=MODEL, environ=environ).gpus_measured == 8


def test_a_slow_meter_of_the_node_measures_no_gpu():
    node = Device(uuid="n", name="n", domain="node", source="ipmi", quality="integral",
                  contains=("gpu", "package", "dram"), counter=False, node_wide=True)  # fmt: skip
    chosen = choose([Pretended("ipmi", node)], model=MODEL, environ={"SLURM_GPUS_ON_NODE": "1"})
    assert "gpu-unmeasured" in dict(chosen.events)


def test_gpus_that_two_meters_count_are_counted_once():
    """Of two ways to the same cards, the one that sees more of them says how many."""
    cards = [Device(uuid=f"c{i}", name="c", domain="gpu", source="pm_counters") for i in range(4)]
    chosen = choose([Pretended("nvml", gpu("a")), Pretended("pm", *cards)], model=MODEL,
                    environ={"SLURM_GPUS_ON_NODE": "8"})  # fmt: skip
    assert chosen.gpus_measured == 4


def test_the_meters_are_asked_in_their_order_whatever_the_words_order():
    assert parse_meters("rapl, nvml") == ("nvml", "rapl")
    assert parse_meters("auto") == (
        "nvml", "zeus", "rapl", "pm_counters", "hwmon", "ipmi", "cpu-model"
    )  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [
    ("nvml,rpal", "no meter rpal: expected auto or some of nvml, "),
    ("", "no meter : expected auto"),
    ("cpu-model,codecarbon", "give one of cpu-model, codecarbon"),
])  # fmt: skip
def test_meters_that_do_not_exist_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_meters(text)
