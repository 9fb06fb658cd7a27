"""A dvc.lock that was cut is told, whatever is left of it, and one command makes it whole."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decant.errors import DecantError
from flows import mend
from flows.pool import Pool
from flows.session import opened
from tasks.pipeline import lockfile
from tests.imports import ROOT
from tests.toys import git, workspace, writes
from tests.warm_dvc import dvc

CHAIN = {
    "a": writes("a.out"),
    "b": writes("b.out", "a.out"),
    "long": writes("long.out", cmd="echo " + "word " * 40),
    "last": writes("last.out", "b.out", "long.out"),
}
AUTHOR = ("-c", "user.name=D", "-c", "user.email=d@example.org")


EXPANDING = "".join(
    f"\n        m{depth}: &m{depth} {{<<: [{', '.join(9 * [f'*m{depth - 1}'])}]}}" if depth else "&m0 {x: 1}"
    for depth in range(12)
)
"""A few hundred characters that stand for more values than memory holds."""


def entry_with(value: str) -> str:
    """Return a stage's entry of dvc.lock that holds a parameter of this value."""
    return f"  more:\n    cmd: x\n    params:\n      params.yaml:\n        m0: {value}\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace in which all stages have run, and Git has the dvc.lock; tests work in copies."""
    folder = workspace(tmp_path_factory.mktemp("lockfile") / "w", CHAIN)
    with Pool(folder) as pool:
        assert [pool.run(name) for name in CHAIN] == ["Ran"] * 4
    git(folder, "add", "dvc.lock")
    git(folder, *AUTHOR, "commit", "--quiet", "-m", "built")
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "w"))


def status(folder: Path) -> str:
    return dvc(folder, "status", "--json").strip()


def test_a_whole_one_is_well_and_none_is_too(folder: Path) -> None:
    lockfile.check(folder)
    assert mend.mend(folder) == "dvc.lock is whole"
    (folder / "dvc.lock").unlink()
    lockfile.check(folder)


