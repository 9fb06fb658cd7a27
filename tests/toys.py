"""Small DVC repositories whose stages sleep, fail and write, for tests of what runs stages."""

import subprocess
from pathlib import Path
from typing import Any

import yaml


def workspace(folder: Path, stages: dict[str, Any]) -> Path:
    """Return a Git and DVC repository with these stages, all committed.

    `stages` maps a name to its command, or to its entry in dvc.yaml.
    """
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".gitignore").write_text("*.out\nnoted.*\n")
    rewrite(folder, stages)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--quiet", "-m", "stages")
    return folder


def rewrite(folder: Path, stages: dict[str, Any]) -> None:
    """Replace dvc.yaml."""
    entries = {name: {"cmd": entry} if isinstance(entry, str) else entry for name, entry in stages.items()}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": entries}, sort_keys=False))


def writes(out: str, *deps: str, cmd: str = "true", **more: Any) -> dict[str, Any]:
    """Return a stage that runs `cmd`, then writes `out` out of its deps."""
    sources = " ".join(deps) or "/dev/null"
    return {
        "cmd": f"{cmd} && cat {sources} > {out} && echo {out} >> {out}",
        "deps": list(deps),
        "outs": [out],
        **more,
    }


def recorded() -> dict[str, Any]:
    """Return a chain of two stages, the first of which depends on the record of the code in `library/used`.

    The stage `code` writes it as ours does: a line for each file, its sum and its path.
    """
    lines = "for file in library/used/*; do echo \"$(cksum < $file | tr -d ' ')  $file\"; done > records/a"
    code = {"cmd": f"mkdir -p records && {lines}", "deps": ["library"], "outs": ["records"]}
    return {"code": code, "a": writes("a.out", "records/a"), "b": writes("b.out", "a.out")}


def git(folder: Path, *words: str) -> str:
    """Return what `git …` prints."""
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout
