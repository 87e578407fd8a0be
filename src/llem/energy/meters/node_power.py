"""The power of a node, or of a Grace module, from meters too slow to be waited for.

    HwmonMeter   /sys/class/hwmon/*/power1_{average,input} of the driver `power_meter` (ACPI), uW
    IpmiMeter    `ipmitool dcmi power reading`, where the program and /dev/ipmi* may be used

Each source is read by a thread of its own at its own rate; a sample is what it read last, with the
time when it did. Power is integrated late (quality `integral`): good for long runs and as a check,
and never put before a counter. Redfish would need the password of the node's controller.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.energy.meters.sysfs import read_int, read_text, short_boot_id, sysfs

HWMON_INTERVAL_S = 1.0
IPMI_INTERVAL_S = 2.0
IPMI_TIMEOUT_S = 10.0
# A source that has told nothing for so many of its intervals does not answer.
LATE_INTERVALS = 5
IPMI_DEVICES = ("/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0")
# What NVIDIA's Grace machines write into power1_oem_info, and what it is. The socket's own rails
# ("CPU Power Socket 0", "SysIO Power Socket 0") are parts of "Grace Power".
GRACE = {"Module Power": "module", "Grace Power": "package"}
CONTAINS = {
    "node": ("gpu", "module", "package", "dram"),
    "module": ("gpu", "package", "dram"),
    "package": ("dram",),
}


@dataclass(frozen=True)
class Polled:
    """One reading: when it began (monotonic), how long it took, and the power."""

    t_ns: int
    read_ns: int
    power_w: float


class Poller:
    """Reads a slow source again and again in a thread, and keeps its last answer."""

    def __init__(self, read_w: Callable[[], float], *, interval_s: float) -> None:
        self._read_w = read_w
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Polled | MeterError | None = None
        self._last_at_ns = 0

    def start(self) -> Polled:
        """Read once here, then in the background. Raises MeterError where it cannot be read."""
        first = self._poll()
        if isinstance(first, MeterError):
            raise first
        self._thread = threading.Thread(target=self._run, name="llem-poller", daemon=True)
        self._thread.start()
        return first

    def last(self) -> Polled:
        """The newest reading. Raises MeterError where it failed, or is too old to be one."""
        last = self._last
        if isinstance(last, Polled):
            age_s = (time.monotonic_ns() - last.t_ns) / 1e9
            if age_s <= LATE_INTERVALS * self._interval_s:
                return last
            raise MeterError(f"no answer for {age_s:.0f} s")
        raise last or MeterError("not read yet")

    def stop(self) -> None:
        """Ends the thread after the reading that it may be in; does not wait for that."""
        self._stopped.set()

    def _poll(self) -> Polled | MeterError:
        start_ns = time.monotonic_ns()
        try:
            power_w = self._read_w()
            self._last = Polled(start_ns, time.monotonic_ns() - start_ns, power_w)
        except MeterError as error:
            self._last = error
        return self._last

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._poll()


class _PolledMeter:
    """What both meters have in common: devices with a poller each."""

    name = ""

    def __init__(self, *, boot_id: str | None) -> None:
        self._boot_id = boot_id
        self._pollers: dict[str, Poller] = {}

    def _device(
        self, label: str, name: str, domain: str, read_w: Callable[[], float], interval_s: float
    ) -> Device:
        """Raises MeterError where the source cannot be read, or reads no power."""
        poller = Poller(read_w, interval_s=interval_s)
        if not poller.start().power_w > 0:
            poller.stop()
            raise MeterError("reads 0 W")
        uuid = f"{self.name}-{short_boot_id(self._boot_id)}-{label}"
        self._pollers[uuid] = poller
        return Device(
            uuid=uuid,
            name=name,
            domain=domain,
            contains=CONTAINS[domain],
            source=self.name,
            counter=False,
            quality="integral",
            reason=f"a slow meter of power, read every {interval_s:g} s and integrated",
            power="average",
            interval_s=interval_s,
            node_wide=True,
        )

    def read(self, device: Device) -> Reading:
        try:
            last = self._pollers[device.uuid].last()
        except MeterError as error:
            raise MeterError(f"{device.uuid}: {error}") from None
        return Reading(power_mw=last.power_w * 1e3, t_ns=last.t_ns, read_ns=last.read_ns)

    def close(self) -> None:
        for poller in self._pollers.values():
            poller.stop()
        self._pollers.clear()


class HwmonMeter(_PolledMeter):
    """ACPI power meters: the node's, or those of a Grace module."""

    name = "hwmon"

    def __init__(
        self,
        *,
        root: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        boot_id: str | None = None,
        interval_s: float = HWMON_INTERVAL_S,
    ) -> None:
        """`root` is where hwmon's folders are, else `<sysfs>/class/hwmon`."""
        super().__init__(boot_id=boot_id)
        self._root = root or sysfs(environ) / "class" / "hwmon"
        self._interval_s = interval_s

    def probe(self) -> Probe:
        devices: list[Device] = []
        reasons: list[str] = []
        for folder in sorted(self._root.glob("hwmon*")) if self._root.is_dir() else []:
            try:
                if read_text(folder / "name") != "power_meter":
                    continue
                device = self._meter(folder)
            except MeterError as error:
                reasons.append(f"hwmon: {folder.name}: {error}")
                continue
            if device is not None:
                devices.append(device)
        if not devices and not reasons:
            reasons.append(f"hwmon: no ACPI power meter in {self._root}")
        return Probe(devices=tuple(devices), reasons=tuple(reasons))

    def _meter(self, folder: Path) -> Device | None:
        oem = ""
        for place in (folder / "power1_oem_info", folder / "device" / "power1_oem_info"):
            if place.is_file():
                oem = read_text(place)
        domain = next((d for words, d in GRACE.items() if oem.startswith(words)), "node")
        if "Socket" in oem and domain == "node":
            return None  # a rail of a socket that is measured as a whole
        files = [folder / f"power1_{kind}" for kind in ("average", "input")]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise MeterError("shows no power")
        return self._device(
            folder.name,
            f"ACPI power meter{f' ({oem})' if oem else ''}",
            domain,
            lambda: read_int(file) / 1e6,
            self._interval_s,
        )


