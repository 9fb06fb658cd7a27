"""What DVC does anew for each stage, done once: reading params.yaml, hashing, writing the whole of dvc.lock.

For `flows.worker`, whose process is DVC's. By itself, DVC takes minutes to plan three hundred models: for
each stage it parses the whole of params.yaml, and walks through all of it for each parameter; and for each
stage that has run it parses and writes the whole of dvc.lock, in place.

DVC promises nothing of what is used here; tests/test_entries.py holds it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.pipeline import lockfile

if TYPE_CHECKING:
    from dvc.fs import FileSystem
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

GLOB = frozenset("*?[]!")
"""What makes a parameter's name a pattern to DVC."""


def remember_params() -> None:
    """Have DVC parse a file of parameters once for each content of it, in this process."""
    from dvc.dependency import param

    original, known = param.read_param_file, dict[str, tuple[bytes, Any]]()

    def read(
        fs: FileSystem, path: str, key_paths: list[str] | None = None, flatten: bool = False, **settings: Any
    ) -> Any:
        if settings or not (key_paths and flatten) or any(GLOB.intersection(key) for key in key_paths):
            return original(fs, path, key_paths, flatten, **settings)
        with fs.open(path, "rb") as file:
            content = file.read()
        if known.get(path, (None,))[0] != content:
            known[path] = content, param.load_path(path, fs)
        return values(known[path][1], key_paths)

    param.read_param_file = read


def values(params: Any, names: list[str]) -> dict[str, Any]:
    """Return the parameters of these dotted names, those that there are, as DVC finds them.

    DVC compares the parts of a name with the keys of all mappings and lists, as words.
    """
    found = {}
    for name in names:
        value = params
        for part in name.split("."):
            value = _member(value, part)
            if value is _NOTHING:
                break
        else:
            found[name] = value
    return found


_NOTHING = object()


def _member(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        if part in value:
            return value[part]
        return next((other for key, other in value.items() if str(key) == part), _NOTHING)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return _NOTHING


@contextlib.contextmanager
def unchanged(repo: Repo, stages: Collection[PipelineStage]) -> Iterator[None]:
    """While nobody writes what these stages read and write, hash each file and folder once.

    Raises:
        LockError: Another DVC command writes one of them.
    """
    from dvc.output import Output
    from dvc.rwlock import rwlock

    original, known = Output.get_hash, dict[tuple[str, str | None, bool], Any]()

    def get_hash(self: Output) -> Any:
        key = self.fs_path, self.hash_name, self.use_cache
        if key not in known:
            known[key] = original(self)
        return known[key]

    paths = {one.fs_path for stage in stages for one in (*stage.deps, *stage.outs)}
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), sorted(paths), [], hardlink):
        Output.get_hash = get_hash
        try:
            yield
        finally:
            Output.get_hash = original


def status(stage: PipelineStage) -> list[Any]:
    """Return what DVC's `status` says of a stage, in `unchanged`: without locks of its own."""
    found: list[Any] = stage.status.__func__.__wrapped__(stage).get(stage.addressing, [])
    return found


def record(stage: PipelineStage) -> None:
    """Write a stage's entry into dvc.lock, or into its .dvc file; the bytes are those that DVC writes.

    An entry stands alone: what its parameters share by YAML's anchors is written out.
    """
    from dvc.stage import PipelineStage
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    if not isinstance(stage, PipelineStage):
        stage.dump(update_pipeline=False)
        return
    path = Path(stage.dvcfile._lockfile.path)
    content = unshared(to_lockfile(stage))
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = lockfile.with_entry(before, dumps_yaml({"stages": content}).partition("\n")[2])
    if after is None:
        after = _with_entry(before, content, path)
    if after != before:
        lockfile.replace(path, after, Path(stage.repo.tmp_dir))


def unshared(value: Any) -> Any:
    """Return a copy of nested mappings and lists in which nothing stands twice."""
    if isinstance(value, dict):
        return type(value)((key, unshared(one)) for key, one in value.items())
    return [unshared(one) for one in value] if isinstance(value, (list, tuple)) else value


def _with_entry(text: str, content: dict[str, Any], path: Path) -> str:
    """Return a dvc.lock with an entry, where it was not written by DVC: other words, comments."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    whole = parse_yaml_for_update(text, path) or {"schema": "2.0"}
    whole["stages"] = whole.get("stages", {})
    whole["stages"].update(content)
    written: str = dumps_yaml(whole)
    return written
