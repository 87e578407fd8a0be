"""Reading a campaign or a site from YAML: every fault at once, with the path to the key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from llem.campaign.campaign import Campaign
from llem.campaign.deepspeed import faults_of as deepspeed_faults
from llem.campaign.merging import merged
from llem.campaign.quantities import Budget
from llem.campaign.site import Site
from llem.campaign.study.study import Study
from llem.campaign.study.sweep import faults_of as sweep_faults
from llem.campaign.words import in_words
from llem.errors import Fault, InputError, did_you_mean

M = TypeVar("M", bound=BaseModel)
# What `get_origin` makes of a mapping's type.
MappingOrigin = get_origin(Mapping[str, str])
WORKLOADS = ("training", "inference")
# Branches of unions, which pydantic names in a path though no user wrote them.
_BRANCHES = frozenset({"Site", "Arrival", "[key]"})


def load_campaign(path: str | Path) -> Campaign:
    """Read the `campaign.yaml` of a campaign of trainings. Raises InputError with every fault."""
    found = load_any_campaign(path)
    if isinstance(found, Campaign):
        return found
    text = "is inference: this is a study of deployments"
    raise InputError(str(path), [Fault("workload", text, "llem.run_study(path)")])


def load_any_campaign(path: str | Path) -> Campaign | Study:
    """Read a campaign or a study: its workload says which. Raises InputError with every fault."""
    return campaign_from(read_yaml(path), source=str(path), folder=Path(path).parent)


def campaign_from(
    values: Any, *, source: str = "campaign", folder: Path | None = None
) -> Campaign | Study:
    """Validate a mapping as a campaign, or as a study where its workload is inference.

    Raises InputError with every fault.

    `folder` is where a relative path of the site's files (template, carbon) starts.
    """
    faults: list[Fault] = []
    if isinstance(values, Mapping) and isinstance(values.get("site"), Mapping):
        site, found = _whole_site(values["site"], folder or Path.cwd())
        values = {**values, "site": site}
        faults = [Fault(f"site.{f.path}", f.message, f.hint) for f in found]
    training = values.get("training") if isinstance(values, Mapping) else None
    if isinstance(training, Mapping) and isinstance(training.get("deepspeed"), Mapping):
        faults += deepspeed_faults(training["deepspeed"])
    workload = values.get("workload", WORKLOADS[0]) if isinstance(values, Mapping) else ""
    if workload == "inference":
        return _study_from(values, source, faults)
    if workload and workload not in WORKLOADS:
        text = f"{workload!r} is not one of {', '.join(WORKLOADS)}"
        hint = did_you_mean(str(workload), WORKLOADS)
        raise InputError(source, [*faults, Fault("workload", text, hint)])
    return validated(Campaign, values, source, faults)


def _study_from(values: Mapping[str, Any], source: str, faults: Sequence[Fault]) -> Study:
    """A study with its options and what varies checked too. Raises InputError with every fault."""
    try:
        study = validated(Study, values, source, faults)
    except InputError as error:
        found = list(error.faults)
        # What can be read is looked at all the same, beside models and prompts of no account.
        wrong = {fault.path.partition(".")[0] for fault in found}
        names = values.get("models")
        sound = {k: values[k] for k in ("backend", "options", "sweep") if k in values}
        stand_in = {
            **{key: value for key, value in sound.items() if key not in wrong},
            "name": "x",
            "workload": "inference",
            "models": {name: {"config": {}} for name in names or ("x",)},
            "prompts": {"synthetic": {"input_tokens": 1, "output_tokens": 1, "count": 1}},
        }
        with suppress(ValidationError, TypeError):
            found += sweep_faults(Study.model_validate(stand_in))
        raise InputError(source, list(dict.fromkeys(found))) from None
    if found := sweep_faults(study):
        raise InputError(source, found)
    return study


def default_campaign() -> Campaign:
    """The built-in campaign that `llem quickstart` runs and `llem plan` falls back to."""
    return validated(Campaign, builtin_yaml("defaults", "quickstart"), "the built-in campaign")


def site_of(campaign: Campaign | Study) -> Site:
    """The campaign's site: given in place, the user's own profile, or one that llem ships."""
    return campaign.site if isinstance(campaign.site, Site) else load_site(campaign.site)


def load_site(name: str) -> Site:
    """A site by name: `$XDG_CONFIG_HOME/llem/sites/NAME.yaml`, then the shipped profiles."""
    own = user_sites() / f"{name}.yaml"
    source = str(own) if own.is_file() else f"the shipped site {name}"
    try:
        values, faults = _named_site(name, ())
    except _NoSuchSite as error:
        raise InputError("site", [Fault("", *error.args)]) from None
    return validated(Site, values, source, faults)


class _NoSuchSite(Exception):
    """A name that no profile has: what to say of it, and the hint."""


def _named_site(name: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], list[Fault]]:
    """The values of a profile with those of its bases below them, and what is wrong with bases."""
    own = user_sites() / f"{name}.yaml"
    # A user's profile may stand on the shipped one of the same name.
    if own.is_file() and str(own) not in seen:
        values = read_yaml(own)
        if not isinstance(values, Mapping):
            raise InputError(str(own), ["expected a mapping of keys to values"])
        return _whole_site({"name": name, **values}, own.parent, (*seen, str(own)))
    shipped = files("llem.campaign") / "sites" / f"{name}.yaml"
    if "/" in name or not shipped.is_file():
        known = site_names()
        text = f"no site profile {name!r}"
        if str(own) in seen:
            text = f"{name!r} stands on itself"
        raise _NoSuchSite(text, did_you_mean(name, known) or f"known sites: {', '.join(known)}")
    # The shipped ones stand on shipped ones alone.
    values = dict(builtin_yaml("sites", name))
    below = builtin_yaml("sites", values.pop("base")) if "base" in values else {}
    return merged(below, values), []


def _whole_site(
    values: Mapping[str, Any], folder: Path, seen: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[Fault]]:
    """A site's values over those of its `base`; mappings are merged key by key, `null` clears."""
    own = {key: value for key, value in values.items() if key != "base"}
    for key in ("template", "carbon_g_per_kwh"):
        file = own.get(key)
        if isinstance(file, str) and file:
            own[key] = str((folder / Path(file).expanduser()).resolve())
    if "base" not in values:
        return own, []
    base = values["base"]
    if not isinstance(base, str):
        return own, [Fault("base", f"{base!r} is not the name of a site")]
    try:
        below, faults = _named_site(base, seen)
    except _NoSuchSite as error:
        return own, [Fault("base", *error.args)]
    return merged(below, own), faults


