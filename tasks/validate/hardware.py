"""Devices that recipes name, looked for on this machine where it is to make their models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from decant.errors import DecantError, Message
from decant.networks.compiling import missing_compiler
from decant.networks.devices import CPU, find, without_patterns
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.lockfile import LOCK
from tasks.pipeline.params import read_yaml

BENCHMARK = "benchmark"
COMPILE, PROCESSES = "compile", "processes"
"""Keys of trainings, wherever in a block they stand."""
SEMI_STRUCTURED = "semi_structured"


def without_device(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield each device of a recipe that is not there, or a compiler for it, with its place and what is.

    A recipe that dvc.lock has as it stands has its model already: another machine, which may have the device,
    has made it. Where code or data changed and not the recipe, the stage itself says so as it begins.

    Args:
        params: The whole of params.yaml, which is valid but for its devices.
    """
    named = {
        place: block
        for place, block in blocks_of(params, TEACHER, BENCHMARK).items()
        if block.get("device", CPU) != CPU or any(_said(block, COMPILE))
    }
    made = _made() if named else {}
    for place, block in named.items():
        if made.get(place) == block:
            continue
        device = block.get("device", CPU)
        try:
            found = find(last := _last(device, count := max([1, *_said(block, PROCESSES)])))
        except DecantError as error:
            yield f"{place}.{error}" + (f"; processes: {count} take a GPU each" if last != device else "")
        else:
            if place == BENCHMARK and (missing := _missing_provider()):
                yield f"{place}.{missing}"
            if block.get(SEMI_STRUCTURED) and (missing := without_patterns(found)):
                yield f"{place}.{missing}"
        if any(_said(block, COMPILE)) and (missing := missing_compiler(device)):
            yield f"{place}.{missing}"


def blocks_of(params: Mapping[str, Any], *sections: str) -> dict[str, Any]:
    """Return some sections, where they are there, and the block of each model, by dotted place."""
    models = {f"models.{name}": each for name, each in params["models"].items()}
    return {name: params[name] for name in sections if name in params} | models


def _missing_provider() -> Message:
    """Return that ONNX Runtime, which a benchmark times too, has no kernels of GPUs."""
    from decant.export.accelerated import missing_provider  # which takes a while, and a GPU is rare

    return missing_provider()


def _last(device: str, processes: int) -> str:
    """Return the device of the last of so many processes on one machine."""
    return device if device == CPU or ":" in device or processes == 1 else f"{device}:{processes - 1}"


def _said(block: Any, key: str) -> Iterator[int]:
    """Yield the number or switch of this name wherever a block has it."""
    for name, value in block.items() if isinstance(block, Mapping) else ():
        if name == key and isinstance(value, int):
            yield value
        yield from _said(value, key)


def _made() -> dict[str, Any]:
    """Return the values in params.yaml that stages ran with last, by dotted place, as dvc.lock has them."""
    if not LOCK.is_file():
        return {}
    stages = read_yaml(LOCK, shared=True).get("stages", {})
    found: dict[str, Any] = {}
    for name in (each for each in stages if each in (TEACHER, BENCHMARK) or each.startswith("compress@")):
        found |= stages[name].get("params", {}).get("params.yaml", {})
    return found
