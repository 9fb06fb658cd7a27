"""Processes that train one network together, each on its share of every batch.

torch's launcher `torchrun`, or a stage whose recipe asks for several, starts them with the variables by
which they find one another. Each runs the whole program; only trainings are shared out. All that is asked of
`torch.distributed` is asked here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from decant.errors import DecantError, LostProcessError
from decant.lazy import torch
from decant.memory import ran_out
from decant.networks.devices import take_, told_by_launcher

if TYPE_CHECKING:
    from torch import Tensor

RANK, COUNT = "RANK", "WORLD_SIZE"
"""The variables in which `torchrun` tells a process its number, from 0, and how many there are."""

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: to begin, and for their part of a sum."""

BUCKET = 32 << 20
"""Bytes of gradients that are summed at a time."""


def started() -> int:
    """Return how many processes were started together with this one, itself included.

    Raises:
        DecantError: The variable is no number.
    """
    return told_by_launcher(COUNT, 1)


def number() -> int:
    """Return the number of this process among those, from 0.

    Raises:
        DecantError: The variable is none of their numbers.
    """
    if (count := started()) < 2:
        return 0
    if (found := told_by_launcher(RANK, 0)) >= count:
        raise DecantError(f"{RANK} is {found}, and of {count} processes the last one has {count - 1}")
    return found


@dataclass(frozen=True)
class Processes:
    """All processes of a training, as one of them sees them.

    Attributes:
        rank: Its number, from 0; the first one alone writes.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def of(self, count: int) -> slice:
        """Return which of so many rows in a line are its own: all shares are of one size, or one more."""
        small, more = divmod(count, self.count)
        start = self.rank * small + min(self.rank, more)
        return slice(start, start + small + (self.rank < more))

    def summed(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor, of its shape; the same bits in each."""
        if self.count == 1:
            return numbers
        found = numbers.detach().clone(memory_format=torch.contiguous_format)
        with _together():
            torch.distributed.all_reduce(found)
        return found

    def stacked(self, numbers: Tensor) -> Tensor:
        """Return a tensor [...] of all processes as one, [processes, ...], in their order."""
        if self.count == 1:
            return numbers[None]
        found = numbers.new_empty(self.count, *numbers.shape)
        with _together():
            torch.distributed.all_gather(list(found), numbers.detach().contiguous())
        return found

    def joined(self, rows: Tensor) -> Tensor:
        """Return the rows [n, M] of all processes in their order, [N, M]; n may differ, and be 0."""
        if self.count == 1:
            return rows
        sizes = self.stacked(torch.tensor([*rows.shape], device=rows.device)).tolist()
        longest, width = max(size for size, _ in sizes), max(width for _, width in sizes)
        padded = rows.new_zeros(longest, width)
        padded[: len(rows), : rows.shape[1]] = rows
        return torch.cat([each[:size] for each, (size, _) in zip(self.stacked(padded), sizes, strict=True)])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in place, some megabytes at a time; the same bits in each."""
        for bucket in _buckets(tensors):
            flat = self.summed(torch.cat([each.reshape(-1) for each in bucket]))
            for tensor, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def check_alike(self, what: str, value: int, device: torch.device) -> None:
        """Check that a number is the same in all processes.

        Raises:
            DecantError: It is not; names it.
        """
        if self.count == 1:
            return
        found = self.stacked(torch.tensor(value, device=device)).tolist()
        if len({*found}) > 1:
            told = ", ".join(f"{each} in process {rank}" for rank, each in enumerate(found))
            raise DecantError(
                f"Processes of one training have to be alike, and they differ in {what}: {told}; let them "
                "run in one folder"
            )


ALONE = Processes()


def sum_of_bits(tensors: Iterable[Tensor]) -> int:
    """Return a number in [0, 2^56) that is another one where any bit of the tensors is."""
    found = hashlib.sha256()
    for each in tensors:
        found.update(each.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest()[:7], "big")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type, some at a time; at least one."""
    bucket: list[Tensor] = []
    for each in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        size = sum(other.nbytes for other in bucket) + each.nbytes
        if bucket and (size > BUCKET or bucket[0].dtype != each.dtype):
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


# --- how they find one another


def together(count: int, device: torch.device, facts: Mapping[str, str] | None = None) -> Processes:
    """Return the processes of a training, once all of them are there and alike.

    Args:
        count: How many the recipe asks for.
        device: Where this one trains: sums go over NCCL on GPUs, over gloo on processors.
        facts: What has to be the same in all of them, beside the versions of torch and of this library.

    Raises:
        DecantError: There are more or fewer, one does not come, or they are not alike.
    """
    if count != started():
        raise DecantError(_other_count(count))
    if count == 1:
        return ALONE
    rank = number()
    if not torch.distributed.is_initialized():
        _join(device, {**_versions(), **(facts or {})})
    return Processes(rank, count)


def _other_count(count: int) -> str:
    """Return that there are more or fewer processes than the recipe asks for."""
    one = f"torchrun --nproc-per-node {count} --no-python python …" if count > 1 else "torchrun left out"
    return (
        f"training.processes: the recipe asks for {count}, and {started()} were started; start {count} "
        f"({one}), or have the recipe say {started()}"
    )


def _join(device: torch.device, facts: Mapping[str, str]) -> None:
    """Meet the others, compare facts with them, and make the group."""
    from torch.distributed.rendezvous import rendezvous

    dist, count = torch.distributed, started()
    try:
        store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        store.set(f"facts of {rank}", json.dumps(dict(facts)))
        found = [json.loads(store.get(f"facts of {each}")) for each in range(count)]
        store.set(f"read by {rank}", "")
        if rank == 0:  # which may keep the store: it may not end before all have read it
            store.wait([f"read by {each}" for each in range(count)])
        _check_facts(found)
        dist.init_process_group(take_(device), store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"Process {number()} of {count} did not find the others ({_first_line(error)}); start all of "
            "them together"
        ) from None


def _check_facts(facts: Sequence[Mapping[str, str]]) -> None:
    """Refuse processes that are not alike.

    Raises:
        DecantError: Names what differs.
    """
    names = dict.fromkeys(name for each in facts for name in each)
    differing = [name for name in names if len({each.get(name) for each in facts}) > 1]
    if not differing:
        return
    told = "; ".join(
        f"{name}: " + ", ".join(f"{each.get(name, 'nothing')} in process {n}" for n, each in enumerate(facts))
        for name in differing
    )
    raise DecantError(
        f"Processes of one training have to be alike, and they differ in {told}; start all of them with the "
        "same environment and checkout"
    )


def _versions() -> dict[str, str]:
    """Return the versions that bits depend on: of torch, and of the code of this library."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return {
        "torch": torch.__version__,
        "decant": f"the code {digest.hexdigest()[:12]}",
        "threads": str(torch.get_num_threads()),
    }


def leave() -> None:
    """Leave the others, once nothing is asked of them any more; nothing where there are none."""
    if started() > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Tell in a sentence that another process is gone.

    Raises:
        LostProcessError: In the place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:  # torch.distributed.DistBackendError is one
        if ran_out(error):
            raise
        raise LostProcessError(
            f"Another process of this training ended ({_first_line(error)}); run it again: it goes on from "
            "its last whole epoch"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text.rpartition("] ")[2] or type(error).__name__


def shares(count: int, size: int, processes: Processes) -> slice:
    """Return which of `count` rows a process answers where all are answered in batches of `size`."""
    own = processes.of(math.ceil(count / size))
    return slice(own.start * size, min(own.stop * size, count))
