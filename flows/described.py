"""What DVC knows of a stage, as plain strings and values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.stage import PipelineStage

CODE = "code"
"""The stage that records our code: for each operation its files, each with a sum over what it does."""


@dataclass(frozen=True)
class Outputs:
    """The paths that the stages of a DAG write.

    Attributes:
        results: Of all stages but `code`.
        records: Of the stage `code`: what depends on one of them depends on the code that it lists.
    """

    results: frozenset[str]
    records: frozenset[str]

    @classmethod
    def of(cls, stages: Iterable[PipelineStage]) -> Self:
        """Return what these stages write."""
        results, records = set[str](), set[str]()
        for stage in stages:
            (records if stage.addressing == CODE else results).update(out.fs_path for out in stage.outs)
        return cls(frozenset(results), frozenset(records))

    def has_record(self, path: str) -> bool:
        """Say whether a path is a record of code."""
        return any(f"{path}/".startswith(f"{record}/") for record in self.records)

    def overlap(self, path: str) -> bool:
        """Say whether a path is a result, holds one or lies in one."""
        return any(
            f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") for out in self.results
        )


def reasons(stage: PipelineStage, status: list[Any], outputs: Outputs) -> list[str]:
    """Return why DVC takes a stage for changed, such as `modified params.yaml:seed`.

    A changed record of code stands for the source files that differ: `modified decant/prune/masks.py`.

    Args:
        stage: The stage.
        status: What DVC's `status` says of it.
        outputs: What all stages of the DAG write.
    """
    records = {str(file): file for file in _files(stage) if outputs.has_record(file.fs_path)}
    found = []
    for entry in status:
        if isinstance(entry, str):
            found.append(entry)
            continue
        for changes in entry.values():
            for path, change in changes.items():
                if isinstance(change, dict):  # params, by file and name
                    found += [f"{how} {path}:{name}" for name, how in change.items()]
                elif change == "modified" and path in records:
                    found += _changed_code(records[path])
                else:
                    found.append(f"{change} {path}")
    return found


def threads(stage: PipelineStage) -> int:
    """Return the threads that a stage uses: its parameter `threads` or `threads.…`; 0 without one.

    As many for each of the processes that train its model.
    """
    counts = [
        value
        for name, value in _read(stage)
        if name.partition(".")[0] == "threads" and isinstance(value, int)
    ]
    return max([0, *counts]) * max([1, *map(_processes, _own(stage))])


def gpus(stage: PipelineStage) -> int:
    """Return how many GPUs a stage has to see, as the recipe of its model says `device`; 0 for the processor.

    One, the first that it sees, for `cuda`; as many for `cuda:1` that there is one of this number; and one
    for each of the processes of its training.
    """
    counts = [(_seen(str(block.get("device", "cpu"))), _processes(block)) for block in _own(stage)]
    return max([0, *(max(seen, processes) for seen, processes in counts if seen)])


def _own(stage: PipelineStage) -> list[dict[str, Any]]:
    """Return the blocks of params.yaml by which a stage makes its own model."""
    return [
        block
        for name, block in _read(stage)  # of a section, such as `teacher`, the operation has the name
        if isinstance(block, dict) and f"{stage.cmd} ".startswith(f"python -m tasks.{block.get('op', name)} ")
    ]


def _read(stage: PipelineStage) -> list[tuple[str, Any]]:
    """Return the parameters that a stage depends on."""
    from dvc.dependency import ParamsDependency

    read = (each.read_params() for each in stage.deps if isinstance(each, ParamsDependency))
    return [pair for values in read for pair in values.items()]


def _processes(block: Any) -> int:
    """Return how many processes train a model, as its block says wherever it has a training."""
    if not isinstance(block, dict):
        return 1
    own = [value for name, value in block.items() if name == "processes" and isinstance(value, int)]
    return max([1, *own, *map(_processes, block.values())])


def _seen(device: str) -> int:
    """Return how many GPUs a process has to see for a device."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return 0
    return int(number) + 1 if number.isdecimal() else 1


def code(stage: PipelineStage, outputs: Outputs) -> dict[str, str]:
    """Return the sums of the code that a stage depends on, by path.

    That is each dep that no stage writes, and each source file in the records that the stage `code` writes.
    """
    found: dict[str, str] = {}
    for file in sorted(_files(stage), key=str):
        if file.exists and outputs.has_record(file.fs_path):
            found |= _sums(Path(file.fs_path)) or {str(file): file.get_hash().value}
        elif file.exists and not outputs.overlap(file.fs_path):
            found[str(file)] = file.get_hash().value
    return found


def inputs(stage: PipelineStage, outputs: Outputs) -> dict[str, str]:
    """Return all that a stage reads and no stage computes: its command, its code and its params."""
    from dvc.dependency import ParamsDependency

    params = {
        f"{dependency}: {name}": repr(value)
        for dependency in stage.deps
        if isinstance(dependency, ParamsDependency)
        for name, value in dependency.read_params().items()
    }
    return {"its command": str(stage.cmd)} | code(stage, outputs) | params


def one_sum(lines: dict[str, str]) -> str:
    """Return a short sum over paths and their sums."""
    digest = hashlib.sha256()
    for path, value in lines.items():
        digest.update(f"{path} {value}\n".encode())
    return digest.hexdigest()[:12]


def _files(stage: PipelineStage) -> Iterator[Dependency]:
    """Yield the files and folders that a stage depends on."""
    from dvc.dependency import ParamsDependency

    return (dependency for dependency in stage.deps if not isinstance(dependency, ParamsDependency))


def _changed_code(record: Dependency) -> list[str]:
    """Return how the source files in a record differ from those that its stage ran with last."""
    if not record.hash_info:
        return ["dvc.lock has no record of its code"]
    before = _sums(Path(record.cache.oid_to_path(record.hash_info.value)))
    now = _sums(Path(record.fs_path))
    if not before or not now:  # `dvc gc` has removed it, or it is not written as ours are
        return ["its code changed"]
    hows = {
        file: "modified" if file in before else "new"
        for file, found in now.items()
        if found != before.get(file)
    }
    hows |= dict.fromkeys(before.keys() - now.keys(), "removed")
    return [f"{hows[file]} {file}" for file in sorted(hows)]


def _sums(record: Path) -> dict[str, str]:
    """Return the source files of a record, one a line after its sum; nothing where it cannot be read so."""
    if not record.is_file():
        return {}
    lines = [
        line.split(maxsplit=1) for line in record.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return {line[1]: line[0] for line in lines} if all(len(line) == 2 for line in lines) else {}
