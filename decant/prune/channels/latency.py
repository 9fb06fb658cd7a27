"""How long layers and networks take on this machine, in ONNX Runtime with one thread, each measured once."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from decant.checkpoints.checkpoint import Checkpoint, altered
from decant.costs.layers import LayerShape, layers_of, reshaped
from decant.errors import DecantError
from decant.outputs import file_name, write_json
from decant.prune.budgets import bracket
from decant.prune.channels.ladder import ChannelPlan, Ladder
from decant.prune.targets import formatted

TIMINGS = Path("timings")
CHANNEL_MULTIPLES = (1, 2, 4, 8, 16, 32)
"""What `round_to: auto` chooses from."""

PENALTY = 0.05
"""How much slower than the best step a smaller one may be."""
ATTEMPTS = 6
CLOSE = 0.02
"""A latency this much below the limit, as a share of it, is near enough."""

REFERENCE = LayerShape("reference", (64, 64, 3, 3), (14, 14), 196, (1, 1), (1, 1), (1, 1))
"""Timed beside whatever is timed later, so that a slower hour does not count as a slower layer."""


class Instrument(Protocol):
    """What measures layers and networks on this machine."""

    @property
    def processor(self) -> str:
        """The processor's name and its instructions, in lower case."""

    @property
    def runtime(self) -> str:
        """The version of what runs the networks."""

    def layers(self, layers: Mapping[str, LayerShape], batch: int) -> Mapping[str, float]:
        """Return the seconds of one run of each layer, all timed in turns."""

    def networks(self, models: Mapping[str, Checkpoint], batch: int) -> Mapping[str, Sequence[float]]:
        """Return the seconds of each network in each round, all timed in turns."""


def instrument() -> Instrument:
    """Return ONNX Runtime on this machine, which only a recipe that asks for times loads.

    By its name, and not by an import: times are read from a file ever after, so the code that measured them
    is no part of what pruning consists of.
    """
    measuring: Instrument = import_module("decant.export.layer_timing").OnnxRuntime()
    return measuring


@dataclass
class Table:
    """Times that were measured once and are read ever after, so that a second run decides the same.

    Attributes:
        path: The file, one for each kind of processor; made where it is missing.
        instrument: What measures.
        reference: Seconds of the reference layer by batch size.
        layers: Seconds of a layer, by its description and batch size.
        networks: Time over another network's, by a sum over both, and batch size.
    """

    path: Path
    instrument: Instrument
    reference: dict[str, float] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)

    def seconds(self, layers: Sequence[LayerShape], batch: int) -> float:
        """Return the sum of the layers' times at a batch size; measures what was not measured before."""
        keys = {_key(layer, batch): layer for layer in layers}
        if missing := {key: layer for key, layer in keys.items() if key not in self.layers}:
            self._measure(missing, batch)
        return sum(self.layers[_key(layer, batch)] for layer in layers)

    def ratio(self, model: Checkpoint, other: Checkpoint, batch: int) -> float:
        """Return one network's time over another's, exported and run; measured at the first call."""
        mine, its = _sum(model), _sum(other)
        if mine == its:
            return 1.0
        key = f"{mine} over {its}, batch {batch}"
        if key not in self.networks:
            seconds = self.instrument.networks({"model": model, "other": other}, batch)
            ratios = [one / two for one, two in zip(seconds["model"], seconds["other"], strict=True)]
            self.networks[key] = _digits(statistics.median(ratios))
            self._save()
        return self.networks[key]

    def _measure(self, missing: Mapping[str, LayerShape], batch: int) -> None:
        reference, size = "reference", str(batch)
        measured = self.instrument.layers({**missing, reference: REFERENCE}, batch)
        self.reference.setdefault(size, _digits(measured[reference]))
        factor = self.reference[size] / measured[reference]
        self.layers |= {key: _digits(measured[key] * factor) for key in missing}
        self._save()

    def _save(self) -> None:
        """Write the table; what another stage has measured in the meantime stays, but where both have."""
        there = _read(self.path, self.instrument)
        self.reference = there.reference | self.reference
        self.layers, self.networks = there.layers | self.layers, there.networks | self.networks
        content = {
            "onnxruntime": self.instrument.runtime,
            "threads": 1,
            "reference": dict(sorted(self.reference.items())),
            "layers": dict(sorted(self.layers.items())),
            "networks": dict(sorted(self.networks.items())),
        }
        write_json(self.path, content)


def read_table(folder: Path = TIMINGS, measuring: Instrument | None = None) -> Table:
    """Return this machine's table; an empty one where there is none, or one of another ONNX Runtime.

    Raises:
        DecantError: The file cannot be read.
    """
    # Different processors share a name; their instructions differ.
    measuring = measuring or instrument()
    return _read(folder / f"{file_name(measuring.processor)}.json", measuring)


def _read(path: Path, measuring: Instrument) -> Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["onnxruntime"] != measuring.runtime:
            return Table(path, measuring)
        return Table(path, measuring, content["reference"], content["layers"], content["networks"])
    except FileNotFoundError:
        return Table(path, measuring)
    except (ValueError, KeyError, TypeError) as error:
        raise DecantError(f"{path} holds no timings ({error}); delete it to measure anew") from None


