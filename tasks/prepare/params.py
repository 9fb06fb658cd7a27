"""The section `data` of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag, field_validator, model_validator

from decant.inputs import Kind
from decant.networks.python import Python
from decant.schema import Section, did_you_mean
from decant.targets import Named
from tasks.prepare.asked import (
    CLASSES,
    ArrayOfClasses,
    ArrayTarget,
    TextTarget,
    answers,
    measured,
)
from tasks.prepare.of_files import PICTURES, SOUNDS, SoundParams

# `validate` reads all schemas here.
from tasks.prepare.of_files import FilesParams as FilesParams
from tasks.prepare.of_files import FolderParams as FolderParams
from tasks.prepare.owned import (
    LINES,
    NUMBERS,
    OWN,
    TABLES,
    File,
    OfRows,
    Own,
    Words,
    check_unseen,
    inside,
    readable_table,
)
from tasks.prepare.sources import SOURCES
from tasks.prepare.ways import ByColumn, ByShares, Column, sorting

ARRAYS = "arrays"
TABLE = "table"
TEXT = "text"
PYTHON = "python"
FOLDER = "data/arrays"
CODE = "networks"
"""Where code of one's own lies, of which DVC knows when it changes."""

MOST = 100_000_000
MOST_TOKENS = 1 << 20


def _held(value: Any) -> int | str:
    """Read a number of examples, or the name of a file of them."""
    if isinstance(value, str) and len(value) <= 400:
        return value
    if isinstance(value, int) and 1 <= value <= MOST:
        return value
    raise ValueError(f"must be a whole number from 1 to {MOST:,}, or a file of arrays")


Held = Annotated[int | str, PlainValidator(_held)]


class PrepareParams(Section):
    """Which examples, and how many of them are held out for validation.

    Attributes:
        source: A name in `SOURCES`; or `arrays`, for named tensors of one's own.
        validation: Number of training examples held out, drawn by the seed; or, of `arrays`, a file of them.
        train: Of `arrays`: the file of training examples, .npz or .safetensors in `data/arrays/`.
        test: Of `arrays`: the file of test examples, or how many are drawn from `train`.
        inputs: Of `arrays`: the names of what the network is called with, in order; all but the labels, in
            the order of the file, where it is left out.
        labels: Of `arrays`: the name of what is to be predicted; nothing where there is none.
        classes: Of `arrays`: the classes' names; their numbers where they are left out.
        target: Of `arrays`: what the labels are; classes, whole numbers from 0, where it is left out.
        kinds: Of `arrays`: what those hold that are more than tensors, by name: `image`, `numbers`, `sound`.
        leak: Of `arrays`: `fail` where the same row is in two splits, or `tell` how many there are.
    """

    source: str
    validation: Held
    train: File | None = None
    test: Held | None = None
    inputs: tuple[Annotated[str, Field(max_length=64)], ...] | None = Field(None, min_length=1, max_length=64)
    labels: Annotated[str, Field(max_length=64)] | None = None
    classes: Named | None = None
    target: ArrayTarget | None = None
    kinds: Annotated[dict[Annotated[str, Field(max_length=64)], Kind], Field(max_length=64)] | None = None
    leak: Literal["fail", "tell"] | None = None

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        known = (*SOURCES, ARRAYS, TABLE, TEXT, PICTURES, SOUNDS, PYTHON)
        if source not in known:
            raise ValueError(f"unknown source {source!r}{did_you_mean(source, known)}")
        return source

    @model_validator(mode="after")
    def _of_arrays(self) -> PrepareParams:
        if self.source != ARRAYS:
            own = ("train", "test", "inputs", "labels", "classes", "target", "kinds", "leak")
            given = [name for name in own if getattr(self, name) is not None]
            if given or isinstance(self.validation, str):
                raise ValueError(
                    f"{', '.join(given) or 'a file for validation'} belongs to the source {ARRAYS}; "
                    f"{self.source} has its own"
                )
            return self
        if self.train is None or self.test is None:
            raise ValueError(f"the source {ARRAYS} needs train, a file, and test, a file or a number")
        if outside := [file for file in self.files if Path(file).parent.parts[:2] != ("data", "arrays")]:
            raise ValueError(f"{outside[0]} must lie in {FOLDER}/, of which DVC knows when it changes")
        if self.classes is not None and self.labels is None:
            raise ValueError("classes are of labels, and none are named")
        if self.target is not None and self.labels is None:
            raise ValueError("target says what labels are, and none are named; name them, labels: y")
        if self.classes is not None and not isinstance(self.target, ArrayOfClasses | None):
            raise ValueError(
                f"classes are names of classes; those of {self.target.kind} stand in target.names"
            )
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return tuple(file for file in (self.train, self.validation, self.test) if isinstance(file, str))

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        if self.source == ARRAYS and self.labels is None:
            return "same"
        return "classes" if self.target is None else measured(self.target)


