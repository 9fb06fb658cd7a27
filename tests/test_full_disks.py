"""A full disk is one sentence with what is left, whoever could not write."""

import errno
import itertools
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from decant import outputs
from decant.errors import DecantError
from tasks.pipeline.stage import report_errors
from tasks.prepare import room, tables
from tasks.prepare.__main__ import main as prepare
from tests.homes import home
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


def test_a_file_takes_no_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("by hand")
    with pytest.raises(DecantError, match=r"docs is a folder, and a file was to be written; name a file"):
        outputs.write_text(tmp_path / "docs", "a report")
    with pytest.raises(
        DecantError, match=r"^Cannot write .*page\.md/a\.json: (Not a directory|File exists); name"
    ):
        outputs.write_json(tmp_path / "docs" / "page.md" / "a.json", {})
    assert [file.name for file in tmp_path.rglob("*")] == ["docs", "page.md"]
    assert (tmp_path / "docs" / "page.md").read_text() == "by hand"


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), outputs.telling_full_disks():
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyboardInterrupt), outputs.telling_full_disks():
        raise KeyboardInterrupt


def test_an_error_without_a_name_gets_that_of_the_file_that_was_written(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EFBIG):
        with pytest.raises(OSError, match=str(tmp_path / "table")), outputs.replacing(tmp_path / "table"):
            raise OSError(number, "no more")


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


def arrays(rows: int) -> None:
    Path("data/arrays").mkdir(parents=True, exist_ok=True)
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    np.savez("data/arrays/all.npz", x=x, y=np.arange(rows) % 3)


def pictures(count: int) -> None:
    for name in ("a", "b"):
        Path("data/own/photos", name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(f"data/own/photos/{name}/{number}.png")


OF_ARRAYS = {"source": "arrays", "train": "data/arrays/all.npz", "validation": 5, "test": 5, "labels": "y"}
SHARES = {"kind": "shares", "validation": 0.2, "test": 0.2}
OF_PICTURES = {"source": "folder", "folder": "data/own/photos", "size": [4, 4], "split": SHARES}


def there() -> dict[str, bytes]:
    """Return all tables, whole or not."""
    return {path.name: path.read_bytes() for path in Path("data").glob("*") if path.is_file()}


@pytest.mark.parametrize(("make", "data"), [(arrays, OF_ARRAYS), (pictures, OF_PICTURES)])
@pytest.mark.parametrize("table", [1, 2, 3])
def test_a_disk_that_fills_up_while_tables_are_written_leaves_what_was_there(
    make: Callable[[int], None],
    data: dict[str, Any],
    table: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with home(tmp_path, params={"seed": 3, "data": data}):
        make(20)
        prepare()
        before = there()
        make(40)
        write, calls = tables.pq.ParquetWriter.write_table, itertools.count(1)

        def until_full(writer: Any, content: Any, **more: Any) -> None:
            write(writer, content, **more)
            if next(calls) == table:
                raise OSError(errno.ENOSPC, "No space left on device", "data")

        monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", until_full)
        told = "error: no space left on the disk of /.* kept, data.* is as it was"
        with pytest.raises(SystemExit, match=told), report_errors():
            prepare()
        assert there() == before and len(before) == 3


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_may_not_grow_is_told_and_nothing_is_lost(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"source": "table", "file": "data/own/rows.csv", "numbers": ["a"], "split": SHARES}
    with home(tmp_path, params={"seed": 3, "data": table}):
        Path("data/own").mkdir(parents=True)
        Path("data/own/rows.csv").write_text("a\n" + "\n".join(map(str, range(100))))
        prepare()
        before = there()
        Path("data/own/rows.csv").write_text("a\n" + "\n".join(map(str, range(9000))))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if mapped:  # what is read lies in a file, which is the first that may not grow
            monkeypatch.setattr(room, "SMALL", 10)
        name = "a file" if mapped else "data/train.parquet"
        told = f"error: {name} grew as large as a file may be here; raise the limit"
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(SystemExit, match=told), report_errors():
                prepare()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert there() == before and len(before) == 3


SMALL = """
mount -t tmpfs -o size=400k none data
cp -r kept/. data
python -m tasks.prepare || exit 2
cp params.more.yaml params.yaml
head -c 250000 /dev/zero > data/rest
sha256sum data/*.parquet > before
python -m tasks.prepare
echo $? > status
sha256sum data/*.parquet > after
ls -A data > left
"""
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this system lets no one make a small disk of one's own")
def test_a_small_disk_that_really_fills_up(tmp_path: Path) -> None:
    with home(tmp_path, params={"seed": 3, "data": OF_ARRAYS}):
        arrays(2000)
        Path("data").rename("kept")
        Path("data").mkdir()
        more = yaml.safe_dump({"seed": 4, "data": OF_ARRAYS | {"validation": 700}})
        Path("params.more.yaml").write_text(more)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
        done = subprocess.run(
            [*NAMESPACES, "sh", "-c", SMALL], env=environment, capture_output=True, text=True, check=False
        )
        assert Path("status").read_text() == "1\n", done.stderr
        assert (
            done.stderr.startswith("error: no space left on the disk of /") and done.stderr.count("\n") == 1
        )
        assert Path("after").read_text() == Path("before").read_text()
        assert sorted(Path("left").read_text().split()) == [
            *("arrays", "rest", "test.parquet", "train.parquet", "validation.parquet"),
        ]
