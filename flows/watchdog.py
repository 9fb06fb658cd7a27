"""The process that ends a flow's children, whatever ended the flow.

It reads from a pipe whose other end the flow holds, and the flow alone: `+N` for a process group that was
started, `-N` for one that is gone, `.` for an end that is meant. The pipe ends with the flow, even when that
is killed with signal 9. Then every group that is left is ended, and DVC's lists of readers and writers that
the arguments name are tidied. So there is one way to stop, and it is taken every time.

Where the end was not meant, whatever else the flow has started is ended too, such as the server that Prefect
starts for itself: all of it has the mark, a variable that the flow has put into its environment.

The flow's lock of the workspace is held here too, so that it is free only when nothing is left to disturb.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil

GRACE = 2.0
"""Seconds between asking a group to end (SIGINT) and ending it (SIGKILL)."""


def main() -> None:
    """Watch until the pipe ends, then end all groups and tidy DVC's list of readers and writers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # of the terminal's signals only the flow takes notice
    mark, *paths = sys.argv[1:]
    groups: set[int] = set()
    meant = False
    for line in sys.stdin:
        if line[0] == ".":
            meant = True
        else:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    end_groups(groups)
    if not meant:
        end_marked(mark)
    for path in paths:
        release(Path(path))


def end_marked(mark: str) -> None:
    """End all processes that have a variable of this name, and those that they start meanwhile."""
    deadline = time.monotonic() + 1
    while (found := marked(mark)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that are alive and have a variable of this name."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if mark in process.environ() and alive(process.pid):
                found.append(process)
    return found


def end_groups(groups: Collection[int], grace: float = GRACE) -> None:
    """End process groups: SIGINT, and SIGKILL for what is still there `grace` seconds later.

    Those are their members, and what these have started in groups of its own.
    """
    family = {child for pid in members(groups) for child in descendants(pid)}
    for group in groups:
        send(group, signal.SIGINT)
    deadline = time.monotonic() + grace
    while (members(groups) or family) and time.monotonic() < deadline:
        time.sleep(0.05)
        family |= {child for process in family for child in descendants(process.pid)}  # some begin meanwhile
        family = {process for process in family if process.is_running() and alive(process.pid)}
    for group in groups:
        send(group, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 1
    while members(groups) and time.monotonic() < deadline:  # the kernel takes a moment
        time.sleep(0.02)


def members(groups: Collection[int]) -> list[int]:
    """Return the processes of these groups that are alive; one that only waits to be waited for is not."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) in groups and alive(pid):
                found.append(pid)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """Return the processes that a process has started, and those that they have."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def send(group: int, number: int) -> None:
    """Send a signal to a process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def release(path: Path) -> None:
    """Strike processes that are gone from DVC's list of readers and writers (.dvc/tmp/rwlock).

    DVC would do so itself, path by path and with a warning for each, but for numbers that another process has
    by now, for processes that nobody waits for, and for a list that a full disk has cut.
    """
    with contextlib.suppress(OSError), path.with_name("rwlock.lock").open("a") as guard:
        _lock(guard.fileno())  # DVC's own, held for milliseconds
        written, text = path.stat().st_mtime, path.read_text(encoding="utf-8", errors="replace")
        try:
            content = json.loads(text)
            kept = _kept(content, written)
        except (ValueError, TypeError, KeyError, AttributeError):  # no list of DVC's: it could not read it
            content, kept = None, {}
        if kept != content:
            temporary = path.with_name("rwlock.decant")
            temporary.write_text(json.dumps(kept), encoding="utf-8")
            temporary.replace(path)


def _lock(number: int, seconds: float = 1.0) -> None:
    """Take a lock on an open file.

    Raises:
        BlockingIOError: Another process has had it for so long.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _kept(content: dict[str, Any], written: float) -> dict[str, Any]:
    """Return DVC's list without processes that are gone."""
    readers = {
        name: [info for info in found if holds(info["pid"], info["cmd"], written)]
        for name, found in content.get("read", {}).items()
    }
    writers = content.get("write", {}).items()
    return {
        "write": {name: info for name, info in writers if holds(info["pid"], info["cmd"], written)},
        "read": {name: found for name, found in readers.items() if found},
    }


def holds(pid: int, command: str, written: float) -> bool:
    """Say whether a process is alive and the one that DVC has listed, not another one of the same number.

    Args:
        pid: Its number.
        command: Its arguments, as DVC has listed them: the script's path, then words.
        written: When the list was written last, in seconds; whoever began later is not in it.
    """
    try:
        process = psutil.Process(pid)
        words, began = " ".join(process.cmdline()), process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    script, _, rest = command.partition(" ")
    same = words.endswith(rest) and (Path(script).name in words or "dvc" in words)
    return alive(pid) and same and began <= written + 2


def alive(pid: int) -> bool:
    """Say whether there is such a process; one that ended and was not waited for is none."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends between opening and reading
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not Path("/proc/self").exists()


if __name__ == "__main__":
    main()
