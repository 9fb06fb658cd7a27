"""A full disk is one sentence with what is left, whoever could not write."""

import errno
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from decant import outputs
from decant.errors import DecantError
from tests.imports import ROOT

FULL = Path("/dev/full")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        DecantError("Cannot write model.safetensors: [Errno 28] No space left on device"),
    ],
    ids=repr,
)
def test_whoever_says_so_it_is_one_sentence(error: Exception) -> None:
    told = r"^no space left on the disk of /.*: [0-9]+ MB free; make room and run again"
    with pytest.raises(DecantError, match=told), outputs.telling_full_disks():
        raise error
    with pytest.raises(DecantError, match=told), outputs.telling_full_disks():
        raise ValueError("something else") from error


def test_what_torch_says_counts_where_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2877312 vs 2877200")
    monkeypatch.setattr(outputs, "_fullest", lambda _: (10**9, Path("/")))
    assert not outputs.is_full(error)
    monkeypatch.setattr(outputs, "_fullest", lambda _: (10**5, Path("/")))
    assert outputs.is_full(error)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), outputs.telling_full_disks():
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyboardInterrupt), outputs.telling_full_disks():
        raise KeyboardInterrupt


@pytest.mark.skipif(not FULL.exists(), reason="Linux has a file on a disk that is full")
def test_a_command_ends_with_the_sentence() -> None:
    script = (
        "from pathlib import Path; from tasks.pipeline.stage import report_errors\n"
        "with report_errors(): Path('/dev/full').write_text('x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk of /")
    assert done.stderr.count("\n") == 1
