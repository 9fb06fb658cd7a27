"""Seconds and memory of one criterion, or of OBS on one layer: a process of benchmarks/pruning.py.

    python -m benchmarks.pruning_cost FOLDER criterion KIND
    python -m benchmarks.pruning_cost FOLDER layer SIZE SHARE

Prints the seconds and by how many bytes the peak of the process's memory grew. Linux alone tells that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from decant.compression.coupling import groups_of
from decant.prune.criteria import Criterion, Obs, OfChannels
from decant.prune.structures import Weights
from decant.reconstruction import obs
from tasks.pipeline import splits as data
from tasks.pipeline.models import load_model
from tasks.pipeline.params import validate


def of_criterion(kind: str) -> Callable[[], object]:
    """Return the scoring of the default teacher; of OBS, the whole of pruning it to 80 %."""
    model, train = load_model("teacher"), data.read(data.TRAIN)
    train.images.sum()  # read from the disk before the clock starts
    criterion = validate({"kind": kind}, Criterion)
    if isinstance(criterion, Obs):
        weights = dict(model.module.named_parameters())
        zeros = {n: round(0.8 * w.numel()) for n, w in weights.items() if w.dim() > 1}
        choose = dict.fromkeys(zeros, Weights().mask)
        images = train.first(criterion.images).images
        return lambda: obs.reconstruct(model.module, zeros, choose, images)
    if isinstance(criterion, OfChannels):
        groups = groups_of(model)
        return lambda: criterion.channel_scores(model, groups, train)
    return lambda: criterion.scores(model.module, train, 1)


def of_layer(size: int, share: float) -> Callable[[], object]:
    """Return OBS on a layer of drawn weights and inputs whose Hessian has full rank."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) / size**0.5
    inputs = torch.randn(2 * size, size, generator=generator) @ mixing
    hessian = (inputs.T @ inputs / len(inputs)).double()
    weight = torch.randn(size, size, generator=generator)
    return lambda: obs.prune(weight, hessian, round(share * weight.numel()), Weights().mask)


def main(folder: str, what: str, *words: str) -> None:
    """Run the case and print its seconds and bytes."""
    torch.set_num_threads(2)
    os.chdir(folder)
    call = of_criterion(words[0]) if what == "criterion" else of_layer(int(words[0]), float(words[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, not from the imports
    before, began = status("VmRSS"), time.perf_counter()
    call()
    print(time.perf_counter() - began, status("VmHWM") - before)


def status(key: str) -> int:
    """Return the bytes that Linux tells of this process under a key."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
