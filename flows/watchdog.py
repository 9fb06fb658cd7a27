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
    """End all processes that have a variable of this name."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.environ():
                process.kill()


def end_groups(groups: Collection[int], grace: float = GRACE) -> None:
    """End process groups: SIGINT, and SIGKILL for what is still there `grace` seconds later.

    Those are their members, and what these have started in groups of its own.
    """
    family = {child for group in groups for child in descendants(group)}
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

    DVC would do it itself, path by path and with a warning for each, the next time that it meets them.
    """
    with contextlib.suppress(FileNotFoundError, BlockingIOError, json.JSONDecodeError):
        guard = path.with_name("rwlock.lock").open("a")  # DVC's own, held for milliseconds
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {
            "write": {name: info for name, info in content.get("write", {}).items() if alive(info["pid"])},
            "read": {
                name: infos
                for name, found in content.get("read", {}).items()
                if (infos := [info for info in found if alive(info["pid"])])
            },
        }
        if kept != content:
            temporary = path.with_name("rwlock.decant")
            temporary.write_text(json.dumps(kept), encoding="utf-8")
            temporary.replace(path)


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
