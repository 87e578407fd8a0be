"""The library behind the commands: each stage of a campaign as one call on its folder.

    plan_campaign -> run_campaign (submit, wait) -> finish (aggregate -> fit -> report)

This is the one module that joins the floors below; the command line calls it and prints.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign import Budget, TokenData
from llem.cluster import (
    CampaignFolder,
    CampaignState,
    LocalOutcome,
    finite_or_none,
    render_files,
    run_locally,
    submit,
    wait,
    write_json,
)
from llem.errors import Fault, InputError, LlemError
from llem.planning import OwnModel, Plan, make_plan, write_python_sources

if TYPE_CHECKING:
    from llem.campaign import Campaign
    from llem.results import Aggregation, Observation

DEFAULT_EVALUATION_TOKENS = 10_000_000
# Without a word from the user a twentieth of the text is held out, at most ten million tokens.
EVALUATION_SHARE = 0.05
FIT_FILE = "fit.json"
OBSERVATIONS_FILE = "observations.csv"


@dataclass(frozen=True)
class Planned:
    """A plan and where it was written; `changed` is False where it stood there already."""

    plan: Plan
    folder: CampaignFolder
    changed: bool


@dataclass(frozen=True)
class Finished:
    """What a campaign came to: the law (or why there is none) and its report."""

    fit: dict[str, Any] | None
    reason: str
    report: Path
    problems: tuple[str, ...]


def plan_campaign(
    campaign: Campaign,
    *,
    out: str | Path,
    base: str | Path = ".",
    budget: Budget | None = None,
    replace_old: bool = False,
    write: bool = True,
) -> Planned:
    """Plan `campaign` into the folder `out`; a second identical call changes nothing.

    `base` is the folder that a relative `data.path` starts from. With `write=False` nothing is
    written. Raises InputError, BudgetError.
    """
    folder = CampaignFolder(Path(out))
    with tempfile.TemporaryDirectory(prefix="llem-plan-") as scratch:
        place = folder.root if write else Path(scratch)
        data = resolve_data(campaign, place, base=Path(base))
    own: OwnModel | None = None
    code: dict[str, str] = {}
    if campaign.model.family == "custom":
        own, code = own_model(campaign, Path(base).resolve())
    plan = make_plan(campaign, budget=budget, data=data, own=own)
    files = render_files(plan, image_digest=image_digest(plan))
    changed = False
    if write:
        paths = {folder.jobs / name: text for name, text in files.items()}
        paths |= {folder.root / name: text for name, text in code.items()}
        changed = folder.write_plan(plan, paths, replace=replace_old)
    return Planned(plan, folder, changed)


def resolve_data(campaign: Campaign, root: Path, *, base: Path) -> TokenData:
    """The campaign's data as a token file: the built-in text, a text read as bytes, or ids.

    The built-in text is written into the campaign folder `root` and named relative to it, so
    that every rank finds it; the user's own file is named by its absolute path.
    """
    from llem.campaign.tokenfile import token_file

    choice = campaign.data
    if choice.path:
        path = (base / Path(choice.path).expanduser()).resolve()
        named = str(path)
    else:
        path = write_python_sources(root / "data" / "python-sources.bin")
        named = str(path.relative_to(root))
    dtype = choice.dtype or ("uint8" if campaign.model.vocabulary <= 256 else "uint16")
    wanted = choice.evaluation_tokens
    try:
        data = token_file(path, dtype=dtype, evaluation_tokens=wanted or 1)
    except InputError as error:
        raise InputError(
            "campaign", [Fault("data", str(fault)) for fault in error.faults]
        ) from None
    if wanted is None:
        held_out = min(DEFAULT_EVALUATION_TOKENS, int(EVALUATION_SHARE * data.tokens))
        data = replace(data, evaluation_tokens=max(held_out, campaign.model.context))
    return replace(data, path=named)


def image_digest(plan: Plan) -> str:
    """`sha256:...` of the site's image file where it can be read here, else empty."""
    container = plan.site.container
    if container is None or not Path(container.image).is_file():
        return ""
    from llem.cluster.image import digest

    return f"sha256:{digest(Path(container.image))}"


