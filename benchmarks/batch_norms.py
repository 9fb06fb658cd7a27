"""When batch norms are better estimated anew: small networks of many shapes, compressed without a training.

    python -m benchmarks.batch_norms [--seeds 3] [--write benchmarks/batch_norms.md]

Each network learns the digits that scikit-learn carries, then is pruned, rounded or clipped at once, without
`statistics` and with it. Shown is the accuracy on the 360 test images, and how far the logits are from those
of the network before.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

import decant
from decant.checkpoints.checkpoint import Checkpoint
from decant.clip import clip
from decant.compression.finish import Result
from decant.costs.drift import drift_from
from decant.networks.architectures import Shape
from decant.networks.layers import Normalize
from decant.prune import prune
from decant.quantize import quantize
from decant.training.recipe import Training
from tasks.prepare.sources import SOURCES
from tasks.prepare.splits import Split, draw
from tests.nets import Own

TRAINING = Training(epochs=12, batch_size=32)


class Plain(Own):
    """Convolutions one after the other."""

    kind: Literal["plain"] = "plain"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network."""
        layers = [*_conv(shape[0], 16), *_conv(16, 16), nn.MaxPool2d(2), *_conv(16, 32), *_conv(32, 32)]
        return _network(shape, *layers, *_head(32, classes))


class Separable(Own):
    """Depthwise and pointwise convolutions in turn, as in phones' networks."""

    kind: Literal["separable"] = "separable"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network."""
        layers = _conv(shape[0], 16)
        for inputs, outputs, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 1)):
            layers += [*_conv(inputs, inputs, stride, groups=inputs), *_conv(inputs, outputs, size=1)]
        return _network(shape, *layers, *_head(64, classes))


class Preactivated(Own):
    """Residual blocks that normalize before they convolve: sums that no batch norm follows."""

    kind: Literal["preactivated"] = "preactivated"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network."""
        blocks = [_Added(24) for _ in range(3)]
        return _network(
            shape,
            nn.Conv2d(shape[0], 24, 3, padding=1),
            *blocks,
            nn.BatchNorm2d(24),
            nn.ReLU(),
            *_head(24, classes),
        )


class Dense(Own):
    """Layers that read all before them, each through a batch norm of its own."""

    kind: Literal["dense"] = "dense"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network."""
        joined = [_Joined(8 + 8 * index, 8) for index in range(4)]
        return _network(
            shape,
            nn.Conv2d(shape[0], 8, 3, padding=1),
            *joined,
            nn.BatchNorm2d(40),
            nn.ReLU(),
            *_head(40, classes),
        )


class Connected(Own):
    """Fully connected layers with batch norms between them."""

    kind: Literal["connected"] = "connected"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network."""
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in ((math.prod(shape), 96), (96, 96), (96, 48)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        return _network(shape, *layers, nn.Linear(48, classes))


def _network(shape: Shape, *layers: nn.Module) -> nn.Sequential:
    named = {"normalize": Normalize(shape[0])} | {
        f"layer{index}": layer for index, layer in enumerate(layers)
    }
    return nn.Sequential(OrderedDict(named))


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)]


def _before(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1))