def best_step(table: Table, parent: Checkpoint, batch: int) -> int:
    """Return the smallest step of channels at which the network's layers are about as fast as they can be.

    For each step, each layer is timed with two numbers of channels that are odd multiples of it, just above
    half of what it has and about three quarters; the time for one multiplication counts for all that it has.

    Args:
        table: What was measured before, and where new times go.
        parent: The network.
        batch: Images at once.
    """
    layers = layers_of(parent.module)
    places = {
        step: _just_above_half(layers, step) + _three_quarters(layers, step) for step in CHANNEL_MULTIPLES
    }
    table.seconds([layer for each in places.values() for layer in each], batch)  # in turns, all of them
    seconds = {
        step: sum(
            table.seconds([layer], batch) * whole.macs / layer.macs
            for whole, layer in zip(layers * 2, each, strict=True)
        )
        for step, each in places.items()
    }
    best = min(seconds.values())
    return next(step for step in CHANNEL_MULTIPLES if seconds[step] <= best * (1 + PENALTY))


def shrink_to_latency(
    ladder: Ladder, table: Table, teacher: Checkpoint, limit: float, batch: int
) -> tuple[ChannelPlan, float]:
    """Return a network that runs in at most `limit` of the teacher's time, and in not much less.

    Two networks around the limit are measured as a whole, at first the smallest and the largest; between
    them the sum of the layers' times says where to look next, and what is found there is measured in turn.

    Args:
        ladder: Where to look.
        table: What was measured before, and where new times go.
        teacher: What the time is compared with.
        limit: The ratio.
        batch: Images at once.

    Returns:
        The network, and its measured ratio.

    Raises:
        DecantError: The budget cannot be met, or is met already; names the nearest possible.
    """
    parent = ladder.parent
    check_latency(table, ladder.plan(0).model, parent, teacher, limit, batch)
    layers = layers_of(parent.module)

    def measured(rung: int) -> float:
        return table.ratio(ladder.plan(rung).model, teacher, batch)

    def predicted(rung: int) -> float:
        return table.seconds(reshaped(layers, ladder.plan(rung).shapes), batch)

    low, high = 0, len(ladder.steps)
    for _ in range(ATTEMPTS):
        share = (limit - measured(low)) / (measured(high) - measured(low))
        if high - low == 1 or measured(low) > limit * (1 - CLOSE):
            break
        wanted = predicted(low) + share * (predicted(high) - predicted(low))
        below, _ = bracket(lambda rung: predicted(rung) > wanted, low, high)  # noqa: B023  called here alone
        between = max(below, low + 1)
        low, high = (between, high) if measured(between) <= limit else (low, between)
    return ladder.plan(low), measured(low)


def check_latency(
    table: Table, smallest: Checkpoint, parent: Checkpoint, teacher: Checkpoint, limit: float, batch: int
) -> None:
    """Refuse a ratio that the network with the fewest channels does not run at, or that is met already.

    Raises:
        DecantError: Names the nearest that is possible.
    """
    if (nearest := table.ratio(smallest, teacher, batch)) > limit:
        raise DecantError(
            f"budget: latency {formatted(limit)} cannot be met: with the fewest channels that may be left it "
            f"is {formatted(nearest)} of the teacher's, the nearest possible; ask for that or more"
        )
    if (now := table.ratio(parent, teacher, batch)) <= limit:
        raise DecantError(
            f"budget: latency {formatted(limit)} is met already: the model to prune has {formatted(now)}; "
            "ask for less than that"
        )


def _just_above_half(layers: list[LayerShape], step: int) -> list[LayerShape]:
    """Return the layers with half their channels and a step: where kernels work in tens, the most in vain."""
    return _narrowed(layers, lambda channels: min(channels, channels // (2 * step) * step + step))


def _three_quarters(layers: list[LayerShape], step: int) -> list[LayerShape]:
    """Return the layers with the odd multiple of the step that is nearest to three quarters."""

    def nearest(channels: int) -> int:
        multiples = range(step, channels + 1, 2 * step)
        return min(multiples, key=lambda multiple: abs(4 * multiple - 3 * channels), default=channels)

    return _narrowed(layers, nearest)


def _narrowed(layers: list[LayerShape], narrow: Callable[[int], int]) -> list[LayerShape]:
    """Return the layers with other numbers of channels; the picture's stay, and those of unequal groups."""
    narrowed = []
    for place, layer in enumerate(layers):
        outputs, inputs, *kernel = layer.weight
        if layer.each:
            shape = (narrow(outputs), 1, *kernel)
        elif layer.groups > 1:
            shape = layer.weight
        else:
            shape = (narrow(outputs), narrow(inputs) if place else inputs, *kernel)
        narrowed.append(layer.of(shape))
    return narrowed


def _key(layer: LayerShape, batch: int) -> str:
    return f"{layer.describe()} batch {batch}"


def _sum(model: Checkpoint) -> str:
    """Return a short sum over all that a network's time depends on."""
    inputs = sorted(
        (name, str(grid and [type(grid).__name__, grid.bits]), name in model.clamps)
        for name in {*model.grids, *model.clamps}
        for grid in [model.grids.get(name)]
    )
    taken: Any = model.shape
    if not isinstance(taken, tuple):
        taken = {name: each.model_dump() for name, each in taken.items()}
    parts: list[Any] = [model.built_by.model_dump(), taken, sorted(altered(model).items()), inputs]
    # Which kernel a layer gets follows from what its weights and inputs are rounded to.
    if levels := sorted(
        (name, held.levels.values.tolist(), held.levels.scope, held.levels.zero_point is not None)
        for name, held in model.constraints.items()
        if held.levels is not None
    ):
        parts.append(levels)
    return sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _digits(number: float) -> float:
    return float(f"{number:.4g}")