def own_model(campaign: Campaign, base: Path) -> tuple[OwnModel, dict[str, str]]:
    """The user's own class: how to count it, and its code as files below `code/`.

    A module or package beside the campaign file is shipped with the campaign, so that ranks on
    other nodes and in containers find the very code that was planned; an installed package is
    theirs to have. Counting builds the class on torch's meta device, which takes no memory.
    """
    choice = campaign.model
    assert choice.class_path and choice.size
    class_path, size = choice.class_path, choice.size
    top = class_path.partition(":")[0].partition(".")[0]
    found = [base / f"{top}.py"] if (base / f"{top}.py").is_file() else []
    if (base / top).is_dir():
        found = sorted((base / top).rglob("*.py"))
    files = {f"code/{path.relative_to(base)}": path.read_text("utf-8") for path in found}

    def count(value: int) -> int:
        try:
            import torch
        except ImportError:
            raise LlemError(
                "counting the parameters of a model class needs torch, which is not installed",
                remedy="plan inside the image, or install llem[train]",
            ) from None
        from llem.training import count_params, load_class

        if files and str(base) not in sys.path:
            sys.path.insert(0, str(base))
        with torch.device("meta"):
            model = load_class(class_path)(**{size: value}, **choice.arguments)
        return int(count_params(model))

    source = ""
    if files:
        content = "\0".join(text for item in sorted(files.items()) for text in item)
        source = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    # A search for the budget asks for the same sizes many times.
    return OwnModel(lru_cache(count), source), files


def run_campaign(
    folder: CampaignFolder,
    plan: Plan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
) -> LocalOutcome | CampaignState:
    """Run all that is not settled, here or through SLURM, and return when nothing works any more.

    Safe to call again after an interruption: it goes on from what the files say.
    """
    if plan.site.executor == "local":
        return run_locally(folder, plan, watch=watch)
    submit(folder, plan, finish=False)
    return wait(folder, plan, watch=watch)


