"""Models with zeros of the pattern 2:4 on a GPU, in float16: each dense, and packed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from decant.errors import DecantError
from decant.examples import Batch, arguments
from decant.export.semi_structured import in_float16, packable, packed
from decant.export.timing import Call, Rounds, compare, interleave, no_garbage_collection
from decant.networks.devices import CPU, moved
from tasks.benchmark.exports import Export, Failure, attempt, divided
from tasks.benchmark.measure import REPEATS, as_json
from tasks.benchmark.params import BenchmarkParams

DENSE, PACKED = "dense", "packed"

NEAR = 0.02
"""How far packed weights may lead from dense ones, as a share of the largest answer; float16 has 11 bits."""


def times(
    exports: Mapping[str, Export], images: Batch, params: BenchmarkParams, device: torch.device
) -> tuple[dict[str, Any], dict[str, Failure]]:
    """Return what a table's row says of each model that can be packed, by its name, and what failed.

    Each model is compared with itself, dense in float16, in rounds in which both have their turn.

    Args:
        exports: All models by name.
        images: Pictures [N, C, H, W], or what else the networks take.
        params: How to measure.
        device: A GPU that has the instructions.
    """
    modules = {name: made.model.module for name, made in exports.items()}
    one = partial(_times, images=images, params=params, device=device)
    failed, found = divided({n: attempt(one, each) for n, each in modules.items() if packable(each)})
    return found, failed


def _times(module: nn.Module, images: Batch, params: BenchmarkParams, device: torch.device) -> dict[str, Any]:
    """Return the number of packed layers, and latencies by batch size; speed-ups are over the dense one."""
    made, layers = packed(module, device)
    networks = {DENSE: in_float16(module, device), PACKED: made}
    batches = {size: _batch(images, size) for size in REPEATS}
    with torch.no_grad():
        _check_near(*(_answer(each, device, batches[max(REPEATS)]) for each in networks.values()))
        found = {size: _compared(networks, batches[size], size, params, device) for size in REPEATS}
    cells = {("pytorch", size): latencies for size, latencies in found.items()}
    return {"layers": len(layers), **as_json(cells, PACKED)["pytorch"]}


def _compared(
    networks: Mapping[str, nn.Module],
    batch: tuple[Tensor, ...],
    size: int,
    params: BenchmarkParams,
    device: torch.device,
) -> Any:
    """Return the latencies of both, each called in turns; the first calls allocate."""
    calls: dict[str, Call] = {n: partial(_answer, each, device, batch) for n, each in networks.items()}
    rounds: dict[str, Rounds] = {name: [] for name in calls}
    order = random.Random(0)
    with no_garbage_collection():
        interleave(calls, 2, order)
        for _ in tqdm(range(params.rounds), "rounds of 2:4"):
            for name, spent in interleave(calls, REPEATS[size], order).items():
                rounds[name].append(spent)
    return compare(rounds, DENSE)


def _answer(network: nn.Module, device: torch.device, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the answer to a batch of the processor, there: with it, all is done."""
    answer: Tensor = moved(network(*moved(batch, device)), CPU)
    return answer


def _batch(images: Batch, size: int) -> tuple[Tensor, ...]:
    """Return a batch, repeated where it needs more; fractions in float16."""
    found = arguments(images[torch.arange(size) % len(images)])
    return tuple(each.half() if each.is_floating_point() else each for each in found)


def _check_near(dense: Tensor, found: Tensor) -> None:
    """Check that packed weights give what the dense ones give.

    Raises:
        DecantError: They do not.
    """
    gap = (found.double() - dense.double()).abs().max().item()
    most = NEAR * max(dense.double().abs().max().item(), 1e-6)
    if not gap <= most:
        raise DecantError(
            f"packed weights answer with {gap:.3g} more or less than dense ones in float16, expected at most "
            f"{most:.3g}; leave semi_structured out"
        )
