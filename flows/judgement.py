"""What a change of the numbers means: pure verdicts over two rows of metrics. It reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from itertools import groupby
from typing import Any

from flows.noise import TEACHER, MetricValues, reach
from tasks.pipeline.metrics import BETTER_HIGHER, set_of
from tasks.validate.gates import Gates, Tolerance

CPU = "cpu"
"""Where a recipe that names no device is carried out."""


class Verdict(StrEnum):
    """What a metric that differs is judged to be."""

    BETTER = "better"
    WORSE = "worse, no gate"
    TOLERATED = "within tolerance"
    NOISE = "within noise"
    REGRESSION = "regression"


@dataclass(frozen=True)
class Change:
    """One metric of one model that differs.

    Attributes:
        metric: Its key in metrics/<model>.json.
        old: The number in the revision.
        new: The number here.
        verdict: What that means.
        tolerance: The gate, if there is one.
        noise: How far the metric may drop by the choice of test images alone; None where that is not known.
    """

    metric: str
    old: float
    new: float
    verdict: Verdict
    tolerance: Tolerance | None = None
    noise: float | None = None

    @property
    def difference(self) -> float:
        """What the metric gained, in its own unit, without the dust of binary fractions."""
        return float(_gain(self.old, self.new))


def judge(
    model: str, old: Mapping[str, MetricValues], new: Mapping[str, MetricValues], gates: Gates | None = None
) -> tuple[Change, ...]:
    """Return the changes of one model, in the order of the metrics; none where all numbers are the same.

    A change for the worse is a regression if it is larger than the gate's tolerance and, for a metric that
    has an interval, larger than what the choice of test images explains.

    Args:
        model: Its name; both sides have it.
        old: Every model's numbers in the revision, the teacher's among them.
        new: Every model's numbers here.
        gates: The tolerances; without them nothing is a regression.
    """
    tolerances = gates.of(model) if gates else {}
    before, after = old[model], new[model]
    changes = []
    for metric in _differing(before, after):
        tolerance = tolerances.get(metric)
        noise = reach(metric, model, old, new)
        verdict = _verdict(metric, before[metric], after[metric], tolerance, noise)
        changes.append(Change(metric, before[metric], after[metric], verdict, tolerance, noise))
    return tuple(changes)


def _differing(old: MetricValues, new: MetricValues) -> Iterator[str]:
    """Yield what differs, of what both have: a model of an older revision may have no top 5."""
    both = (metric for metric in set_of(new).gated if metric in old and metric in new)
    return (metric for metric in both if old[metric] != new[metric])


def _verdict(
    metric: str, old: float, new: float, tolerance: Tolerance | None, noise: float | None
) -> Verdict:
    gain = _gain(old, new)
    loss = -gain if BETTER_HIGHER[metric] else gain
    if loss <= 0:
        return Verdict.BETTER
    if tolerance is None:
        return Verdict.WORSE
    if loss <= tolerance.at(old):
        return Verdict.TOLERATED
    return Verdict.NOISE if noise is not None and loss <= noise else Verdict.REGRESSION


def _gain(old: float, new: float) -> Decimal:
    """In decimals: 0.93 - 0.925 is 0.005, where binary fractions say a little more and would fail a gate."""
    return Decimal(str(new)) - Decimal(str(old))


@dataclass(frozen=True)
class Comparison:
    """All that differs here from a revision, judged.

    Attributes:
        revision: What the user called it.
        commit: The hash that this stood for.
        models: Every model that both sides have, with its changes; none where all its numbers are the same.
        new: The numbers of models that only this side has.
        removed: Models that only the revision has, as `gates.removed` allows.
        settings: What differs in params.yaml by dotted place: the value there and here, one of them missing
            where only the other side has the place.
        gates: How many gates were applied.
        stale: Models whose numbers were made with other values than params.yaml has now.
        devices: Of the models that were made on other devices, they or an ancestor: which, there and here.
    """

    revision: str
    commit: str
    models: Mapping[str, tuple[Change, ...]]
    new: Mapping[str, MetricValues]
    removed: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    gates: int
    stale: tuple[str, ...] = ()
    devices: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, tuple[Change, ...]]:
        """The models of which a number differs."""
        return {model: changes for model, changes in self.models.items() if changes}

    @property
    def unchanged(self) -> list[str]:
        """The models of which every number is the same."""
        return [model for model, changes in self.models.items() if not changes]

    def having(self, verdict: Verdict) -> list[tuple[str, Change]]:
        """Return the changes with this verdict, and whose they are."""
        pairs = [(model, change) for model, changes in self.models.items() for change in changes]
        return [(model, change) for model, change in pairs if change.verdict is verdict]

    @property
    def code(self) -> int:
        """The exit code: 0 every gate holds, 1 one failed, 2 no verdict, for numbers are out of date."""
        return 2 if self.stale else 1 if self.having(Verdict.REGRESSION) else 0

    @property
    def passed(self) -> bool:
        """Whether every gate holds, on numbers that are up to date."""
        return self.code == 0


def differing_devices(
    models: Iterable[str], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Return on which devices a model and its ancestors were made there and here, where these are others.

    Args:
        models: Those that both sides have.
        old: The whole of params.yaml there.
        new: The same here.
    """
    pairs = {model: (_devices(model, old), _devices(model, new)) for model in models}
    told = {model: _told(*sides) for model, sides in pairs.items()}
    return {model: sides for model, sides in told.items() if sides[0] != sides[1]}


def _told(there: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, str]:
    """Return the devices of a model there and here, as few words as tell them apart."""
    short, other = (" then ".join(device for device, _ in groupby(each.values())) for each in (there, here))
    if short != other or all(here.get(name, device) == device for name, device in there.items()):
        return short, other
    return " then ".join(there.values()), " then ".join(here.values())


def _devices(model: str, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the device of each model from the teacher to this one, in order."""
    found, models = list[tuple[str, Any]](), params["models"]
    while model in models and isinstance(models[model], dict) and model not in dict(found):
        found.insert(0, (model, models[model]))
        model = str(models[model].get("from"))
    teacher = params.get(TEACHER)
    blocks = [(TEACHER, teacher if isinstance(teacher, dict) else {}), *found]
    return {name: str(block.get("device", CPU)) for name, block in blocks}


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each place whose value differs, with `old` and `new`, one of them missing where it has none.

    Values are equal if they are of one type too: 1, 1.0 and true are three.
    """
    found = {}
    for place in dict.fromkeys([*old, *new]):
        sides = {side: values[place] for side, values in (("old", old), ("new", new)) if place in values}
        if len(sides) < 2 or repr(sides["old"]) != repr(sides["new"]):
            found[place] = sides
    return found