def aggregate_campaign(
    folder: CampaignFolder,
    *,
    pue: float | None = None,
    carbon_g_per_kwh: float | None = None,
    price_per_kwh: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Aggregation:
    """Raw records → observations, written to `results/observations.csv`.

    What is left None is taken from the site; nothing runs again when it changes.
    """
    from llem.results import aggregate, write_observations

    site = folder.plan_values()["site"]
    prices = site.get("prices", {})

    def late(given: float | None, default: Any) -> Any:
        return default if given is None else given

    aggregation = aggregate(
        folder.root,
        pue=late(pue, site.get("pue", 1.0)),
        carbon_g_per_kwh=late(carbon_g_per_kwh, site.get("carbon_g_per_kwh")),
        price_per_kwh=late(price_per_kwh, prices.get("per_kwh")),
        price_per_gpu_hour=late(price_per_gpu_hour, prices.get("per_gpu_hour")),
        peak_flops_per_gpu=site["device"]["peak_flops"],
    )
    write_observations(aggregation.observations, folder.results / OBSERVATIONS_FILE)
    return aggregation


def fit_observations(
    rows: Sequence[Mapping[str, Any]],
    *,
    law: str = "chinchilla",
    targets: list[Any] | tuple[Any, ...] = (),
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    delta: float = 1e-3,
    exclude: frozenset[str] = frozenset(),
    excluded: tuple[Mapping[str, str], ...] = (),
) -> dict[str, Any]:
    """Fit a law to observations (mappings with `params`, `tokens`, `loss` and more), as fit.json.

    Rows that did not complete, have no loss or are named in `exclude` are left out, by name and
    with the reason. Raises ScalingDataError where the rest cannot carry a law.
    """
    from llem.scaling import Estimator, fit_law

    left_out = [dict(item) for item in excluded]
    used = []
    for row in rows:
        run_id = str(row.get("run_id", ""))
        status = row.get("status") or "completed"
        if run_id in exclude:
            left_out.append({"run_id": run_id, "reason": "excluded by the user"})
        elif status != "completed":
            why = str(row.get("reason") or "")
            left_out.append({"run_id": run_id, "reason": f"{status}: {why}" if why else status})
        elif not math.isfinite(_number(row.get("loss"))):
            left_out.append({"run_id": run_id, "reason": "no evaluation loss"})
        else:
            used.append(row)

    def column(name: str) -> list[float] | None:
        values = [_number(row.get(name)) for row in used]
        return values if any(math.isfinite(v) for v in values) else None

    fit = fit_law(
        column("params") or [],
        column("tokens") or [],
        column("loss") or [],
        law=law,
        run_id=[str(row.get("run_id", index)) for index, row in enumerate(used)],
        weight=column("weight"),
        flops=column("flops"),
        energy_j=column("energy_j"),
        duration_s=column("duration_s"),
        gpu_seconds=column("gpu_seconds"),
        estimator=Estimator(loss="huber", delta=delta),
        bootstrap=bootstrap,
        level=level,
        seed=seed,
        targets=tuple(targets),
        excluded=tuple(left_out),
    )
    return dict(finite_or_none(fit.to_dict()))


def fit_campaign(
    folder: CampaignFolder,
    *,
    rows: tuple[Observation, ...] | None = None,
    targets: tuple[Any, ...] = (),
    **options: Any,
) -> dict[str, Any]:
    """Fit the campaign's law to its observations and write `results/fit.json`."""
    from dataclasses import asdict

    from llem.results import read_observations

    values = folder.plan_values()
    if rows is None:
        path = folder.results / OBSERVATIONS_FILE
        if not path.is_file():
            raise InputError(str(path), ["there is no such file: run `llem aggregate` first"])
        rows = read_observations(path)
    fit = fit_observations(
        [asdict(row) for row in rows],
        law=options.pop("law", None) or values["campaign"].get("law", "chinchilla"),
        targets=targets or (values["design"]["target_flops"],),
        **options,
    )
    fit["provenance"] = {
        **(fit.get("provenance") or {}),
        "campaign": values["campaign"]["name"],
        "plan": values["digest"],
        "llem": values["llem"],
    }
    write_json(folder.results / FIT_FILE, fit)
    return fit


def report_campaign(folder: CampaignFolder, *, fit_reason: str = "") -> Path:
    """Write `results/report.html` and its plots from what lies in `results/`.

    `fit_reason` says why there is no fit.json, where there is none.
    """
    from dataclasses import asdict

    from llem.report import write_report
    from llem.results import read_observations

    plan = folder.plan_values()
    observations = folder.results / OBSERVATIONS_FILE
    if not observations.is_file():
        fault = Fault("", "there is no such file", "run `llem aggregate` first")
        raise InputError(str(observations), [fault])
    fit_file = folder.results / FIT_FILE
    fit = json.loads(fit_file.read_text()) if fit_file.is_file() else None
    return write_report(
        folder.results,
        observations=[asdict(row) for row in read_observations(observations)],
        fit=fit,
        plan=plan,
        title=plan["campaign"]["name"],
        fit_reason=fit_reason,
    )


def finish(folder: CampaignFolder, **options: Any) -> Finished:
    """Aggregate, fit and report; where no law can be fitted the report says why."""
    aggregation = aggregate_campaign(folder)
    fit: dict[str, Any] | None = None
    reason = ""
    try:
        fit = fit_campaign(folder, rows=aggregation.observations, **options)
    except InputError as error:
        reason = str(error)
        # A law of an earlier state of the campaign must not pass for one of this state.
        (folder.results / FIT_FILE).unlink(missing_ok=True)
    return Finished(fit, reason, report_campaign(folder, fit_reason=reason), aggregation.problems)


def _number(value: Any) -> float:
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
