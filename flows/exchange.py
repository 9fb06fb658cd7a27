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
    """Copy what a stage wrote, and the run cache, to the remote; return the stage's entry.

    Raises:
        DvcException: There is no remote, or it did not take everything.
    """
    entry = _entry_of(stage)
    twin = _twin(repo, stage, entry)
    kept_in_git = {out.def_path for out in stage.outs if not out.use_cache}
    for out in twin.outs:
        if out.def_path in kept_in_git:
            out.commit(relink=False)
    for objects in twin.get_used_objs().values():
        _all_or_none(repo.cloud.push(objects).failed, stage, "copied to")
    _share_run_cache(repo, "push")
    return entry


def fetch(repo: Repo, stage: PipelineStage, entry: Entry) -> None:
    """Put what a stage wrote somewhere else into this workspace.

    Raises:
        DvcException: There is no remote, or it does not have everything.
    """
    twin = _twin(repo, stage, entry)
    missing = [out for out in twin.outs if out.workspace_status()]
    for out in missing:
        for objects in out.get_used_objs().values():
            _all_or_none(repo.cloud.pull(objects).failed, stage, "found in")
    kept_in_git = {out.def_path for out in stage.outs if not out.use_cache}
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

    StageLoader.fill_from_lock(stage, entry)
    changed = {path for dependency in stage.deps for path in dependency.status()}
    if entry["cmd"] != stage.cmd or changed:
        what = ", ".join(sorted(changed)) or "its command"
        raise DvcException(f"it ran on something else than this workspace has: {what}")
    fetch(repo, stage, entry)
    stage.cmd_changed = False
    stage.dump(update_pipeline=False)


def share_run_cache(repo: Repo) -> None:
    """Get what other clones have run before."""
    _share_run_cache(repo, "fetch")


def _share_run_cache(repo: Repo, command: str) -> None:
    from dvc.stage.cache import RunCacheNotSupported

    remote = repo.cloud.get_remote_odb(None, f"{command} --run-cache", hash_name="md5-dos2unix")
    here = repo.cache.legacy
    ends = (here, remote) if command == "push" else (remote, here)
    with contextlib.suppress(RunCacheNotSupported):  # over HTTP
        repo.stage_cache.transfer(*ends, force=False)


def _entry_of(stage: PipelineStage) -> Entry:
    from dvc.stage.serialize import to_single_stage_lockfile

    entry: Entry = json.loads(json.dumps(to_single_stage_lockfile(stage))) if stage.cmd else {}
    return entry


def _twin(repo: Repo, stage: PipelineStage, entry: Entry) -> PipelineStage:
    """Return a stage whose outputs are those of an entry, and all of them cached."""
    if not entry:
        return stage
    twin: PipelineStage = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    return twin


def _all_or_none(failed: Any, stage: PipelineStage, how: str) -> None:
    from dvc.exceptions import DvcException

    if failed:
        raise DvcException(f"{len(failed)} files of {stage.addressing} could not be {how} the DVC remote")