class IpmiMeter(_PolledMeter):
    """The node's controller, by `ipmitool dcmi power reading`."""

    name = "ipmi"

    def __init__(
        self,
        *,
        program: str = "ipmitool",
        devices: Sequence[str] = IPMI_DEVICES,
        boot_id: str | None = None,
        interval_s: float = IPMI_INTERVAL_S,
    ) -> None:
        super().__init__(boot_id=boot_id)
        self._program = program
        self._devices = devices
        self._interval_s = interval_s

    def probe(self) -> Probe:
        program = shutil.which(self._program)
        if program is None:
            return Probe(reasons=(f"ipmi: no program {self._program}",))
        found = [path for path in self._devices if os.path.exists(path)]
        if not any(os.access(path, os.R_OK | os.W_OK) for path in found):
            text = f"{found[0]} is not open to this user" if found else f"no {self._devices[0]}"
            return Probe(reasons=(f"ipmi: {text}",))
        command = [program, "dcmi", "power", "reading"]
        try:
            device = self._device(
                "node", "node by IPMI DCMI", "node", lambda: _ask(command), self._interval_s
            )
        except MeterError as error:
            return Probe(reasons=(f"ipmi: {error}",))
        return Probe(devices=(device,))


def parse_dcmi(text: str) -> float:
    """Watts in what `ipmitool dcmi power reading` prints. Raises ValueError."""
    found = re.search(r"Instantaneous power reading:\s*(\d+)\s*Watts", text)
    if found is None:
        raise ValueError("no instantaneous power reading in ipmitool's answer")
    if re.search(r"Power reading state is:\s*deactivated", text):
        raise ValueError("the node's controller has power readings deactivated")
    return float(found[1])


def _ask(command: Sequence[str]) -> float:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IPMI_TIMEOUT_S, check=False
        )
        if done.returncode:
            first = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
            raise MeterError(f"ipmitool: {first}")
        return parse_dcmi(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise MeterError(str(error)) from None