class _Added(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_before(width, width), _before(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.branch(inputs)


class _Joined(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch = _before(inputs, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.branch(inputs)], 1)


NETWORKS: dict[str, Any] = {
    "residual": decant.Resnet(widths=(16, 32), blocks=(1, 1)),
    "plain": Plain(),
    "separable": Separable(),
    "pre-activated": Preactivated(),
    "dense": Dense(),
    "connected": Connected(),
}

Operation = Callable[..., Result]


def _pruned(share: float, criterion: str = "magnitude", **more: Any) -> tuple[Operation, dict[str, Any]]:
    allocation = {"allocation": {"kind": "layer"}}
    return prune, {"criterion": {"kind": criterion}, "budget": {"sparsity": share}, **allocation, **more}


def _rounded(bits: int) -> tuple[Operation, dict[str, Any]]:
    return quantize, {"scheme": {"kind": "integer", "bits": bits}, "fold": False}  # a sum cannot be folded


RECIPES: dict[str, tuple[Operation, Mapping[str, Any]]] = {
    "prune 50 %, magnitude": _pruned(0.5),
    "prune 70 %, magnitude": _pruned(0.7),
    "prune 90 %, magnitude": _pruned(0.9),
    "prune 80 %, obs": _pruned(0.8, "obs"),
    "quantize, 8 bits": _rounded(8),
    "quantize, 4 bits": _rounded(4),
    "quantize, 3 bits": _rounded(3),
    "clip, 1 % at each end": (clip, {"cut": {"kind": "percentile", "keep": 0.98}}),
    "clip, 5 % at each end": (clip, {"cut": {"kind": "percentile", "keep": 0.9}}),
}


Pair = tuple[float, float]
"""Without `statistics`, and with it."""


def digits(seed: int) -> tuple[decant.Splits, decant.Examples]:
    """Return the splits to learn from, and the test images."""
    found = draw(SOURCES["digits"], 137, seed)
    train, validation, test = (_examples(found[name]) for name in ("train", "validation", "test"))
    return decant.Splits(train, validation), test


def _examples(split: Split) -> decant.Examples:
    labels = torch.from_numpy(split.labels.astype("int64"))
    return decant.Examples(torch.from_numpy(split.images), labels, SOURCES["digits"].classes)


def measure(seed: int) -> dict[tuple[str, str], tuple[Pair, Pair]]:
    """Return by recipe and network the shares of test images, and the KL divergences in nats."""
    (splits, test), found = digits(seed), {}
    for name, architecture in NETWORKS.items():
        before = decant.train(architecture, TRAINING, splits, decant.Run(name, seed)).model
        drift = drift_from(before, test.images)
        found["before", name] = 2 * (_accuracy(before, test),), (0.0, 0.0)
        for recipe, (operation, block) in RECIPES.items():
            one, other = (
                operation(before, {**block, "statistics": anew}, splits).model for anew in (False, True)
            )
            accuracies = _accuracy(one, test), _accuracy(other, test)
            found[recipe, name] = accuracies, (drift(one), drift(other))
    return found


def _accuracy(model: Checkpoint, test: decant.Examples) -> float:
    return torch.eq(decant.predict(model.module, test.images).argmax(1), test.labels).double().mean().item()


def page(seeds: int) -> str:
    """Return what was measured, as a page."""
    runs = [measure(seed) for seed in range(1, seeds + 1)]
    lines = [
        "Written by `python -m benchmarks.batch_norms --write benchmarks/batch_norms.md`.",
        "",
        f"Small networks on the digits, mean over {seeds} seeds of data, weights and training. Nothing is",
        "trained after the operation; `statistics: true` reads the 1,300 training images. There are 360",
        "test images, so that one of them is 0.28 points of one seed.",
        "",
        "## Accuracy, %, without → with",
        "",
        *_table({key: _cell([run[key][0] for run in runs], 100, 1) for key in runs[0]}),
        "",
        "## KL divergence of the logits from the network before, nats, without → with",
        "",
        *_table({key: _cell([run[key][1] for run in runs], 1, 3) for key in runs[0] if key[0] in RECIPES}),
        "",
    ]
    return "\n".join(lines)


def _cell(pairs: list[Pair], factor: float, digits: int) -> str:
    return " → ".join(f"{factor * fmean(side):.{digits}f}" for side in zip(*pairs, strict=True))


def _table(texts: Mapping[tuple[str, str], str]) -> list[str]:
    recipes = dict.fromkeys(recipe for recipe, _ in texts)
    head = [f"| | {' | '.join(NETWORKS)} |", f"|---|{'---:|' * len(NETWORKS)}"]
    return head + [
        f"| {recipe} | {' | '.join(texts[recipe, name] for name in NETWORKS)} |" for recipe in recipes
    ]


def main() -> None:
    """Measure, and print the page or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="where to; printed otherwise")
    chosen = parser.parse_args()
    decant.make_deterministic(1)
    text = page(chosen.seeds)
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
