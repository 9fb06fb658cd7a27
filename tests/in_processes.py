"""Trainings by all processes that were started together: python -m tests.in_processes <file> <case> …

The first process writes the curves, and a sum of all weights, to the file. A test calls `curves` for the same
of one process.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.errors import DecantError
from decant.examples import Examples
from decant.networks import processes
from decant.networks.architectures import Resnet, build
from decant.networks.execution import make_deterministic
from decant.networks.processes import number, started
from decant.training import fit
from decant.training.recipe import Training
from decant.training.run import Run
from tests.imports import ROOT
from tests.nets import striped
from tests.test_devices import CASES, NET, SPLITS
from tests.test_texts import texts

RECIPE = {
    "epochs": 2,
    "optimizer": {"kind": "sgd", "learning_rate": 0.02},
    "augmentation": {"flip": True, "shift": 1},
    "average": 0.9,
    "l1": 1e-4,
}


class Dropping(nn.Module):
    """Draws for maps, for rows and for places; batches of 15 have no equal halves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build(Resnet(widths=(8, 8), blocks=(0, 1), pool=2), (1, 8, 8), 16, seed=1)
        self.maps, self.rows, self.head = nn.Dropout2d(0.2), nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.net(self.maps(images.expand(-1, 4, -1, -1))[:, :1])
        return self.head(self.rows(hidden.relu()))


class Words(nn.Module):
    """Tokens before a place, on the average, say which one comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = (self.words(ids) * mask[:, :, None]).cumsum(1)
        return self.head(seen / mask.cumsum(1).clamp(min=1)[:, :, None])


def trained(module: nn.Module, train: Examples, validation: Examples, **changes: Any) -> Any:
    training = Training.model_validate(RECIPE | changes | {"processes": started()})
    settings: dict[str, Any] = {"scratch": None, "seed": 1, "constraints": {}, "title": "t"}
    loss = training.hard_loss(train.target)
    curve = fit.fit_(module, training, loss, train, validation, **settings)
    return curve, state(module)


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(6 if "OTHER_WEIGHTS" in os.environ else 5)
    return kind()


def compressed(name: str, device: str) -> Any:
    """Run a case of the tests of devices, whose recipes do not say how many processes there are."""
    original = processes.together
    vars(fit)["together"] = lambda _, device: original(started(), device)
    module = build(NET, (1, 8, 8), 3, seed=1).eval()
    teacher = Checkpoint(NET, (1, 8, 8), SPLITS.train.classes, module)
    try:
        result = CASES[name](teacher, device, Run(seed=3))
    finally:
        vars(fit)["together"] = original
    return result.curve, state(result.model.module)


def own_examples() -> Examples:
    """Return the examples, or as many others that one process alone has."""
    return striped(2) if "OTHER_EXAMPLES" in os.environ else SPLITS.train


OWN: dict[str, Callable[[], Any]] = {
    "dropout": lambda: trained(
        seeded(Dropping), own_examples(), SPLITS.validation, batch_size=15, accumulate=2
    ),
    "texts": lambda: trained(seeded(Words), texts(), texts(seed=1), batch_size=8, augmentation={}),
}


def curves(*cases: str, device: str = "cpu") -> dict[str, Any]:
    """Return each case's curve, and the sum of all of its numbers; those of ours are of processors."""
    found = {}
    for case in cases:
        curve, tensors = OWN[case]() if case in OWN else compressed(case, device)
        total = sum(each.double().abs().sum().item() for each in tensors.values())
        found[case] = {"curve": [dict(row) for row in curve], "total": total}
    return found


def beside(
    *words: str, of_second: dict[str, str] | None = None, of_both: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start two processes that run this file together; the second one with variables of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common = os.environ | place | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.in_processes", *words],
            env=common | (of_both or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(({}, of_second or {}))
    ]


def main(file: str, *cases: str) -> None:
    make_deterministic(1)
    torch.__version__ = os.environ.get("PRETENDED_TORCH", torch.__version__)  # type: ignore[assignment]
    try:
        found = curves(*cases, device=os.environ.get("TRAINED_ON", "cpu"))
    except DecantError as error:
        sys.exit(f"error: {error}")
    if number() == 0:
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
