"""What a stage wrote, from one clone to another by way of the DVC remote that both know.

DVC's own push and pull leave out outputs that are kept in Git (`cache: false`), and pull needs a dvc.lock
that knows the stage. Here an entry of dvc.lock travels beside the files: it says what they are.

DVC promises nothing of what is used here; tests/test_cluster.py holds it.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

Entry = dict[str, Any]
"""A stage's entry of dvc.lock; empty for data that a .dvc file in Git describes."""


def send(repo: Repo, stage: PipelineStage) -> Entry:
    """Copy what a stage wrote, and what the run cache knows of it, to the remote; return the stage's entry.

    Raises:
        DvcException: There is no remote, or it did not take everything.
    """
    entry = _entry_of(stage)
    twin = _twin(repo, stage, entry)
    kept_in_git = _kept_in_git(stage)
    for out in twin.outs:
        if out.def_path in kept_in_git:
            out.commit(relink=False)
    for objects in twin.get_used_objs().values():
        _all_or_none(repo.cloud.push(objects).failed, stage, "copied to")
    _copy_run_cache(repo, stage, "push")
    return entry


def fetch(repo: Repo, stage: PipelineStage, entry: Entry) -> None:
    """Put what a stage wrote somewhere else into this workspace.

    Raises:
        DvcException: There is no remote, or it does not have everything.
    """
    twin = _twin(repo, stage, entry)
    missing = [out for out in twin.outs if out.status()]
    for out in missing:
        for objects in out.get_used_objs().values():
            _all_or_none(repo.cloud.pull(objects).failed, stage, "found in")
    kept_in_git = _kept_in_git(stage)
    for out in missing:
        # What Git keeps must be files, not links into the cache.
        as_files = repo.stage_cache._cache_type_copy() if out.def_path in kept_in_git else None
        with as_files or contextlib.nullcontext():
            out.checkout(force=True)


def adopt(repo: Repo, stage: PipelineStage, entry: Entry) -> None:
    """Fetch what a stage wrote somewhere else, and write its entry into dvc.lock here.

    Raises:
        DvcException: The stage ran on something else than what this workspace has.
    """
    from dvc.exceptions import DvcException
    from dvc.stage.loader import StageLoader

    from flows.entries import record

    StageLoader.fill_from_lock(stage, entry)
    changed = {path for dependency in stage.deps for path in dependency.status()}
    if entry["cmd"] != stage.cmd or changed:
        what = ", ".join(sorted(changed)) or "its command"
        raise DvcException(f"it ran on something else than this workspace has: {what}")
    fetch(repo, stage, entry)
    stage.cmd_changed = False
    record(stage)


def know(repo: Repo, stage: PipelineStage) -> None:
    """Get what other clones have seen of this very stage, on the files that are here, into the run cache.

    To be asked where the stage runs on something else than dvc.lock says: what it wrote there is forgotten.
    With its new dependencies beside its old outputs, DVC would take it for unchanged, and the old outputs for
    the new ones.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    for out in stage.outs:
        out.hash_info, out.meta, out.obj = HashInfo(), Meta(), None
    stage.save_deps()
    _copy_run_cache(repo, stage, "fetch")


def _copy_run_cache(repo: Repo, stage: PipelineStage, command: str) -> None:
    """Copy a stage's entries of the run cache, where there are none yet; DVC's own commands copy all."""
    from dvc.fs import HTTPFileSystem, generic
    from dvc.stage.cache import _can_hash, _get_stage_hash

    remote = repo.cloud.get_remote_odb(None, f"{command} --run-cache", hash_name="md5-dos2unix")
    if not _can_hash(stage) or isinstance(remote.fs, HTTPFileSystem):  # over HTTP, DVC has none
        return
    here, key = repo.cache.legacy, _get_stage_hash(stage)
    source, target = (here, remote) if command == "push" else (remote, here)
    folder = ("runs", key[:2], key)
    if not source.fs.exists(source.fs.join(source.path, *folder)):
        return
    if command == "fetch" and target.fs.exists(target.fs.join(target.path, *folder)):
        return  # DVC takes the youngest, and what was copied last would be that
    for file in source.fs.find(source.fs.join(source.path, *folder)):
        copied = target.fs.join(target.path, *folder, source.fs.name(file))
        if not target.fs.exists(copied):
            generic.copy(source.fs, file, target.fs, copied)


def _entry_of(stage: PipelineStage) -> Entry:
    from dvc.stage.serialize import to_single_stage_lockfile

    entry: Entry = json.loads(json.dumps(to_single_stage_lockfile(stage))) if stage.cmd else {}
    return entry


def _twin(repo: Repo, stage: PipelineStage, entry: Entry) -> PipelineStage:
    """Return a stage whose outputs are those of an entry, and all of them cached."""
    if not entry.get("outs"):
        return stage
    twin: PipelineStage = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    return twin


def _kept_in_git(stage: PipelineStage) -> set[str]:
    return {out.def_path for out in stage.outs if not out.use_cache}


def _all_or_none(failed: Any, stage: PipelineStage, how: str) -> None:
    from dvc.exceptions import DvcException

    if failed:
        raise DvcException(f"{len(failed)} files of {stage.addressing} could not be {how} the DVC remote")
