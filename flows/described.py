"""What DVC knows of a stage, as plain strings and values."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.stage import PipelineStage


def reasons(status: list[Any]) -> list[str]:
    """Return why DVC takes a stage for changed, such as `modified data/code/prune`."""
    found = []
    for entry in status:
        if isinstance(entry, str):
            found.append(entry)
            continue
        for changes in entry.values():
            for path, change in changes.items():
                if isinstance(change, dict):  # params, by file and name
                    found += [f"{how} {path}:{name}" for name, how in change.items()]
                else:
                    found.append(f"{change} {path}")
    return found


def threads(stage: PipelineStage) -> int:
    """Return the threads that a stage uses: its parameter `threads` or `threads.…`; 0 without one."""
    from dvc.dependency import ParamsDependency

    counts = [
        value
        for dependency in stage.deps
        if isinstance(dependency, ParamsDependency)
        for name, value in dependency.read_params().items()
        if name.partition(".")[0] == "threads" and isinstance(value, int)
    ]
    return max([0, *counts])


def code(stage: PipelineStage, outs: set[str]) -> dict[str, str]:
    """Return the sums of the deps that no stage writes: the code, as dvc.lock will have it after the run."""
    from dvc.dependency import ParamsDependency

    return {
        str(dependency): dependency.get_hash().value
        for dependency in sorted(stage.deps, key=str)
        if not isinstance(dependency, ParamsDependency)
        if dependency.exists and not _overlaps(dependency.fs_path, outs)
    }


def _overlaps(path: str, outs: set[str]) -> bool:
    """Say whether stages write a path, in whole or in part: it is an output, holds one or lies in one."""
    return any(f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") for out in outs)


def inputs(stage: PipelineStage, outs: set[str]) -> dict[str, str]:
    """Return all that a stage reads and no stage writes."""
    from dvc.dependency import ParamsDependency

    params = {
        f"{dependency}: {name}": repr(value)
        for dependency in stage.deps
        if isinstance(dependency, ParamsDependency)
        for name, value in dependency.read_params().items()
    }
    return {"its command": str(stage.cmd)} | code(stage, outs) | params


def one_sum(lines: dict[str, str]) -> str:
    """Return a short sum over paths and their sums."""
    digest = hashlib.sha256()
    for path, value in lines.items():
        digest.update(f"{path} {value}\n".encode())
    return digest.hexdigest()[:12]
