"""Unmodified zeus and codecarbon, and llem's own reader, on the stand-in tree in the place where
they look for it: a mount of their own over /sys/class."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import llem

# All in one namespace: the counters move, each reader brackets its readings by the wall clock.
SCRIPT = r"""
set -e
mount -t tmpfs none /sys/class
"$1" "$2" /sys --sockets 2 --dram --seconds 120 > "$4/ticker" &
trap "kill $!" EXIT
until grep -q ready "$4/ticker"; do sleep 0.05; done
"$1" "$3" "$5" "$(dirname "$2")"
"""

READERS = r"""
import json, sys, time

def llem():
    from llem.energy import RaplMeter
    meter = RaplMeter(environ={})
    devices = meter.probe().devices
    return lambda: {d.uuid: meter.read(d).energy_mj for d in devices}, lambda a, b: {
        kind: sum(b[d.uuid] - a[d.uuid] for d in devices if d.domain == kind) / 1e3
        for kind in ("package", "dram")}

def zeus():
    from zeus.device.cpu import get_cpus
    cpus = get_cpus().cpus
    def read():
        return [cpu.get_total_energy_consumption() for cpu in cpus]
    read()  # starts its watchers of the wraps
    return read, lambda a, b: {
        "package": sum(y.cpu_mj - x.cpu_mj for x, y in zip(a, b)) / 1e3,
        "dram": sum(y.dram_mj - x.dram_mj for x, y in zip(a, b)) / 1e3}

def codecarbon():
    from codecarbon.core.cpu import IntelRAPL
    from codecarbon.core.units import Time
    rapl = IntelRAPL()
    rapl.start()
    def read():
        found = rapl.get_cpu_details(Time.from_seconds(1.0))
        return sum(v for k, v in found.items() if "Energy" in k) * 3.6e6
    return read, lambda a, b: {"package": b}

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    from fake_sysfs import FakePowercap
    tree = FakePowercap(sockets=2, dram=(0, 1))
    read, between = globals()[sys.argv[1]]()
    t0 = time.time(); a = read(); t1 = time.time()
    time.sleep(2.0)
    t2 = time.time(); b = read(); t3 = time.time()
    print(json.dumps({kind: (tree.energy_j(t1, t2, names=(kind,)), joules,
                             tree.energy_j(t0, t3, names=(kind,)))
                      for kind, joules in between(a, b).items()}))
"""


def usable() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/sys/class"], capture_output=True
    )
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["llem", "zeus", "codecarbon"])
def test_a_reader_of_rapl_measures_the_stand_in_right(reader, tmp_path, powercap_program):
    if find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    if not usable():
        pytest.skip("unshare -rm with a mount over /sys/class is not to be had here")
    script = tmp_path / "readers.py"
    script.write_text(READERS)
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", SCRIPT, "bash", sys.executable, str(powercap_program),
         str(script), str(tmp_path), reader],
        capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(llem.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for kind, (least, found, most) in json.loads(done.stdout.splitlines()[-1]).items():
        # The truth of the bracket, and half a percent for the program that moves the counters.
        assert 0.995 * least <= found <= 1.005 * most, (kind, least, found, most)
