"""The section `data` of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag, field_validator, model_validator

from decant.schema import Fraction, Section, did_you_mean
from decant.targets import Named, NumbersLoss, Squared
from tasks.prepare.sources import SOURCES

ARRAYS = "arrays"
TABLE = "table"
TEXT = "text"
PICTURES = "folder"
NUMBERS = "numbers"
"""What the input of a table's numbers is called."""

FOLDER = "data/arrays"
OWN = "data/own"

MOST = 100_000_000
MOST_TOKENS = 1 << 20


def _held(value: Any) -> int | str:
    """Read a number of examples, or the name of a file of them."""
    if isinstance(value, str) and len(value) <= 400:
        return value
    if isinstance(value, int) and 1 <= value <= MOST:
        return value
    raise ValueError(f"must be a whole number from 1 to {MOST:,}, or a file of arrays")


File = Annotated[str, Field(max_length=400)]
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
        labels: Of `arrays`: the name of the classes, whole numbers from 0; nothing where there are none.
        classes: Of `arrays`: the classes' names; their numbers where they are left out.
    """

    source: str
    validation: Held
    train: File | None = None
    test: Held | None = None
    inputs: tuple[Annotated[str, Field(max_length=64)], ...] | None = Field(None, min_length=1, max_length=64)
    labels: Annotated[str, Field(max_length=64)] | None = None
    classes: tuple[Annotated[str, Field(max_length=200)], ...] | None = Field(None, min_length=1)

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        known = (*SOURCES, ARRAYS, TABLE, TEXT, PICTURES)
        if source not in known:
            raise ValueError(f"unknown source {source!r}{did_you_mean(source, known)}")
        return source

    @model_validator(mode="after")
    def _of_arrays(self) -> PrepareParams:
        if self.source != ARRAYS:
            given = [
                n for n in ("train", "test", "inputs", "labels", "classes") if getattr(self, n) is not None
            ]
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
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return tuple(file for file in (self.train, self.validation, self.test) if isinstance(file, str))

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        return "same" if self.source == ARRAYS and self.labels is None else "classes"


Column = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[tuple[Column, ...], Field(max_length=10_000)]


class ByShares(Section):
    """Rows drawn by the seed.

    Attributes:
        validation: Share of the rows, or of the groups' rows, that are held out.
        test: Share of the test rows.
        groups: A column whose equal values stay together, such as a patient's number.
        stratified: Whether each class has its share in each split.
    """

    kind: Literal["shares"] = "shares"
    validation: Annotated[Fraction, Field(gt=0, lt=1)]
    test: Annotated[Fraction, Field(gt=0, lt=1)]
    groups: Column | None = None
    stratified: bool = False

    @model_validator(mode="after")
    def _possible(self) -> ByShares:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test take {self.validation + self.test:g} of the rows, which leaves none "
                "to train on; together they must be below 1"
            )
        if self.groups is not None and self.stratified:
            raise ValueError("groups stay whole, so classes cannot have their share too; take one of the two")
        return self


class ByColumn(Section):
    """Rows go where a column says: `train`, `validation` or `test`."""

    kind: Literal["column"] = "column"
    column: Column


class ByFolder(Section):
    """Pictures go where they lie: `<folder>/train/<class>/`, `validation` and `test` beside it."""

    kind: Literal["folders"] = "folders"


class OfClasses(Section):
    """A column of classes.

    Attributes:
        column: Its name.
        names: The classes, in the order of the network's outputs; sorted where they are left out.
        balanced: Whether models are compared by the mean over classes.
    """

    kind: Literal["classes"] = "classes"
    column: Column
    names: Named | None = None
    balanced: bool = False


class OfNumbers(Section):
    """Columns of numbers that are to be predicted.

    Attributes:
        columns: Their names, in the order of the network's outputs.
        loss: What is minimized: `mse` or `smooth-l1`.
    """

    kind: Literal["numbers"] = "numbers"
    columns: Named
    loss: NumbersLoss = Squared()


class OfLabels(Section):
    """A column of labels, several at once: a list, or words.

    Attributes:
        column: Its name.
        names: The labels, in the order of the network's outputs; sorted where they are left out.
        separator: What stands between two words.
    """

    kind: Literal["labels"] = "labels"
    column: Column
    names: Named | None = None
    separator: Annotated[str, Field(min_length=1, max_length=10)] = " "


class OfTokens(Section):
    """The next token at each place of a text."""

    kind: Literal["tokens"] = "tokens"


class _Own(Section):
    """What the sources have in common that read files of one's own.

    Attributes:
        leak: What to do where the same row is in two splits: `fail`, or `tell` how many there are.
    """

    leak: Literal["fail", "tell"] = "tell"


def answers(target: OfClasses | OfNumbers | OfLabels | OfTokens | None) -> tuple[str, ...]:
    """Return the columns that are to be predicted."""
    if target is None or isinstance(target, OfTokens):
        return ()
    return target.columns if isinstance(target, OfNumbers) else (target.column,)


class TableParams(_Own):
    """A table: CSV, Parquet or JSON lines, one row for each example.

    Attributes:
        file: In `data/own/`.
        numbers: Columns of numbers, dates or switches: together the input `numbers`, float32 [N, F].
        categories: Columns of words or codes: an input each, of the column's name, int64 [N], from 1 in
            sorted order; 0 is what the training rows do not have, and what is missing.
        target: What is to be predicted; what a teacher answers where it is left out.
        split: Which row goes where.
        missing: Of numbers: `fail`, or `keep` them as NaN for a network that knows what to do.
    """

    source: Literal["table"]
    file: Annotated[str, Field(max_length=400)]
    numbers: Words = ()
    categories: Words = ()
    target: Annotated[OfClasses | OfNumbers | OfLabels, Field(discriminator="kind")] | None = None
    split: Annotated[ByShares | ByColumn, Field(discriminator="kind")]
    missing: Literal["fail", "keep"] = "fail"

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str) -> str:
        if Path(file).suffix not in TABLES:
            raise ValueError(f"must end in {', '.join(TABLES)}, got {file!r}")
        return _inside(file)

    @model_validator(mode="after")
    def _columns(self) -> TableParams:
        if not (self.numbers or self.categories):
            raise ValueError("needs numbers or categories, columns for the network to see")
        seen = [*self.numbers, *self.categories]
        if double := sorted({name for name in seen if seen.count(name) > 1}):
            raise ValueError(f"{double[0]} is named twice among numbers and categories; name it once")
        if NUMBERS in self.categories:
            raise ValueError(
                f"a category cannot be called {NUMBERS}, as the input of all numbers is; rename it"
            )
        if both := sorted({*seen} & {*answers(self.target)}):
            raise ValueError(f"{both[0]} is what is to be predicted: the network must not see it")
        if isinstance(self.split, ByColumn) and self.split.column in (*seen, *answers(self.target)):
            raise ValueError(f"{self.split.column} says which split a row is in: the network must not see it")
        if self.split.kind == "shares" and self.split.stratified and self.measured not in CLASSES:
            raise ValueError("split.stratified is of classes, and the target has none; leave it out")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return (self.file,)

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        return _measured(self.target)


TextTarget = Annotated[OfClasses | OfNumbers | OfLabels | OfTokens, Field(discriminator="kind")]


class TextParams(_Own):
    """Texts: a column of a table, or the lines of a file.

    Attributes:
        file: In `data/own/`: .csv, .parquet, .jsonl; or .txt, of which each line is a text.
        column: The column of texts; none of lines.
        tokenizer: What makes tokens of them, a file of the library tokenizers, in `data/own/` or `networks/`.
        length: Tokens that a text has at most, those before and behind it included; others are left out.
        fixed: Whether every row has as many places as the longest, also in the batches of a training.
        bad: What to do with texts that are empty or no UTF-8: `fail`, or `skip` them; either counts them.
        target: What is to be predicted; what a teacher answers where it is left out.
        split: Which text goes where.
    """

    source: Literal["text"]
    file: Annotated[str, Field(max_length=400)]
    column: Column | None = None
    tokenizer: Annotated[str, Field(max_length=400)]
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
        return _inside(file)

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

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        return _measured(self.target)


class FolderParams(_Own):
    """Pictures in folders by class: `<folder>/<class>/`, or `<folder>/<split>/<class>/`.

    Attributes:
        folder: In `data/own/`.
        size: Height and width that all are made.
        crop: Whether the middle is cut out in the form of `size`, or the whole is squeezed into it.
        colours: `grey`, one channel, or `rgb`, three.
        bad: What to do with pictures that cannot be read: `fail`, or `skip` them; either lists them.
        classes: Their names, in the order of the network's outputs; the folders' names, sorted, where they
            are left out.
        balanced: Whether models are compared by the mean over classes.
        split: Which picture goes where.
    """

    source: Literal["folder"]
    folder: Annotated[str, Field(max_length=400)]
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
    crop: bool = True
    colours: Literal["grey", "rgb"] = "rgb"
    bad: Literal["fail", "skip"] = "fail"
    classes: Named | None = None
    balanced: bool = False
    split: Annotated[ByShares | ByFolder, Field(discriminator="kind")]

    @field_validator("folder")
    @classmethod
    def _owned(cls, folder: str) -> str:
        return _inside(folder)

    @model_validator(mode="after")
    def _no_columns(self) -> FolderParams:
        if self.split.kind == "shares" and self.split.groups is not None:
            raise ValueError("split.groups is a column of a table, and pictures have none; leave it out")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """One picture [C, H, W]."""
        return 1 if self.colours == "grey" else 3, *self.size

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders that hold the classes' folders."""
        root = Path(self.folder)
        return (root,) if self.split.kind == "shares" else tuple(root / name for name in SPLITS)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, as far as the folders are there."""
        if self.classes is not None:
            return self.classes
        found = (path for place in self.places if place.is_dir() for path in place.iterdir())
        return tuple(sorted({path.name for path in found if path.is_dir() and path.name[0] != "."}))

    @property
    def files(self) -> tuple[str, ...]:
        """All files in the folder, in order."""
        return tuple(path.as_posix() for path in sorted(Path(self.folder).rglob("*")) if path.is_file())

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by."""
        return "balanced" if self.balanced else "classes"