def user_sites() -> Path:
    """The folder of the user's own site profiles."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "llem" / "sites"


def site_names() -> list[str]:
    """Every site profile that `load_site` finds, by name."""
    shipped = {f.name for f in (files("llem.campaign") / "sites").iterdir()}
    own = {f.name for f in user_sites().glob("*.yaml")} if user_sites().is_dir() else set()
    return sorted(name.removesuffix(".yaml") for name in shipped | own if name.endswith(".yaml"))


def builtin_yaml(folder: str, name: str) -> Any:
    """A YAML file that ships inside the package."""
    return _parse((files("llem.campaign") / folder / f"{name}.yaml").read_text(), f"{name}.yaml")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises InputError naming the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(str(path), ["there is no such file"]) from None
    except IsADirectoryError:
        raise InputError(str(path), ["is a folder; a YAML file is expected"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        fault = Fault(f"line {line}", "not UTF-8", "save the file in the encoding UTF-8")
        raise InputError(str(path), [fault]) from None
    except OSError as error:
        raise InputError(str(path), [f"cannot be read: {error}"]) from None
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses a key given twice, where YAML keeps the last in silence."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(source, [Fault(str(key), f"given twice (line {line})")])
            seen.add(key)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "YAML is indented by spaces, never by tabs" if r"'\t'" in problem else None
        raise InputError(source, [Fault(where, f"not YAML: {problem}", hint)]) from None


def validated(model: type[M], values: Any, source: str, faults: Sequence[Fault] = ()) -> M:
    """Read plain data as a model. Raises InputError with every fault and the path to its key.

    `faults` were found before, and are told with those found here.
    """
    if not isinstance(values, Mapping):
        raise InputError(source, ["expected a mapping of keys to values"])
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        found = [_fault(model, item) for item in error.errors(include_url=False)]
        raise InputError(source, list(dict.fromkeys([*faults, *found]))) from None
    if faults:
        raise InputError(source, list(faults))
    return result


def _fault(model: type[BaseModel], error: Any) -> Fault:
    # pydantic names the branch of a union in the path (`site.Site.nodes`): no key of the user's.
    path = [part for i, part in enumerate(error["loc"]) if i == 0 or not _is_branch(part)]
    shown = ".".join(str(part) for part in path)
    match error["type"]:
        case "extra_forbidden":
            known = _keys(_model_at(model, path[:-1]))
            near: str | None = (
                did_you_mean(str(path[-1]), known) or f"known keys: {', '.join(known)}"
            )
            return Fault(shown, "unknown key", near)
        case "missing":
            return Fault(shown, "is required")
        case "literal_error":
            expected = error["ctx"]["expected"]
            words = expected.replace(" or ", ",").split(",")
            known = [word.strip(" '") for word in words]
            near = did_you_mean(str(error["input"]), known)
            if len(known) == 1:
                return Fault(shown, f"{error['input']!r}: there is only {expected}")
            return Fault(shown, f"{error['input']!r} is not one of {expected}", near)
        case _:
            return Fault(shown, in_words(error))


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and part in _BRANCHES


def _keys(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    keys = sorted(field.alias or name for name, field in model.model_fields.items())
    return ["base", *keys] if model is Site else keys


def _model_at(model: type[BaseModel], path: list[Any]) -> type[BaseModel] | None:
    """The model that a path of keys leads to, through optional and union types."""
    here: type[BaseModel] | None = model
    of_mapping = False
    for part in path:
        if isinstance(part, int) or of_mapping:
            # An item of a list or a mapping: the items' model was found with it.
            of_mapping = False
            continue
        fields = {f.alias or n: f for n, f in here.model_fields.items()} if here else {}
        here = _model_in(fields[part].annotation) if part in fields else None
        of_mapping = part in fields and get_origin(fields[part].annotation) is MappingOrigin
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, MappingOrigin):
        return next((m for a in get_args(annotation) if (m := _model_in(a))), None)
    return None


def campaign_to_dict(campaign: Campaign | Study) -> dict[str, Any]:
    """The campaign as plain data that `campaign_from` reads back: budgets as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            fields = type(value).model_fields
            return {
                fields[name].alias or name: plain(getattr(value, name))
                for name in fields
                if getattr(value, name) is not None
            }
        if isinstance(value, Budget):
            return f"{value.value!r} {value.unit}"
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    result = plain(campaign)
    assert isinstance(result, dict)
    return result
