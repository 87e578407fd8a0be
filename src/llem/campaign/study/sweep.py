"""What a study varies: from the sweep of the file to one setting after another.

Each key and each value is looked at once, however many deployments they end in: a wrong key is
one fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from pydantic import ValidationError

from llem.campaign.merging import merged
from llem.campaign.options import BACKENDS, unknown_option
from llem.campaign.study.study import ArrivalChoice, PromptChoice, Rule, Study
from llem.campaign.words import in_words
from llem.errors import Fault, InputError, did_you_mean

# What may vary beside the options of the backends.
KEYS = (
    "model", "backend", "arrival", "arrival.rate", "arrival.poisson",
    "layout.nodes", "layout.gpus_per_node",
    "prompts.synthetic.input_tokens", "prompts.synthetic.output_tokens", "prompts.synthetic.count",
    "prompts.jsonl", "prompts.dataset", "prompts.builtin", "prompts.field",
    "prompts.output_tokens", "prompts.count", "prompts.seed",
)  # fmt: skip
OPTION = "options."
PROMPTS = "prompts."
_SIGNS = (">=", "<=", "!=", ">", "<")


@dataclass(frozen=True)
class Setting:
    """One deployment as it is asked for, before anything is known of models, files or the site.

    `options` are those of its backend alone. `layout` holds what was said of nodes and
    gpus_per_node; `place` says where in the file the setting comes from.
    """

    model: str
    backend: str
    options: Mapping[str, Any]
    prompts: PromptChoice
    arrival: ArrivalChoice | None
    layout: Mapping[str, int]
    place: str


@dataclass(frozen=True)
class Swept:
    """Every setting of a study in the order of the file, and what a reader should know of it."""

    settings: tuple[Setting, ...]
    notes: tuple[str, ...]


def sweep(study: Study) -> Swept:
    """Every setting that a study asks for; exclusions are not yet applied.

    Raises InputError with every fault: unknown keys and options, wrong values, uneven zip groups.
    """
    checked = _Checked(study)
    if checked.faults:
        raise InputError("campaign", list(dict.fromkeys(checked.faults)))
    found = list(checked.settings())
    if checked.faults:
        raise InputError("campaign", list(dict.fromkeys(checked.faults)))
    return Swept(tuple(found), tuple(checked.notes))


def faults_of(study: Study) -> list[Fault]:
    """What is wrong with the keys and values that vary, and with options."""
    return list(dict.fromkeys(_Checked(study).faults))


class _Checked:
    """A study's sweep with every key and value read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.backends = self._backends()
        self.faults: list[Fault] = []
        self.options = {
            name: self._value(f"{OPTION}{name}", value, f"options.{name}")
            for name, value in study.options.items()
        }
        sweep = study.sweep
        self.dimensions: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = []
        for key, values in sweep.grid.items():
            path = f"sweep.grid.{key}"
            self.dimensions.append(((key,), [(v,) for v in self._values(key, values, path)]))
        for number, group in enumerate(sweep.zipped):
            self._group(group, f"sweep.zip.{number}")
        self.listed = [
            {key: self._value(key, value, f"sweep.list.{number}.{key}")
             for key, value in entry.items()}
            for number, entry in enumerate(sweep.listed)
        ]  # fmt: skip
        for number, rule in enumerate(sweep.exclude):
            for key in rule.when:
                self._known(key, f"sweep.exclude.{number}.when.{key}")
        for keys, _ in self.dimensions:
            for key in keys:
                if sum(key in others for others, _ in self.dimensions) > 1:
                    self.faults.append(Fault(f"sweep.{key}", "varies in two places"))
        self.notes = list(self._notes())
        # A few choices are shared by thousands of settings.
        self._arrival = lru_cache(None)(self._read_arrival)
        self._prompts = lru_cache(None)(self._read_prompts)

    def _backends(self) -> tuple[str, ...]:
        """Every backend that a deployment may have."""
        study = self.study
        asked = [*study.backend, *study.sweep.grid.get("backend", ())]
        asked += [v for group in study.sweep.zipped for v in group.get("backend", ())]
        asked += [entry["backend"] for entry in study.sweep.listed if "backend" in entry]
        return tuple(dict.fromkeys(name for name in asked if name in BACKENDS))

    def _group(self, group: Mapping[str, Sequence[Any]], path: str) -> None:
        columns = {key: self._values(key, values, f"{path}.{key}") for key, values in group.items()}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            self.faults.append(Fault(path, "what varies together must be equally long", told))
        elif columns:
            self.dimensions.append((tuple(columns), list(zip(*columns.values(), strict=True))))

    def _values(self, key: str, values: Sequence[Any], path: str) -> list[Any]:
        if not self._known(key, path):
            return list(values)
        if not values:
            self.faults.append(Fault(path, "is an empty list"))
        return [self._value(key, v, f"{path}.{n}", known=True) for n, v in enumerate(values)]

    def _known(self, key: str, path: str) -> bool:
        """Whether a key may vary; a fault where not."""
        if key in KEYS:
            return True
        name = key.removeprefix(OPTION)
        if name != key:
            if any(name in BACKENDS[backend] for backend in self.backends):
                return True
            self.faults.append(unknown_option(self.backends, name, path=path))
            return False
        known = [*KEYS, *(f"{OPTION}{name}" for b in self.backends for name in BACKENDS[b])]
        hint = did_you_mean(key, known) or f"options are `options.NAME`; else {', '.join(KEYS)}"
        self.faults.append(Fault(path, "is nothing that varies", hint))
        return False

    def _value(self, key: str, value: Any, path: str, *, known: bool = False) -> Any:
        """A value as its key's own type; a fault where it is none."""
        if not known and not self._known(key, path):
            return value
        try:
            return self._read(key, value)
        except ValueError as error:
            self.faults.append(Fault(path, str(error)))
            return value

    def _read(self, key: str, value: Any) -> Any:
        if key.startswith(OPTION):
            name, problem = key.removeprefix(OPTION), None
            for backend in self.backends:
                if name in BACKENDS[backend]:
                    try:
                        return BACKENDS[backend][name].read(value)
                    except ValueError as error:
                        problem = error
            assert problem is not None
            raise problem
        if key in ("model", "backend"):
            choices = list(self.study.models) if key == "model" else list(BACKENDS)
            if value not in choices:
                hint = did_you_mean(str(value), choices) or f"one of {', '.join(choices)}"
                raise ValueError(f"there is no {key} {value!r} ({hint})")
        if key.startswith(PROMPTS) and not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is neither a text nor a number")
        if key.startswith("layout.") and not (type(value) is int and value > 0):
            raise ValueError(f"{value!r} is not a positive whole number")
        return value

    def _notes(self) -> Iterator[str]:
        asked = [*self.options, *(k.removeprefix(OPTION) for keys, _ in self.dimensions
                                  for k in keys if k.startswith(OPTION))]  # fmt: skip
        for name in dict.fromkeys(asked):
            lacking = [b for b in self.backends if name not in BACKENDS[b]]
            if lacking:
                yield f"options.{name} is not of {' and '.join(lacking)}, and left out there"

    def settings(self) -> Iterator[Setting]:
        """Every setting: the grid with the groups, then the list."""
        dimensions = list(self.dimensions)
        varied = {key for keys, _ in dimensions for key in keys}
        for key, all_of in (("backend", self.study.backend), ("model", tuple(self.study.models))):
            if key not in varied:
                dimensions.insert(0, ((key,), [(value,) for value in all_of]))
        if self.dimensions or not self.listed:
            yield from self._product(dimensions, "sweep")
        for number, entry in enumerate(self.listed):
            dimensions = [((key,), [(value,)]) for key, value in entry.items()]
            for key, all_of in (
                ("backend", self.study.backend),
                ("model", tuple(self.study.models)),
            ):
                if key not in entry:
                    dimensions.insert(0, ((key,), [(value,) for value in all_of]))
            yield from self._product(dimensions, f"sweep.list.{number}")

    def _product(
        self, dimensions: Sequence[tuple[tuple[str, ...], list[tuple[Any, ...]]]], place: str
    ) -> Iterator[Setting]:
        """Every combination, the last dimension fastest; each once for a backend without one."""
        backends = [v for keys, values in dimensions if "backend" in keys
                    for v in (row[keys.index("backend")] for row in values)]  # fmt: skip
        absent = any(
            key.startswith(OPTION) and key.removeprefix(OPTION) not in BACKENDS[backend]
            for keys, _ in dimensions for key in keys for backend in backends
        )  # fmt: skip
        names = [key for keys, _ in dimensions for key in keys]
        seen: set[Any] = set()
        for rows in product(*(values for _, values in dimensions)):
            given = dict(zip(names, (v for row in rows for v in row), strict=True))
            setting = self._setting(given, place)
            if absent:
                # Where the backend has no such option, its values make one deployment, not many.
                key = repr((setting.model, setting.backend, setting.options, setting.prompts,
                            setting.arrival, setting.layout))  # fmt: skip
                if key in seen:
                    continue
                seen.add(key)
            yield setting

    def _setting(self, given: Mapping[str, Any], place: str) -> Setting:
        study = self.study
        known = BACKENDS[given["backend"]]
        options = {n: v for n, v in self.options.items() if n in known}
        prompts: list[tuple[str, Any]] = []
        layout = dict(study.layout.model_dump()) if study.layout else {}
        arrival: Any = "asked"
        for key, value in given.items():
            if key.startswith(OPTION):
                name = key.removeprefix(OPTION)
                if name in known:
                    options[name] = value
            elif key.startswith(PROMPTS):
                prompts.append((key.removeprefix(PROMPTS), value))
            elif key.startswith("layout."):
                layout[key.removeprefix("layout.")] = value
            elif key.startswith("arrival"):
                arrival = {key.removeprefix("arrival."): value} if "." in key else value
        return Setting(
            model=given["model"],
            backend=given["backend"],
            options=options,
            prompts=self._prompts(tuple(prompts)) if prompts else study.prompts,
            arrival=self._arrival_of(arrival),
            layout=layout,
            place=place,
        )

    def _arrival_of(self, value: Any) -> ArrivalChoice | None:
        if value == "asked":
            asked = self.study.arrival
            return asked if isinstance(asked, ArrivalChoice) else None
        if value == "batch":
            return None
        return self._arrival(tuple(sorted(value.items())) if isinstance(value, Mapping) else value)

    def _read_arrival(self, items: Any) -> ArrivalChoice | None:
        try:
            return ArrivalChoice.model_validate(dict(items))
        except (ValidationError, ValueError, TypeError):
            text = f"{items!r} is neither batch nor {{rate: R}} nor {{poisson: R}}"
            self.faults.append(Fault("sweep.arrival", text))
            return None

    def _read_prompts(self, changed: tuple[tuple[str, Any], ...]) -> PromptChoice:
        """The study's prompts with some keys changed; another kind takes the place of its own."""
        values = self.study.prompts.model_dump(exclude_none=True)
        for key, value in changed:
            kind, _, inner = key.partition(".")
            if inner:
                values = merged(values, {kind: {inner: value}})
                continue
            if kind in ("jsonl", "dataset", "builtin"):
                values = {k: v for k, v in values.items()
                          if k not in ("jsonl", "dataset", "builtin", "synthetic")}  # fmt: skip
            values[key] = value
        try:
            return PromptChoice.model_validate(values)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                where = ".".join(["sweep", "prompts", *map(str, item["loc"])])
                self.faults.append(Fault(where, in_words(item)))
            return self.study.prompts


def matches(rule: Rule, values: Mapping[str, Any]) -> bool:
    """Whether a deployment has, for each key of a rule, (one of) the rule's value(s).

    `values` are by dotted key. Text such as `">= 32"` compares numbers.
    """
    return all(_is(values.get(key), wanted) for key, wanted in rule.when.items())


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        return any(_is(value, one) for one in wanted)
    if isinstance(wanted, str):
        sign = next((s for s in _SIGNS if wanted.startswith(s)), None)
        if sign is not None:
            return _compares(value, sign, wanted.removeprefix(sign).strip())
    return bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool))


def _compares(value: Any, sign: str, text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return sign == "!=" and value != text
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return {
        ">=": value >= number,
        "<=": value <= number,
        "!=": value != number,
        ">": value > number,
        "<": value < number,
    }[sign]
