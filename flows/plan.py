"""What a run has to do, and which stage may begin next. Pure: it knows neither DVC nor Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from decant.errors import DecantError

WANTED = "meta.gpu in dvc.yaml, or device in params.yaml"
"""What says that a stage wants GPUs."""


@dataclass(frozen=True)
class Limits:
    """`meta` of a stage in dvc.yaml: how long it may take, how often it is tried, what it needs.

    Attributes:
        timeout: Seconds after which its process group is ended, or None.
        retries: How often it is run again after it failed; not after a timeout.
        retry_delay: Seconds between two tries.
        gpu: GPUs that it has to itself; one at least where its recipe has `device: cuda`.
        alone: Nothing else runs beside it, because it measures time.
    """

    timeout: float | None = None
    retries: int = 0
    retry_delay: float = 0.0
    gpu: int = 0
    alone: bool = False

    @classmethod
    def read(cls, stage: str, meta: Mapping[str, Any]) -> Limits:
        """Return the limits out of a stage's `meta`; keys of others stay untouched.

        Raises:
            DecantError: A value has the wrong type or is negative.
        """
        found: dict[str, Any] = {}
        for name, (kind, expected) in _KINDS.items():
            if (value := meta.get(name)) is None:
                continue
            value = int(value) if name == "gpu" and value is True else value
            if not isinstance(value, kind) or (kind is not bool and (isinstance(value, bool) or value < 0)):
                raise DecantError(f"dvc.yaml, {stage}, meta.{name}: expected {expected}, found {value!r}")
            found[name] = value
        return cls(**found)

    def with_gpus(self, seen: int) -> Limits:
        """Return the limits of a stage whose recipe names a device, for which it has to see so many GPUs."""
        return replace(self, gpu=max(self.gpu, seen))


_KINDS: dict[str, tuple[Any, str]] = {
    "timeout": ((int, float), "seconds"),
    "retries": (int, "a count"),
    "retry_delay": ((int, float), "seconds"),
    "gpu": (int, "a number of GPUs"),
    "alone": (bool, "true or false"),
}


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    Attributes:
        name: Its address, such as `compress@int8`.
        command: What it runs.
        upstream: The stages that it depends on.
        stale: Why it must run, as DVC says it; empty where nothing that it knows of has changed.
        threads: How many threads its recipe says; 0 where it says nothing.
        code: A sum over the code that it depends on; empty where it is not stale.
        limits: From its `meta`.
        frozen: DVC takes its outputs as they are and never runs it.
    """

    name: str
    command: str = ""
    upstream: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    threads: int = 0
    code: str = ""
    limits: Limits = field(default_factory=Limits)
    frozen: bool = False

    @property
    def operation(self) -> str:
        """Return the module of `python -m tasks.<operation>`, else the stage's name without its member."""
        parts = self.command.split()
        if parts[:2] == ["python", "-m"] and len(parts) > 2:
            return parts[2].rpartition(".")[2]
        return self.name.rpartition(":")[2].partition("@")[0]

    @property
    def model(self) -> str:
        """Return the model that it is about, or nothing."""
        group, _, member = self.name.rpartition(":")[2].partition("@")
        return member or ("teacher" if "teacher" in group else "")


@dataclass(frozen=True)
class Plan:
    """The stages that the targets need, each after those that it depends on."""

    stages: Mapping[str, Stage]

    @classmethod
    def read(cls, described: Iterable[Mapping[str, Any]]) -> Plan:
        """Return the plan out of what `flows.worker` tells of each stage."""
        stages = {}
        for entry in described:
            stages[entry["name"]] = Stage(
                entry["name"],
                entry["command"],
                tuple(entry["upstream"]),
                tuple(entry["stale"]),
                entry["threads"],
                entry["code"],
                Limits.read(entry["name"], entry["meta"]).with_gpus(entry.get("gpus", 0)),
                entry["frozen"],
            )
        return cls(stages)

    def to_run(self, force: bool = False) -> list[str]:
        """Return the stages that must run, or may have to once those before them have run.

        Those are what is stale and what descends from it; with `force`, all.
        """
        found: set[str] = set()
        for name, stage in self.stages.items():
            if force or stage.stale or found.intersection(stage.upstream):
                found.add(name)
        return [name for name in self.stages if name in found]

    def reason(self, name: str) -> str:
        """Return why a stage is to run, in short."""
        stale = self.stages[name].stale
        if not stale:
            return "comes after others that run"
        return ", ".join(stale[:3]) + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")


