"""Stages whose recipe asks for several processes: the one that was called starts them, and waits for all.

Each runs the same stage; the first one alone prints and writes. Where `torchrun` has started them, they are
there already, as many as the recipe has to say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import IO, Any

from decant.errors import DecantError, Message
from decant.networks.processes import COUNT, RANK
from decant.schema import Section
from decant.training.recipe import Training
from tasks.pipeline.stage import LOST

PROCESSES = "processes"

OURS = "DECANT_PROCESSES"
"""The variable by which a process knows that a stage has started it, and ends when that stage is gone."""

GRACE = 10.0
"""Seconds that the others have to end by themselves once one has ended."""


def asked(section: Section) -> int:
    """Return how many processes a block asks for in any of its trainings; 1 where it asks for none."""
    counts = [section.processes] if isinstance(section, Training) else []
    inner = (getattr(section, name) for name in type(section).model_fields)
    return max([1, *counts, *(asked(each) for each in inner if isinstance(each, Section))])


def without(recipe: Any, key: str) -> Any:
    """Return JSON without a key, wherever it stands."""
    if isinstance(recipe, Mapping):
        return {name: without(value, key) for name, value in recipe.items() if name != key}
    return [without(each, key) for each in recipe] if isinstance(recipe, list | tuple) else recipe


def in_processes(count: int) -> None:
    """Return in each of the processes that a recipe asks for; where this is none yet, start them and end.

    Raises:
        DecantError: The stage is not run as `python -m tasks.…`, so that it cannot be started again.
    """
    if OURS in os.environ:
        threading.Thread(target=_end_with_the_stage, daemon=True).start()
    if count == 1 or COUNT in os.environ:
        return
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is None or not main.name.startswith("tasks."):
        raise DecantError(
            f"training.processes: the recipe asks for {count}: run the stage as python -m tasks.…, or start "
            f"them by torchrun --nproc-per-node {count}"
        )
    with ExitStack() as stack:
        sys.exit(_ran(_begun(count, stack)))


def _end_with_the_stage() -> None:
    """End this process when what has started it is gone: nobody would end it otherwise."""
    os.read(0, 1)  # unbuffered: a lock on `sys.stdin` would abort an interpreter that ends
    os._exit(LOST)


_Process = tuple["subprocess.Popen[bytes]", IO[bytes] | None]
"""A process, and where it writes what it has to say; None for the first, which says it itself."""


def _begun(count: int, stack: ExitStack) -> list[_Process]:
    """Start all processes; they find one another by a store that this one keeps."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is there, and not in __all__

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=10))
    stack.callback(lambda: store)  # it is there as long as they are
    settings = os.environ | {
        OURS: "1",
        COUNT: str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    return [_started(command, settings, rank, stack) for rank in range(count)]


def _started(command: Sequence[str], settings: Mapping[str, str], rank: int, stack: ExitStack) -> _Process:
    said = tempfile.TemporaryFile() if rank else None  # noqa: SIM115  # it lives as long as the process
    process = subprocess.Popen(
        command,
        env={**settings, RANK: str(rank), "LOCAL_RANK": str(rank)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=said,
    )
    stack.callback(_end, process)
    return process, said


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process by what it waits for, and by force where that is not enough."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ran(processes: Sequence[_Process]) -> int:
    """Wait for all; say why the run failed where the first process did not; return the exit status."""
    _wait([process for process, _ in processes])
    codes = [process.returncode for process, _ in processes]
    if 130 in codes:
        return 130
    if codes[0] < 0:
        print(file=sys.stderr)  # behind the bar that it left
    for line in _causes(processes) if codes[0] in (0, LOST) or codes[0] < 0 else ():
        print(f"error: {line}", file=sys.stderr)
    return int(any(codes))


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended; once one has failed, for no more than a while, and then end the others."""
    until = float("inf")
    while any(each.poll() is None for each in processes) and time.monotonic() < until:
        if any(each.returncode for each in processes):
            until = min(until, time.monotonic() + GRACE)
        time.sleep(0.05)
    for each in processes:
        if each.poll() is None:
            each.kill()
            each.wait()


def _causes(processes: Sequence[_Process]) -> Iterator[Message]:
    """Yield what ended each process that did not end because of another one."""
    for rank, (process, said) in enumerate(processes):
        code = process.returncode
        if code in (0, LOST):
            continue
        place = f"process {rank} of {len(processes)}"
        if code < 0:
            yield (f"{place} was ended by signal {-code}; run it again: it goes on from the last whole epoch")
        elif said is not None:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            yield f"{place}: {lines[-1].removeprefix('error: ') if lines else f'it ended with {code}'}"
