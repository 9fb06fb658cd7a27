"""Networks and data of one's own that params.yaml names: looked at before any stage, and never run."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from decant.errors import DecantError, Message
from decant.networks.architectures import ForeignArchitecture
from decant.networks.packages import Packaged, Transformers, installed
from decant.networks.python import Python, code_of, layers_of, missing, sum_of_code
from decant.outputs import replacing
from tasks.pipeline.networks import check_tracked, trusted
from tasks.prepare.params import AnyData, FilesParams, PythonParams
from tasks.teacher.params import TeacherParams

if TYPE_CHECKING:
    # Read for their sums, never run: named here so that this stage's record of code has them, and a change of
    # theirs makes the sums anew.
    from decant.networks import sound as sound

FILES = Path("data/files")
TITLE = "sums of the files of one's own that this stage reads\n"
"""DVC warns of empty files, and mostly none is named."""


def unbuildable(architecture: ForeignArchitecture, *, pinned: bool) -> Iterator[str]:
    """Yield why a network of other people cannot be built, as far as its file says that without being run.

    Args:
        architecture: What params.yaml says of it.
        pinned: Whether all that builds it has to stand there, or its sum: DVC compares no files of students.
    """
    if isinstance(architecture, Python):
        yield from _unbuildable_code(architecture, pinned)
        return
    try:
        trusted(architecture)
    except DecantError as error:
        yield str(error)
    if pinned and isinstance(architecture, Transformers) and architecture.path:
        yield "path: a student's network needs all that config.json says, as config, in the place of path"


def _unbuildable_code(architecture: Python, pinned: bool) -> Iterator[str]:
    if not Path(architecture.file).is_file():
        yield _no_file(architecture.file)
        return
    try:
        if wrong := missing(architecture):
            yield wrong
            return
        check_tracked(architecture)
        code = sum_of_code(Path(architecture.file), Path())
    except DecantError as error:
        yield str(error)
        return
    if pinned and architecture.code != code:
        yield f"code: a student's network needs the sum of its file, code: {code}"
    elif architecture.code not in ("", code):
        yield f"code: {architecture.file} has the sum {code}, expected {architecture.code}"


def absent(data: AnyData, teacher: TeacherParams) -> Iterator[str]:
    """Yield each file of one's own that is named and not there."""
    if isinstance(data, FilesParams) and not Path(data.folder).is_dir():
        yield f"data.folder: there is no folder {data.folder}"
    if isinstance(data, PythonParams):
        yield from (f"data: {line}" for line in unbuildable(data.named, pinned=False))
    for place, file in (*(("data", file) for file in data.files), *_files_of(teacher)):
        if not Path(file).is_file():
            yield f"{place}: {_no_file(file)}"


def _no_file(file: str) -> Message:
    """Say that a file is missing, and which one beside it may be meant."""
    beside = [each.as_posix() for each in Path(file).parent.glob(f"*{Path(file).suffix}")]
    near = difflib.get_close_matches(file, beside, n=1)
    todo = f"did you mean {near[0]}?" if near else "put it there, or name another"
    return f"there is no file {file}; {todo}"


def _files_of(teacher: TeacherParams) -> Iterator[tuple[str, str]]:
    own = teacher.architecture
    if isinstance(own, Transformers) and own.path:
        yield "teacher.architecture.path", f"{own.path}/config.json"
    if teacher.stored is not None and Path(teacher.stored.file).is_dir():
        parts = sorted(Path(teacher.stored.file).glob("*.safetensors*"))
        yield from (("teacher.weights", part.as_posix()) for part in parts)
        if not parts:
            yield "teacher.weights", f"{teacher.stored.file}/model.safetensors"
    elif teacher.stored is not None:
        yield "teacher.weights", teacher.stored.file
    if teacher.expect is not None and teacher.expect.outputs is not None:
        yield "teacher.expect.outputs", teacher.expect.outputs


def write_sums(data: AnyData, teacher: TeacherParams) -> None:
    """Write the sums of the files that each stage reads beside its own: DVC reruns it where they change."""
    own = teacher.architecture
    code = {"prepare": data.file if isinstance(data, PythonParams) else None}
    code["teacher"] = own.file if isinstance(own, Python) else None
    named = {"prepare": data.files, "teacher": [file for _, file in _files_of(teacher)]}
    packages = [f"{own.kind} {installed(own.kind)}\n"] if isinstance(own, Packaged) else []
    with replacing(FILES) as folder:
        folder.mkdir()
        for stage, files in named.items():
            lines = _lines(map(Path, files), code[stage])
            more = packages if stage == "teacher" else []
            (folder / stage).write_text("".join([TITLE, *lines, *more]), encoding="utf-8")


def _lines(files: Iterable[Path], file: str | None) -> Iterator[str]:
    """Yield a line for each file that a stage reads, for those of its code, and for Decant's layers in it."""
    code = code_of(Path(file), Path()) if file else []
    yield from (f"{_sum(each)}  {each.as_posix()}\n" for each in sorted([*files, *code]))
    yield from (f"{found}  {name}\n" for name, found in layers_of(code).items())


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
