"""Networks of other people that params.yaml names: code is run only where Git tracks every file of it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from decant.errors import DecantError
from decant.networks.architectures import FOREIGN, ForeignArchitecture
from decant.networks.packages import Transformers
from decant.networks.python import Python, code_of, function_of, sum_of_code
from decant.schema import Section
from tasks.pipeline.lineages import TEACHER, chain
from tasks.pipeline.params import PARAMS, validate

NETWORKS, ARRAYS = Path("networks"), Path("data/arrays")
"""Where networks with their weights lie, and data of one's own: DVC compares all that is there."""

KINDS = {each.model_fields["kind"].default: each for each in FOREIGN}

S = TypeVar("S", bound=Section)


@cache
def trusted(architecture: ForeignArchitecture) -> ForeignArchitecture:
    """Return the architecture with all that builds it; with its function where Git tracks all of its code.

    Raises:
        DecantError: It does not; or the file has no such function, or fails; or a package is missing, or a
            folder has no configuration.
    """
    if isinstance(architecture, Transformers):
        return described(architecture)
    if not isinstance(architecture, Python):
        return architecture.pinned()
    check_tracked(architecture)
    code = sum_of_code(Path(architecture.file), Path())
    return architecture.bound(function_of(architecture), code)


def described(architecture: Transformers) -> Transformers:
    """Return a network of transformers with the configuration in its folder, and the version.

    Raises:
        DecantError: The folder lies elsewhere than in `networks`, or has none; or transformers is missing.
    """
    path = Path(architecture.path)
    if architecture.path and architecture.config:
        raise DecantError("needs either path, a folder with config.json, or config")
    if architecture.path and NETWORKS not in path.parents:
        raise DecantError(f"{path} must lie in {NETWORKS}/, of which DVC knows when it changes")
    return architecture.described(path)


def check_tracked(architecture: Python) -> None:
    """Check that Git tracks the files of a network's code.

    Raises:
        DecantError: It does not track one of them, or one lies elsewhere than in `networks`.
    """
    files = code_of(Path(architecture.file), Path())
    if outside := [file for file in files if NETWORKS not in file.parents]:
        raise DecantError(f"{outside[0]} must lie in {NETWORKS}/, of which DVC knows when it changes")
    found = subprocess.run(
        ["git", "ls-files", "-z", "--", *map(str, files)], capture_output=True, text=True, check=False
    )
    tracked = {Path(name) for name in found.stdout.split("\0") if name}
    if unknown := [str(file) for file in files if file not in tracked]:
        raise DecantError(
            f"Git does not track {', '.join(unknown)}, and no other code is run: `git add {unknown[0]}`"
        )


def with_functions(block: S) -> S:
    """Return a block whose networks of other people can be built."""
    found = {name: getattr(block, name) for name in type(block).model_fields}
    changes = {name: trusted(each) for name, each in found.items() if isinstance(each, FOREIGN)}
    return block.model_copy(update=changes) if changes else block


def network_of(name: str, params: Mapping[str, Any]) -> ForeignArchitecture | None:
    """Return the network of other people that a model is one of, ready to build; None for one of Decant's.

    Raises:
        DecantError: As `trusted`; or params.yaml does not describe it.
    """
    blocks = [params[TEACHER] if each == TEACHER else params["models"][each] for each in chain(name, params)]
    built = [block.get("student", block.get("architecture")) for block in blocks]
    last = next((each for each in reversed(built) if each is not None), None)  # none: the default network
    if not isinstance(last, Mapping) or last.get("kind") not in KINDS:
        return None
    return trusted(validate(dict(last), KINDS[last["kind"]], PARAMS.name))
