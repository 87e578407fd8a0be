"""What a calibration found: the shapes it measured, the device fitted to them, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeFloat, PositiveFloat, PositiveInt

from llem.campaign import Layout, Run, Runs, Site, validated
from llem.campaign.site import Strict
from llem.errors import Fault, InputError
from llem.planning.hardware import METERED_QUALITIES, Measured, accelerator_of
from llem.planning.shapes import work_of

CALIBRATION_SCHEMA = "llem-calibration-1"
CALIBRATION_FILE = "calibration.json"
# Work that lies this many times outside what was measured is worth a warning.
FAR = 10.0
# What is left out: a layout that no shape stands for.
LAYOUT = "layout"

# JSON has no NaN: what was not measured is null there, and has a reason beside it.
Measurement = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]


class ShapeFound(Strict):
    """One shape, measured in its steady part; see `llem.results.Steady` for the figures.

    `residual` is (step time by the fitted device - measured) / measured.
    """

    run_id: str
    params: PositiveInt
    flops_per_step: PositiveFloat
    batch_tokens: PositiveInt
    layout: Layout
    status: str
    steps: PositiveInt
    dropped: int
    step_s: PositiveFloat
    step_error: Measurement
    step_median_s: PositiveFloat
    tokens_per_s: PositiveFloat
    utilisation: PositiveFloat
    power_w: Measurement
    energy_quality: str
    energy_reason: str = ""
    peak_memory_bytes: Measurement
    predicted_memory_bytes: Measurement
    startup_s: Measurement
    residual: Measurement


class LeftOut(Strict):
    """What was not measured, and why."""

    what: str
    reason: str


class DeviceFound(Strict):
    """The device that fits the shapes best; each `_error` is relative but the overhead's.

    `utilisation` is null where the overhead of a step hides the work: the prior is kept then.
    """

    utilisation: Measurement
    utilisation_error: Measurement
    step_overhead_s: NonNegativeFloat
    step_overhead_error_s: Measurement
    scatter: NonNegativeFloat
    time_error: Measurement
    power_w: Measurement
    power_error: Measurement
    energy_quality: str
    energy_reason: str = ""
    startup_s: Measurement
    startup_error_s: Measurement


class Calibration(Strict):
    """calibration.json. `utilisation` is a part of `peak_flops`, the device's at the time."""

    llem: str
    created: str
    campaign: str
    plan: str
    site: str
    executor: str
    device_name: str
    peak_flops: PositiveFloat
    precision: str
    shapes: tuple[ShapeFound, ...]
    left_out: tuple[LeftOut, ...] = ()
    device: DeviceFound

    def to_dict(self) -> dict[str, Any]:
        return {"schema": CALIBRATION_SCHEMA, **self.model_dump()}

    def measured(self, site: Site) -> Measured:
        """What the planner takes from it, as a part of the peak that the site has now."""
        found = self.device
        peak = accelerator_of(site).peak_flops
        count = len(self.shapes)
        return Measured(
            "calibration",
            found.utilisation * self.peak_flops / peak,
            found.utilisation_error,
            found.power_w,
            found.power_error,
            f"{count} shape{'s' if count > 1 else ''} on {self.created[:10]}",
            step_overhead_s=found.step_overhead_s,
            startup_s=found.startup_s,
            time_error=found.time_error,
            power_metered=found.energy_quality in METERED_QUALITIES,
        )

    def check(self, site: Site, precision: str, *, source: str) -> None:
        """Raise InputError where its figures are another device's, or another precision's."""
        faults = [
            Fault(key, f"was measured with {measured!r}, the campaign has {asked!r}",
                  "measure again with `llem calibrate`")
            for key, measured, asked in (
                ("device_name", self.device_name, site.gpu.name),
                ("precision", self.precision, precision),
            )
            if measured != asked
        ]  # fmt: skip
        if faults:
            raise InputError(source, faults)

    def warnings(self, site: Site, runs: Iterable[Run]) -> list[str]:
        """What a reader of a plan should know of the figures that it rests on."""
        found = []
        if (self.site, self.executor) != (site.name, site.executor):
            found.append(
                f"the calibration is of site {self.site} ({self.executor}), the plan of "
                f"{site.name} ({site.executor})"
            )
        work = [s.flops_per_step / s.layout.ranks / s.layout.grad_accum for s in self.shapes]
        places = {(s.layout.nodes, s.layout.gpus_per_node, s.layout.zero_stage)
                  for s in self.shapes}  # fmt: skip
        elsewhere: dict[tuple[int, int, int], int] = {}
        far = 0
        for some in Runs.of(runs).replicates:
            run, layout = some.run, some.run.layout
            place = (layout.nodes, layout.gpus_per_node, layout.zero_stage)
            if place not in places:
                elsewhere[place] = elsewhere.get(place, 0) + len(some)
            if not min(work) / FAR <= work_of(run) <= max(work) * FAR:
                far += len(some)
        for (nodes, ranks, stage), count in sorted(elsewhere.items()):
            found.append(
                f"{count} run{'s' if count > 1 else ''} on {nodes} x {ranks} ranks with ZeRO "
                f"{stage}, which the calibration did not measure"
            )
        if far:
            found.append(
                f"{far} run{'s' if far > 1 else ''} of more than {FAR:g} times more or less work "
                "a step than the calibration measured"
            )
        return found


def load_calibration(path: str | Path) -> Calibration:
    """Read calibration.json, or that of the folder of `llem calibrate`.

    Raises InputError naming the file and every key that is wrong.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "results" / CALIBRATION_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "make one with `llem calibrate`"
        raise InputError(str(file), [Fault("", "there is no such file", hint)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(file), [f"cannot be read: {error}"]) from None
    except ValueError as error:
        raise InputError(str(file), [f"not JSON, or cut off: {error}"]) from None
    if not isinstance(values, dict):
        raise InputError(str(file), ["not a calibration"])
    schema = values.pop("schema", None)
    if schema != CALIBRATION_SCHEMA:
        raise InputError(str(file), [Fault("schema", f"is {schema!r}, not {CALIBRATION_SCHEMA!r}")])
    found = validated(Calibration, values, str(file))
    if not found.shapes:
        raise InputError(str(file), [Fault("shapes", "is empty: nothing was measured")])
    return found
