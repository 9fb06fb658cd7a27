"""Devices that recipes name, looked for on this machine where it is to make their models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from decant.errors import DecantError
from decant.networks.devices import CPU, find
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.lockfile import LOCK
from tasks.pipeline.params import read_yaml

BENCHMARK = "benchmark"


def without_device(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield each device of a recipe that is not there, with its place and those that are.

    A recipe that dvc.lock has as it stands has its model already: another machine, which may have the device,
    has made it. Where code or data changed and not the recipe, the stage itself says so as it begins.

    Args:
        params: The whole of params.yaml, which is valid but for its devices.
    """
    sections = {name: params[name] for name in (TEACHER, BENCHMARK) if name in params}
    blocks = {**sections, **{f"models.{name}": each for name, each in params["models"].items()}}
    named = {place: block for place, block in blocks.items() if block.get("device", CPU) != CPU}
    made = _made() if named else {}
    for place, block in named.items():
        if made.get(place) == block:
            continue
        try:
            find(block["device"])
        except DecantError as error:
            yield f"{place}.{error}"


def _made() -> dict[str, Any]:
    """Return the values in params.yaml that stages ran with last, by dotted place, as dvc.lock has them."""
    if not LOCK.is_file():
        return {}
    stages = read_yaml(LOCK, shared=True).get("stages", {})
    found: dict[str, Any] = {}
    for name in (each for each in stages if each in (TEACHER, BENCHMARK) or each.startswith("compress@")):
        found |= stages[name].get("params", {}).get("params.yaml", {})
    return found