class Schedule:
    """Which stages may begin: their upstream is done, and there is room.

    Room is `jobs` stages at once, `cores` for the sum of their threads, and `gpus` devices: trainings that
    share a core wait for each other at every step. A stage of more threads than cores runs when nothing else
    does; one that says nothing of threads counts as one, or as less where more jobs than cores are wanted.
    Of several that may begin, the one with the longest chain of stages behind it does.
    """

    def __init__(self, plan: Plan, names: Iterable[str], jobs: int, cores: int, gpus: Iterable[str]) -> None:
        self._stages = {name: plan.stages[name] for name in names}
        self._waiting = dict.fromkeys(self._stages)
        self._running: dict[str, tuple[str, ...]] = {}
        self._failed: dict[str, str] = {}
        self._jobs, self._cores, self._gpus = jobs, cores, list(gpus)
        self._share = min(Fraction(1), Fraction(cores, jobs))
        for stage in self._stages.values():
            if stage.limits.gpu > len(self._gpus):
                raise DecantError(
                    f"{stage.name} wants {stage.limits.gpu} GPUs ({WANTED}), and this machine has"
                    f" {len(self._gpus)}; run it elsewhere or leave it out by naming targets"
                )
        self._depth: dict[str, int] = {}
        for name in reversed(list(self._stages)):
            self._depth.setdefault(name, 0)
            for above in self._stages[name].upstream:
                self._depth[above] = max(self._depth.get(above, 0), self._depth[name] + 1)

    @property
    def finished(self) -> bool:
        """Say whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    @property
    def threads(self) -> int:
        """Return the threads of all that runs, one for a stage that says nothing of them."""
        return sum(max(1, self._stages[name].threads) for name in self._running)

    def start(self) -> list[tuple[Stage, tuple[str, ...]]]:
        """Take what may begin now out of those that wait; each with the GPUs that it has to itself."""
        begun = []
        for name in sorted(self._waiting, key=lambda name: -self._depth[name]):
            stage = self._stages[name]
            if self._ready(stage) and self._room(stage):
                del self._waiting[name]
                taken, self._gpus = self._gpus[: stage.limits.gpu], self._gpus[stage.limits.gpu :]
                self._running[name] = tuple(taken)
                begun.append((stage, tuple(taken)))
        return begun

    def runs(self, name: str) -> bool:
        """Say whether a stage has begun and not finished."""
        return name in self._running

    def done(self, name: str) -> None:
        """Give back the room of a stage that has finished well."""
        self._gpus.extend(self._running.pop(name))

    def failed(self, name: str, go_on: bool) -> list[tuple[Stage, str]]:
        """Give back the room of a stage that failed; return what is skipped now, and because of which.

        With `go_on` those are its descendants, else all that have not begun.
        """
        self.done(name)
        self._failed[name] = name
        skipped = []
        for other in list(self._waiting):  # in the order of the graph, so causes are known before effects
            stage = self._stages[other]
            cause = next((self._failed[above] for above in stage.upstream if above in self._failed), None)
            if cause is not None or not go_on:
                del self._waiting[other]
                self._failed[other] = cause or name
                skipped.append((stage, cause or name))
        return skipped

    def _ready(self, stage: Stage) -> bool:
        return not any(above in self._waiting or above in self._running for above in stage.upstream)

    def _room(self, stage: Stage) -> bool:
        running = [self._stages[name] for name in self._running]
        if not running:
            return True
        if stage.limits.alone or any(other.limits.alone for other in running):
            return False
        threads = sum(other.threads or self._share for other in (*running, stage))
        return len(running) < self._jobs and threads <= self._cores and stage.limits.gpu <= len(self._gpus)