SPLITS = ("train", "validation", "test")
TABLES = (".csv", ".parquet", ".jsonl")
LINES = ".txt"
CLASSES = ("classes", "balanced")


def _inside(path: str) -> str:
    """Return a path that DVC knows the changes of."""
    parts = Path(path).parts
    if parts[:2] != ("data", "own") or len(parts) < 3 or ".." in parts:
        raise ValueError(f"must lie in {OWN}/, of which DVC knows when it changes, got {path!r}")
    return path


def _measured(target: OfClasses | OfNumbers | OfLabels | OfTokens | None) -> str:
    if target is None:
        return "same"
    return "balanced" if isinstance(target, OfClasses) and target.balanced else target.kind


def _schema(content: Any) -> str:
    """Say which of the schemas a section is of; the first one knows all names of sources."""
    source = content.get("source") if isinstance(content, dict) else getattr(content, "source", None)
    return f"source {source}" if source in (TABLE, TEXT, PICTURES) else "source *"


DataParams = Annotated[
    Annotated[PrepareParams, Tag("source *")]
    | Annotated[TableParams, Tag(f"source {TABLE}")]
    | Annotated[TextParams, Tag(f"source {TEXT}")]
    | Annotated[FolderParams, Tag(f"source {PICTURES}")],
    Discriminator(_schema),
]
"""The section `data`, by its source; the tags are no keys, so that no mistake's place has them."""

AnyData = PrepareParams | TableParams | TextParams | FolderParams
