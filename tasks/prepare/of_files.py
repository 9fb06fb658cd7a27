"""The sources `folder` and `sound` in the section `data` of params.yaml: files, and a table beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from decant.inputs import Kind
from decant.schema import Section
from decant.targets import Named
from tasks.prepare.asked import AnyAnswer, OfClasses, measured
from tasks.prepare.owned import NUMBERS, File, Own, Words, check_unseen, inside, readable_table
from tasks.prepare.ways import SPLITS, AnySplit, ByColumn, ByFolder, ByShares, Column

PICTURES = "folder"
SOUNDS = "sound"


class Beside(Section):
    """A table beside the files of a folder: one row for each file.

    Attributes:
        file: The table, in `data/own/`: CSV, Parquet or JSON lines.
        path: The column that names the file, below the folder.
        numbers: Columns of numbers that the network sees too: together the input `numbers`, float32 [N, F].
        categories: Columns of words or codes that it sees too: an input each, as of the source `table`.
        missing: Of numbers: `fail`, or `keep` them as NaN for a network that knows what to do.
    """

    file: File
    path: Column
    numbers: Words = ()
    categories: Words = ()
    missing: Literal["fail", "keep"] = "fail"

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str) -> str:
        return readable_table(file)


class FilesParams(Own):
    """Files in folders by class, `<folder>/<class>/` or `<folder>/<split>/<class>/`; or with a table beside.

    Attributes:
        folder: In `data/own/`.
        bad: What to do with files that cannot be read: `fail`, or `skip` them; either lists them.
        classes: Their names, in the order of the network's outputs; the folders' names, sorted, where they
            are left out.
        balanced: Whether models are compared by the mean over classes.
        table: What names the files, and columns of them; folders mean nothing then.
        target: Of a table; without one classes are the folders.
    """

    folder: File
    bad: Literal["fail", "skip"] = "fail"
    classes: Named | None = None
    balanced: bool = False
    table: Beside | None = None
    target: AnyAnswer | None = None
    split: Annotated[AnySplit, Field(discriminator="kind")]
    input: ClassVar[str]
    kind: ClassVar[Kind]

    @field_validator("folder")
    @classmethod
    def _owned(cls, folder: str) -> str:
        return inside(folder)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.table is None:
            self._check_folders()
            return self
        if self.classes is not None or self.balanced:
            raise ValueError("classes and balanced are of folders; with a table they stand in target")
        if isinstance(self.split, ByFolder):
            raise ValueError("split: folders is of folders; with a table take shares or column")
        if taken := {self.input, NUMBERS} & {*self.table.categories}:
            raise ValueError(f"a category cannot be called {min(taken)}, as another input is; rename it")
        seen = [*self.table.numbers, *self.table.categories]
        check_unseen([*seen, self.table.path], self.target, self.split)
        return self

    def _check_folders(self) -> None:
        """Refuse what only a table has."""
        if self.target is not None:
            raise ValueError("target is of a table, and none is named; classes are the folders' names")
        if isinstance(self.split, ByColumn):
            raise ValueError("split: column is of a table, and none is named; take shares or folders")
        if isinstance(self.split, ByShares) and self.split.groups is not None:
            raise ValueError(
                "split.groups is a column of a table, and none is named; leave it out, or give a table"
            )

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders that hold the classes' folders."""
        root = Path(self.folder)
        return tuple(root / name for name in SPLITS) if isinstance(self.split, ByFolder) else (root,)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, as far as the folders are there, or the target names them."""
        if self.table is not None:
            return (self.target.names or ()) if isinstance(self.target, OfClasses) else ()
        if self.classes is not None:
            return self.classes
        found = (path for place in self.places if place.is_dir() for path in place.iterdir())
        return tuple(sorted({path.name for path in found if path.is_dir() and path.name[0] != "."}))

    @property
    def files(self) -> tuple[str, ...]:
        """All files in the folder, in order, and the table."""
        own = (self.table.file,) if self.table is not None else ()
        found = {path.as_posix() for path in Path(self.folder).rglob("*") if path.is_file()}
        return *own, *sorted(found - {*own})

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        if self.table is not None:
            return measured(self.target)
        return "balanced" if self.balanced else "classes"


class FolderParams(FilesParams):
    """Pictures.

    Attributes:
        size: Height and width that all are made.
        crop: Whether the middle is cut out in the form of `size`, or the whole is squeezed into it.
        colours: `grey`, one channel, or `rgb`, three.
    """

    source: Literal["folder"]
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]]
    crop: bool = True
    colours: Literal["grey", "rgb"] = "rgb"
    input: ClassVar[str] = "image"
    kind: ClassVar[Kind] = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        """One picture [C, H, W]."""
        return 1 if self.colours == "grey" else 3, *self.size

    @property
    def plain(self) -> bool:
        """Whether a network gets pictures alone and answers with classes: those of Decant's own do."""
        if self.table is None:
            return True
        return isinstance(self.target, OfClasses) and not (self.table.numbers or self.table.categories)


class SoundParams(FilesParams):
    """Sounds: the input `sound`, float32 [N, C, L], full scale from -1 to 1.

    Attributes:
        rate: Samples a second that all are made.
        length: Samples that all are made, at that rate.
        channels: 1, the mean of those that there are; or as many as each file has.
        crop: Of longer ones: the middle is kept, or the start; or they cannot be read (`fail`).
        pad: Of shorter ones: silence comes after the end, or on both sides; or they cannot be read (`fail`).
    """

    source: Literal["sound"]
    rate: Annotated[int, Field(ge=1, le=1_000_000)]
    length: Annotated[int, Field(ge=1, le=1 << 24)]
    channels: Annotated[int, Field(ge=1, le=64)] = 1
    crop: Literal["middle", "start", "fail"] = "middle"
    pad: Literal["end", "both", "fail"] = "end"
    input: ClassVar[str] = "sound"
    kind: ClassVar[Kind] = "sound"
