"""dvc.lock as text: replaced in one piece, and what is left of one that was cut.

DVC writes it over in place, whole, for each stage: a kill, Ctrl-C or a full disk in that moment leaves it
empty or cut, and a merge leaves marks in it. Here it is text, not YAML, so that an entry takes milliseconds
to put in, and so that what is left of a file can be told from what is lost.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from decant.errors import DecantError

LOCK = Path("dvc.lock")
MEND = "python -m flows.mend"
"""The command that makes it whole."""

HEAD = "schema: '2.0'\nstages:\n"
_SHALLOW = re.compile(r"^(?! {3}|$).*$", re.MULTILINE)
_NAME = re.compile(r"  ([^\s#&*!|>%@`{}\[\],?-][^#&*]*):")
_ANCHOR, _ALIAS = re.compile(r"(?:: |- )&(\w+)"), re.compile(r"(?:: |- )\*(\w+)")
_OUT = re.compile(r"^    outs:\n((?: {4}[- ].*\n)*)", re.MULTILINE)
_PATH = re.compile(r"^    - path: (.+)\n", re.MULTILINE)
PATIENCE = 10.0
"""Seconds for which another DVC command may hold its lock before a broken file counts as broken."""


def entries(text: str) -> dict[str, str] | None:
    """Return the text of each stage's entry, by name, in a dvc.lock as DVC writes it.

    None where it is written otherwise, or where one entry refers to another (YAML's anchors). The last entry
    of a file that was cut may itself be cut.
    """
    if not text.startswith(HEAD):
        return None
    lines = list(_SHALLOW.finditer(text, len(HEAD)))
    names = [match[1] if (match := _NAME.fullmatch(line[0])) else None for line in lines]
    if (lines and lines[0].start() != len(HEAD)) or None in names or len(set(names)) < len(names):
        return None
    ends = [*(line.start() for line in lines), len(text)][1:]
    found = {str(name): text[line.start() : end] for name, line, end in zip(names, lines, ends, strict=True)}
    alone = all(set(_ALIAS.findall(entry)) <= set(_ANCHOR.findall(entry)) for entry in found.values())
    return found if alone else None


def with_entry(text: str, entry: str) -> str | None:
    """Return a dvc.lock with an entry in the place of the one of the same name, else at the end.

    Args:
        text: The whole file; empty where there is none.
        entry: Its lines, as they stand in the file.

    Returns:
        None where only YAML can tell.
    """
    before, added = entries(text or HEAD), entries(HEAD + entry)
    if before is None or added is None or (text and not text.endswith("\n")):
        return None
    return HEAD + "".join((before | added).values())


def replace(path: Path, text: str, folder: Path) -> None:
    """Replace a file in one piece: whoever reads it, whatever ends this process, finds the old or the new.

    Args:
        path: The file; where it is a link, what it names.
        text: Its new content.
        folder: Where a file is prepared, and left by a process that is killed: nobody looks at it there.
    """
    target, prepared = Path(os.path.realpath(path)), folder / f"{path.name}.new"
    try:
        with prepared.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk, on which half a file is no use
        prepared.unlink(missing_ok=True)
        raise
    if target.exists():
        shutil.copymode(target, prepared)
    try:
        prepared.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{path.name}.new")  # the folder lies on another disk
        shutil.copy2(prepared, beside)
        beside.replace(target)


def check(root: Path = Path()) -> None:
    """Raise where dvc.lock is broken or was cut. That there is none is well: nothing has run yet.

    Args:
        root: The folder of dvc.yaml.

    Raises:
        DecantError: It is no YAML, or ends in the middle, or lacks the last entries of Git's while what those
            stages wrote is there.
    """
    if damage(root) and (found := _once_nobody_writes(root)):
        raise DecantError(
            f"dvc.lock {found}, as a kill, a full disk or a merge leaves it: `{MEND}` makes it whole out of"
            " what is left and what Git has; what ran since then comes back out of DVC's run cache"
        )


def damage(root: Path) -> str:
    """Return what is wrong with dvc.lock, as a phrase; empty where nothing is."""
    try:
        text = (root / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        return "is no text"
    if text.startswith(HEAD) and not text.endswith("\n"):
        return "ends in the middle of a line"
    if (found := entries(text)) is None:
        wrong = "is no YAML that can be read" if text.strip() else "is empty"
        return "" if _stages(text) is not None else wrong
    if not all(map(_whole, list(found.values())[-1:])):
        return "ends in the middle of an entry, or in one that cannot be read"
    lost = forgotten(found, entries(committed(root)) or {})
    if lost and _on_disk(root, [path for entry in lost.values() for path in outs(entry)]):
        names = ", ".join(list(lost)[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        return f"has lost {names}, which Git's version has (where that is meant, `git add dvc.lock` says so)"
    return ""


def forgotten(found: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """Return the entries that a file has lost where it was cut: the last ones of the file before.

    Args:
        found: The entries that are there.
        before: Those that there were.
    """
    names = list(before)
    kept = [name for name in names if name in found]
    if kept != names[: len(kept)]:
        return {}
    last = kept[-1:] if kept and list(found)[-1] == kept[-1] else []
    cut = [name for name in last if not set(outs(before[name])) <= set(outs(found[name]))]
    return {name: before[name] for name in [*cut, *names[len(kept) :]]}


def mended(root: Path) -> tuple[str, list[str]]:
    """Return a whole dvc.lock out of what is left of it and what Git has, and the entries that are Git's."""
    text = (root / LOCK).read_text(encoding="utf-8", errors="replace")
    before = entries(committed(root)) or {}
    left = {name: entry for name, entry in _remains(text).items() if _whole(entry)}
    if left and ((last := list(left)[-1]) in before or not outs(left[last])):
        del left[last]  # some of its lines may be missing
    taken = [name for name in before if name not in left]
    return HEAD + "".join((before | left).values()), taken


def outs(entry: str) -> list[str]:
    """Return the paths that a stage wrote, by its entry."""
    return [path.strip("'\"") for block in _OUT.findall(entry) for path in _PATH.findall(block)]


def committed(root: Path) -> str:
    """Return dvc.lock as Git has it, to be committed or else in the last commit; empty where it has not."""
    for revision in ("", "HEAD"):
        shown = _git(root, "show", f"{revision}:./{LOCK}")
        if shown.returncode == 0:
            return shown.stdout.decode(errors="replace")
    return ""


def _remains(text: str) -> dict[str, str]:
    """Return the entries that can be read in a damaged file."""
    found: dict[str, str] = {}
    for block in re.split(r"^(?=  \S)", text.partition("stages:\n")[2], flags=re.MULTILINE):
        if block.endswith("\n"):
            found |= entries(HEAD + block) or {}
    return found


def _whole(entry: str) -> bool:
    """Say whether an entry has all that it says of each file."""
    if not entry.endswith("\n") or (stages := _stages(HEAD + entry)) is None:
        return False
    files = [file for found in stages.values() for key in ("deps", "outs") for file in found.get(key) or []]
    return all(isinstance(file, dict) and set(file) - {"path", "hash"} for file in files)


def _stages(text: str) -> dict[str, dict[str, Any]] | None:
    """Return the entries of a dvc.lock; None where it is no YAML that can be read, or has none."""
    from tasks.pipeline.yaml_reader import parse  # who only puts entries in has no use for it

    try:
        content = parse(text, str(LOCK))
    except DecantError:
        return None
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict):
        return None
    well = all(isinstance(entry, dict) and "cmd" in entry for entry in stages.values())
    return stages if well else None


def _on_disk(root: Path, paths: list[str]) -> bool:
    """Say whether one of these is there and is not Git's to keep."""
    if not (there := [path for path in paths if (root / path).exists()]):
        return False
    kept = _git(root, "ls-files", "-z", "--", *there).stdout.decode(errors="replace").split("\0")
    return any(path not in kept and not any(one.startswith(f"{path}/") for one in kept) for path in there)


def _once_nobody_writes(root: Path) -> str:
    """Return what is wrong with dvc.lock when no DVC command holds its lock any more."""
    import fcntl

    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (root / ".dvc" / "tmp" / "lock").open("a") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.1)
        return damage(root)


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 1, b"", b"")