class TableParams(OfRows):
    """A table: CSV, Parquet or JSON lines, one row for each example.

    Attributes:
        file: In `data/own/`.
        numbers: Columns of numbers, dates or switches: together the input `numbers`, float32 [N, F].
        categories: Columns of words or codes: an input each, of the column's name, int64 [N], from 1 in
            sorted order; 0 is what the training rows do not have, and what is missing.
    """

    source: Literal["table"]
    file: File
    numbers: Words = ()
    categories: Words = ()

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str) -> str:
        return readable_table(file)

    @model_validator(mode="after")
    def _columns(self) -> TableParams:
        if not (self.numbers or self.categories):
            raise ValueError("needs numbers or categories, columns for the network to see")
        if NUMBERS in self.categories:
            raise ValueError(
                f"a category cannot be called {NUMBERS}, as the input of all numbers is; rename it"
            )
        check_unseen([*self.numbers, *self.categories], self.target, self.split)
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return (self.file,)


class TextParams(Own):
    """Texts: a column of a table, or the lines of a file.

    Attributes:
        file: In `data/own/`: .csv, .parquet, .jsonl; or .txt, of which each line is a text.
        column: The column of texts; none of lines.
        tokenizer: What makes tokens of them, a file of the library tokenizers, in `data/own/` or `networks/`.
        length: Tokens that a text has at most, those before and behind it included; others are left out.
        fixed: Whether every row has as many places as the longest, also in the batches of a training.
        bad: What to do with texts that are empty or no UTF-8: `fail`, or `skip` them; either counts them.
    """

    source: Literal["text"]
    file: File
    column: Column | None = None
    tokenizer: File
    length: Annotated[int, Field(ge=2, le=MOST_TOKENS)]
    fixed: bool = False
    bad: Literal["fail", "skip"] = "fail"
    target: TextTarget | None = None
    split: Annotated[ByShares | ByColumn, Field(discriminator="kind")]

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str) -> str:
        if Path(file).suffix not in (*TABLES, LINES):
            raise ValueError(f"must end in {', '.join((*TABLES, LINES))}, got {file!r}")
        return inside(file)

    @field_validator("column", mode="before")
    @classmethod
    def _one(cls, column: Any) -> Any:
        if isinstance(column, list | tuple):
            raise ValueError(
                "is one column of texts; write two texts of a row into one column, with a token between them "
                "that the tokenizer knows"
            )
        return column

    @field_validator("tokenizer")
    @classmethod
    def _tracked(cls, file: str) -> str:
        parts = Path(file).parts
        if ".." in parts or (parts[:1] != ("networks",) and parts[:2] != ("data", "own")):
            raise ValueError(
                f"must lie in {OWN}/ or networks/, of which DVC knows when it changes, got {file!r}"
            )
        return file

    @model_validator(mode="after")
    def _columns(self) -> TextParams:
        if Path(self.file).suffix == LINES:
            self._check_lines()
        elif self.column is None:
            raise ValueError("needs column, the one that holds the texts")
        elif self.column in answers(self.target):
            raise ValueError(f"{self.column} is what is to be predicted: the network must not see it")
        elif isinstance(self.split, ByColumn) and self.split.column in (self.column, *answers(self.target)):
            raise ValueError(f"{self.split.column} says which split a row is in: the network must not see it")
        if self.split.kind == "shares" and self.split.stratified and self.measured not in CLASSES:
            raise ValueError("split.stratified is of classes, and the target has none; leave it out")
        return self

    def _check_lines(self) -> None:
        """Refuse what needs a column beside the texts."""
        wanted = [] if self.column is None else ["column"]
        if self.target is not None and answers(self.target):
            wanted.append(f"target.kind: {self.target.kind}")
        if self.split.kind == "column" or self.split.groups is not None:
            wanted.append(f"split.{'column' if self.split.kind == 'column' else 'groups'}")
        if wanted:
            raise ValueError(
                f"{wanted[0]} needs a table, and {self.file} has nothing but lines; take {', '.join(TABLES)}"
            )

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return (self.file, self.tokenizer)


