"""`gates` of params.yaml: how much worse each metric of a model may become. The schema; flows judge."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, PlainValidator, create_model, model_validator

from decant.schema import Name, Section, did_you_mean
from tasks.pipeline.metrics import BETTER_HIGHER, BY_KEY, Metric


@dataclass(frozen=True)
class Tolerance:
    """How much is allowed: an amount in the metric's own unit, or a share of the old value.

    Attributes:
        amount: Zero or more; a decimal number, so that 0.005 is what was written and not its neighbour.
        relative: Whether it is a share, 0.01 for `1%`.
    """

    amount: Decimal
    relative: bool = False

    def __str__(self) -> str:
        """Return it as it may stand in params.yaml."""
        return f"{(100 * self.amount).normalize():f}%" if self.relative else f"{self.amount:f}"

    def at(self, old: float) -> Decimal:
        """Return the largest change for the worse, in the metric's unit, that the old value allows."""
        return self.amount * abs(Decimal(str(old))) if self.relative else self.amount


LEAST, MOST = Decimal("1e-12"), Decimal("1e15")


def _tolerance(value: Any) -> Tolerance:
    """Read 0.005 or `1%`."""
    if not re.fullmatch(r"(\d+|\d*\.\d+)(e[-+]?\d+)?( ?%)?", text := str(value)):
        raise ValueError(f"must be a number such as 0.005 or a share such as 1%, 0 or more, got {value!r}")
    amount = Decimal(text.removesuffix("%").strip())
    if amount and not LEAST <= amount <= MOST:
        raise ValueError(f"must be 0 or between {LEAST} and {MOST}, got {value!r}")
    return Tolerance(amount / 100, relative=True) if text.endswith("%") else Tolerance(amount)


Allowance = Annotated[Tolerance, PlainValidator(_tolerance)]


class Drop(Section):
    """The gate of a metric that is better when it is higher."""

    drop: Allowance


class Rise(Section):
    """The gate of a metric that is better when it is lower."""

    rise: Allowance


_Limits = create_model(
    "_Limits",
    __base__=Section,
    **{key: ((Drop if higher else Rise) | None, None) for key, higher in BETTER_HIGHER.items()},  # type: ignore[call-overload]
)


class Limits(_Limits):  # type: ignore[misc, valid-type]
    """A gate per metric; one without a gate, or with null, is shown and never fails."""

    @model_validator(mode="after")
    def _failing(self) -> Limits:
        for key, metric in BY_KEY.items():
            gate = getattr(self, key, None)
            if gate is not None and (why := _never_fails(metric, gate)):
                raise ValueError(f"{key} {why}, so that its gate cannot fail; null is none")
        return self


def _never_fails(metric: Metric, gate: Drop | Rise) -> str:
    """Return why a metric can become no worse than its gate allows; empty where it can."""
    allowed = gate.drop if isinstance(gate, Drop) else gate.rise
    span = metric.most - metric.least
    if not allowed.relative and allowed.amount >= span:
        return f"is from {metric.least:g} to {metric.most:g}, and may change by {allowed}"
    if allowed.relative and allowed.amount >= 1 and isinstance(gate, Drop) and metric.least == 0:
        return f"is never below 0, and may lose {allowed}"
    return ""


class Gates(Section):
    """The section `gates` of params.yaml.

    Attributes:
        all: For every model, the teacher included.
        models: By name; what stands here for a metric replaces what `all` says of it, null switches it off.
        removed: Models that may be missing here though the other revision has them.
    """

    all: Limits = Limits()
    models: dict[Name, Limits] = Field(default_factory=dict)
    removed: tuple[Name, ...] = ()

    def of(self, model: str) -> dict[str, Tolerance]:
        """Return what each gated metric of one model may lose."""
        limits, own = self.all, self.models.get(model, Limits())
        gates = {
            name: getattr(own if name in own.model_fields_set else limits, name) for name in BETTER_HIGHER
        }
        return {
            name: gate.drop if isinstance(gate, Drop) else gate.rise for name, gate in gates.items() if gate
        }

    def strangers(self, models: Collection[str]) -> list[str]:
        """Return a line for each name that is not what its place says, given the models that there are."""
        unknown = [
            f"gates.models.{name}: there is no model {name!r}{did_you_mean(name, models)}"
            for name in self.models
            if name not in models
        ]
        return unknown + [
            f"gates.removed: the model {name!r} is still there; remove one of the two"
            for name in self.removed
            if name in models
        ]
