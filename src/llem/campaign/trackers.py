"""Trackers as the campaign file names them: `tensorboard`, `{wandb: {project: x}}`, ...

Secrets have no place in a campaign file, which is copied, shown and shared: trackers take theirs
from the environment.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from llem.campaign.guards import DataText
from llem.campaign.site import Strict

# What a secret is often called, whatever stands before or behind it.
_SECRET = re.compile(r"key|token|secret|password|passwd|credential", re.IGNORECASE)
_WITHOUT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@]*@")
KINDS = ("tensorboard", "wandb", "mlflow")


def _without_secrets(value: str) -> str:
    if _WITHOUT.match(value):
        raise ValueError(
            "holds a user or a password: give them in the environment "
            "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"
        )
    return value


Address = Annotated[DataText, AfterValidator(_without_secrets)]


class TensorBoard(Strict):
    """Event files in `tracking/tensorboard/` of the campaign's folder."""


class WeightsAndBiases(Strict):
    """`project` and `group` are the campaign's name where they are left out.

    Without `mode` it is online where WANDB_API_KEY is in the environment and the server can be
    reached, else offline.
    """

    project: DataText | None = None
    entity: DataText | None = None
    group: DataText | None = None
    tags: tuple[DataText, ...] | None = None
    mode: Literal["online", "offline"] | None = None


class MLflow(Strict):
    """`experiment` is the campaign's name where it is left out; without `tracking_uri` it is
    MLFLOW_TRACKING_URI, or files in `tracking/mlflow/` of the campaign's folder."""

    experiment: DataText | None = None
    tracking_uri: Address | None = None


class TrackerChoice(Strict):
    """One tracker: one of those that llem knows, or a class of the user's own."""

    tensorboard: TensorBoard | None = None
    wandb: WeightsAndBiases | None = None
    mlflow: MLflow | None = None
    class_path: DataText | None = Field(None, alias="class")
    arguments: dict[DataText, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_alone(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"class": values} if ":" in values else {values: {}}
        if not isinstance(values, dict):
            return values
        for kind in KINDS:
            options = values.get(kind)
            secret = next((k for k in options or () if _SECRET.search(str(k))), None)
            if secret:
                raise ValueError(
                    f"{kind}.{secret}: a secret has no place in this file: give it in the "
                    "environment (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN)"
                )
        # `wandb:` with nothing behind it is YAML's null.
        return {k: {} if v is None and k in KINDS else v for k, v in values.items()}

    @model_validator(mode="after")
    def _is_one(self) -> TrackerChoice:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if self.class_path is not None:
            given.append("class")
            if not re.fullmatch(r"[\w.]+:\w+", self.class_path):
                raise ValueError("class must read 'package.module:Class'")
        if len(given) != 1:
            raise ValueError(f"name one of {', '.join(KINDS)} or a class; this names {len(given)}")
        if self.arguments is not None and self.class_path is None:
            raise ValueError("`arguments` go with `class`")
        return self


def spec_of(tracker: TrackerChoice) -> dict[str, Any]:
    """A tracker as plain data for its process: {kind: options}, or {class, arguments}."""
    return tracker.model_dump(by_alias=True, exclude_none=True, mode="json")