class PythonParams(OfRows):
    """Rows that a function of one's own yields: a dict each, of named tensors and what is to be predicted.

    Attributes:
        file: Where the function is, in `networks/`; Git tracks it, and each file of one's own it imports.
        function: Its name; it is a generator, or returns what can be walked through.
        with_: What it is called with, by name; `with` in params.yaml.
        code: The SHA-256 sum of the code; empty where any will do.
        reads: Files in `data/own/` that it reads: where one changes, the rows are made anew.
        kinds: What the tensors hold that are more than tensors, by the rows' keys.
    """

    source: Literal["python"]
    file: File
    function: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z_]\w*$")]
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    code: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    reads: Annotated[tuple[File, ...], Field(max_length=10_000)] = ()
    kinds: Annotated[dict[Column, Kind], Field(max_length=64)] = Field(default_factory=dict)

    @field_validator("file")
    @classmethod
    def _code(cls, file: str) -> str:
        path = Path(file)
        if path.parts[:1] != (CODE,) or ".." in path.parts or "\\" in file or path.suffix != ".py":
            raise ValueError(
                f"must be a file of Python in {CODE}/, of which DVC knows when it changes, got {file!r}"
            )
        return file

    @field_validator("reads")
    @classmethod
    def _owned(cls, reads: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(inside, reads))

    @model_validator(mode="after")
    def _apart(self) -> PythonParams:
        check_unseen([], self.target, self.split)
        return self

    @property
    def aside(self) -> tuple[str, ...]:
        """The keys of a row that the network does not see."""
        return (*answers(self.target), *sorting(self.split))

    @property
    def named(self) -> Python:
        """The function, as what builds a network is named."""
        found = {"file": self.file, "build": self.function, "with": self.with_, "code": self.code}
        return Python.model_validate(found)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named, but for code."""
        return self.reads


def _schema(content: Any) -> str:
    """Say which of the schemas a section is of; the first one knows all names of sources."""
    source = content.get("source") if isinstance(content, dict) else getattr(content, "source", None)
    return f"source {source}" if source in (TABLE, TEXT, PICTURES, SOUNDS, PYTHON) else "source *"


DataParams = Annotated[
    Annotated[PrepareParams, Tag("source *")]
    | Annotated[TableParams, Tag(f"source {TABLE}")]
    | Annotated[TextParams, Tag(f"source {TEXT}")]
    | Annotated[FolderParams, Tag(f"source {PICTURES}")]
    | Annotated[SoundParams, Tag(f"source {SOUNDS}")]
    | Annotated[PythonParams, Tag(f"source {PYTHON}")],
    Discriminator(_schema),
]
"""The section `data`, by its source; the tags are no keys, so that no mistake's place has them."""

AnyData = PrepareParams | TableParams | TextParams | FolderParams | SoundParams | PythonParams