def test_wherever_it_is_cut_it_is_told_and_nothing_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "dvc.lock").read_text()
    monkeypatch.setattr(lockfile, "committed", lambda _: whole)  # asked of Git in the other tests
    monkeypatch.setattr(lockfile, "_on_disk", lambda *_: True)
    ends = [match.end() for match in re.finditer("\n", whole)][:-2]  # the last line but one says a size
    for end in sorted({*ends, *(end - 5 for end in ends), *range(0, len(whole), 50)} - {len(whole)}):
        (folder / "dvc.lock").write_text(whole[:end])
        assert lockfile.damage(folder) != "", whole[:end][-80:]
        text, _ = lockfile.mended(folder)
        assert lockfile.entries(text) == lockfile.entries(whole), whole[:end][-80:]


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (lambda text: "", "dvc.lock is empty"),
        (lambda text: "\0" * len(text), "dvc.lock is no YAML that can be read"),
        (lambda text: text.replace("  b:\n", "<<<<<<< HEAD\n  b:\n"), "dvc.lock is no YAML that can be read"),
        (lambda text: text[: text.index("  last:")], "dvc.lock has lost last, which Git's version has"),
        (lambda text: text[: text.index("  long:")], "dvc.lock has lost long, last, which Git's"),
        (lambda text: text[: text.rindex("    outs:")], "dvc.lock has lost last"),
        (lambda text: text[: text.rindex("md5: ") + 9], "ends in the middle of a line"),
        (lambda text: f"{text}{entry_with('[' * 200_000 + ']' * 200_000)}", "in one that cannot be read"),
        (lambda text: f"{text}{entry_with(EXPANDING)}", "in one that cannot be read"),
        (lambda text: f"# text\n{text}{entry_with('[' * 200_000)}", "is no YAML that can be read"),
    ],
)  # fmt: skip
def test_what_a_crash_leaves_is_told_and_mended(damaged, told: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    whole = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(damaged(whole))
    with pytest.raises(DecantError, match=f"{told}.*`python -m flows.mend` makes it whole"):
        lockfile.check(folder)
    done = subprocess.run(
        [sys.executable, "-m", "flows.mend"], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "now it has 4 entries" in done.stdout
    assert lockfile.entries((folder / "dvc.lock").read_text()) == lockfile.entries(whole)
    lockfile.check(folder)


def test_after_mending_nothing_is_to_be_done(folder: Path) -> None:
    whole = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(whole[: whole.index("  long:") + 20])
    mend.mend(folder)
    assert status(folder) == "{}"


def test_what_ran_since_the_commit_is_kept_or_comes_out_of_the_run_cache(folder: Path) -> None:
    git(folder, "rm", "--quiet", "--cached", "dvc.lock")
    git(folder, *AUTHOR, "commit", "--quiet", "-m", "not the last ones")
    whole = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(whole[:-10])
    assert "now it has 3 entries" in mend.mend(folder)
    with Pool(folder) as pool:
        assert pool.run("last") == "RestoredFromRunCache"
    assert (folder / "dvc.lock").read_text() == whole


def test_where_nothing_is_left_and_git_has_none_it_says_what_to_do(folder: Path) -> None:
    git(folder, "rm", "--quiet", "--cached", "dvc.lock")
    git(folder, *AUTHOR, "commit", "--quiet", "-m", "without")
    (folder / "dvc.lock").write_text("")
    with pytest.raises(DecantError, match="remove it, and `dvc repro` takes what it can from the run cache"):
        mend.mend(folder)


def test_entries_that_somebody_removed_are_no_damage(folder: Path) -> None:
    found = lockfile.entries((folder / "dvc.lock").read_text())
    assert found is not None

    def keep(*names: str) -> None:
        (folder / "dvc.lock").write_text(lockfile.HEAD + "".join(found[name] for name in names))

    keep("a", "b", "last")
    assert lockfile.damage(folder) == ""
    keep("a", "b")
    assert lockfile.damage(folder) != ""
    git(folder, "add", "dvc.lock")
    assert lockfile.damage(folder) == ""
    keep("a")
    for out in folder.glob("*.out"):
        out.unlink()  # as in a fresh clone that has built one stage
    assert lockfile.damage(folder) == ""


def test_a_file_that_is_just_being_written_is_waited_for(folder: Path) -> None:
    hold = (
        "import time, zc.lockfile, pathlib as p; lock = zc.lockfile.LockFile('.dvc/tmp/lock');"
        "file = p.Path('dvc.lock'); text = file.read_text(); file.write_text(text[:100]);"
        "print('cut', flush=True); time.sleep(1); file.write_text(text)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=folder, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"cut\n"
    lockfile.check(folder)
    other.communicate()


@pytest.mark.parametrize(
    "text",
    [
        "# words\nschema: '2.0'\nstages:\n  a:\n    cmd: x\n",
        "stages:\n  a:\n    cmd: x\nschema: '2.0'\n",
        "schema: '2.0'\nstages: {}\n",
        "schema: '2.0'\nstages:\n  a: {cmd: x}\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\n  a:\n    cmd: y\n",
        "schema: '2.0'\nstages:\n  a:\n    params: &x\n      n: 1\n  b:\n    params: *x\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\n  # words\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\ndatasets: []\n",
    ],
)
def test_what_dvc_did_not_write_so_is_left_to_yaml(text: str) -> None:
    assert lockfile.entries(text) is None
    assert lockfile.with_entry(text, "  b:\n    cmd: x\n") is None


def test_a_file_is_replaced_in_one_piece_and_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link, folder = tmp_path / "real", tmp_path / "dvc.lock", tmp_path / "tmp"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    folder.mkdir()
    lockfile.replace(link, "new", folder)
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o640)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        lockfile.replace(link, "newer", folder)
    assert real.read_text() == "new"
    assert list(folder.iterdir()) == []


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def checked(folder: Path) -> tuple[int, str]:
    """Return how `make repro` begins: its exit status, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.mend", "--check"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_comes_before_dvc_tells_it(folder: Path) -> None:
    whole = (folder / "dvc.lock").read_text()
    assert checked(folder) == (0, "")
    (folder / "dvc.lock").write_text(whole[: len(whole) // 2])
    with pytest.raises(DecantError, match=r"dvc\.lock ends in the middle"), opened(folder, [], False):
        pass
    status, told = checked(folder)
    assert (status, told.count("\n")) == (1, 1)
    assert told.startswith("error: dvc.lock ends in the middle")
    assert (folder / "dvc.lock").read_text() == whole[: len(whole) // 2]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^repro:.*\n\t\$\(PYTHON\) -m flows\.mend --check\n", makefile, re.MULTILINE)


def test_readers_and_writers_that_a_power_cut_has_left_block_nothing(folder: Path) -> None:
    """Nothing was left that could have struck them, and one of their numbers is another process's by now."""
    path = folder / ".dvc" / "tmp" / "rwlock"
    worker = {"pid": os.getpid(), "cmd": "/somewhere/flows/worker.py"}
    content = {"write": {str(folder / "a.out"): worker}, "read": {str(folder / "b.out"): [worker]}}
    for text in (json.dumps(content), json.dumps(content)[:-9], ""):
        path.write_text(text)
        assert checked(folder) == (0, "")
        assert not any(json.loads(path.read_text()).values())
    assert status(folder) == "{}"
