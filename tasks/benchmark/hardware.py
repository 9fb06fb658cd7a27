"""What models are timed on: the processor, or a GPU where `benchmark.device` names one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch
from decant.networks.devices import CPU, computing_on, find, made_on, moved, placed, without_patterns
from decant.outputs import file_name
from tasks.benchmark.exports import Export, Failure
from tasks.benchmark.measure import REPEATS, describe_machine
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.semi_structured import times
from tasks.benchmark.tables import BENCHMARK, path_here


@dataclass(frozen=True)
class Hardware:
    """The processor.

    Attributes:
        threads: That both runtimes have.
    """

    threads: int

    @property
    def path(self) -> Path:
        """Where the times of this kind are kept."""
        return path_here()

    @property
    def machine(self) -> dict[str, Any]:
        """What the seconds depend on beside the models."""
        return describe_machine(self.threads)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have it ready for calls."""
        yield

    def network(self, module: nn.Module) -> Callable[..., Any]:
        """Return a network as a function of tensors of the processor, which ends when its answer is there."""
        return module

    def session(self, made: Export) -> Any:
        """Return the same as a session of ONNX Runtime."""
        return made.session

    def packed(
        self, exports: Mapping[str, Export], images: Batch, params: BenchmarkParams
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Failure]]:
        """Return what rows say of models packed for the pattern 2:4, and what failed; here nothing."""
        return {}, {}

    def memory(self, file: Path) -> int | None:
        """Return by how many bytes a process grows that opens a file; None where nobody knows."""
        return peak_bytes(file, max(REPEATS), self.threads)


@dataclass(frozen=True)
class Gpu(Hardware):
    """A GPU: inputs are copied there and answers back in each call, so that it ends when all is computed.

    Attributes:
        device: Which one.
    """

    device: torch.device

    @property
    def path(self) -> Path:
        """Where the times of this kind of GPU are kept."""
        return BENCHMARK / f"{file_name(self._card)}.json"

    @property
    def machine(self) -> dict[str, Any]:
        """What the seconds depend on beside the models: the GPU in the processor's place."""
        return super().machine | {"processor": self._card}

    @property
    def _card(self) -> str:
        return made_on(str(self.device))["gpu"]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have float32 without TF32, as everywhere."""
        with computing_on(self.device, ("all models and a batch of 128", CPU)):
            yield

    def network(self, module: nn.Module) -> Callable[..., Any]:
        """Return a copy on the GPU as a function of tensors of the processor."""
        return partial(_answered, placed(module, self.device), self.device)

    def session(self, made: Export) -> Any:
        """Return a session on the GPU."""
        from decant.export.accelerated import open_session_on

        return open_session_on(made.content, self.device)

    def packed(
        self, exports: Mapping[str, Export], images: Batch, params: BenchmarkParams
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Failure]]:
        """Return what rows say of models packed for the pattern 2:4, by name, and what failed."""
        if not params.semi_structured:
            return {}, {}
        found, failed = times(exports, images, params, self.device)
        return {name: {"semi_structured": row} for name, row in found.items()}, failed

    def memory(self, file: Path) -> int | None:
        """Return None: what a GPU holds is no process's peak."""
        return None


def _answered(module: nn.Module, device: torch.device, *inputs: Tensor) -> Any:
    return moved(module(*moved(inputs, device)), CPU)


def hardware_of(params: BenchmarkParams) -> Hardware:
    """Return what models are timed on.

    Raises:
        DecantError: The device is not there, or has no instructions for packed weights that are asked for.
    """
    if params.device == CPU:
        return Hardware(params.threads)
    device = find(params.device)
    if params.semi_structured and (wrong := without_patterns(device)):
        raise DecantError(f"benchmark.{wrong}")
    return Gpu(params.threads, device)
