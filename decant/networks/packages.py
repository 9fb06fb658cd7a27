"""Networks of the packages transformers and timm: described by a configuration or a name, built by them.

A package is imported when a network of it is built, and not before. Only its own code is run: never a file
beside a configuration, and nothing is fetched.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.python import blaming
from decant.schema import Section, did_you_mean

if TYPE_CHECKING:
    from torch import nn

MOST_OF_CONFIG = 1 << 22
"""Bytes of config.json that are read at all."""

FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""What timm's create_model would fetch weights by, or read them with."""

CHOSEN_HERE = ("attn_implementation", "_attn_implementation", "use_cache", "use_kernels")
"""Entries of config.json that decide how it is computed and not what; one of them may name code to fetch."""

Version = Annotated[str, Field(max_length=64, pattern=r"^[0-9A-Za-z.+!_-]*$")]
Word = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_]\w*$")]


class Packaged(Section):
    """What networks of packages have in common.

    Attributes:
        kind: The package.
        version: Of the package; empty where any will do.
    """

    kind: str
    version: Version = ""

    def __hash__(self) -> int:
        return hash(self.model_dump_json(by_alias=True))

    @property
    def facts(self) -> dict[str, str]:
        """What a lineage says of its code."""
        return {"package": f"{self.kind} {self.version}"}

    def pinned(self) -> Self:
        """Return the same with the version of the package that is installed.

        Raises:
            DecantError: It is not installed.
        """
        return self.model_copy(update={"version": installed(self.kind)})

    def lend(self, other: Packaged) -> Packaged:
        """Return another architecture, of a model on disk, if it is this one.

        Raises:
            DecantError: It is built otherwise, or with another version of the package.
        """
        other.check_version()
        alike = {"version": "", "path": ""}
        if self.model_copy(update=alike) != other.model_copy(update=alike):
            raise DecantError(
                f"The model was saved as {other.origin}, built otherwise than {self.origin}, which was "
                "given; give what it was made with, or make the model anew"
            )
        return other

    @property
    def origin(self) -> str:
        """What sentences of errors call it."""
        raise NotImplementedError

    def rerun(self) -> Self:
        """Return the same: no file of its user's is run."""
        return self

    @property
    def place(self) -> str:
        """The same: there is no line of its user's."""
        return self.origin

    def check_version(self) -> None:
        """Check that the package is the one that a model was made with.

        Raises:
            DecantError: It is not installed, or in another version.
        """
        if (found := installed(self.kind)) != self.version and self.version:
            raise DecantError(
                f"The network was saved with {self.kind} {self.version}, and {found} is installed: "
                f"`pip install {self.kind}=={self.version}`, or make the model anew"
            )


class Transformers(Packaged):
    """A network of transformers, as a folder with config.json describes it.

    Attributes:
        path: The folder, below that of params.yaml; weights lie beside config.json, in .safetensors.
        config: What config.json says, in the place of a folder.
        class_: The class of transformers, `class` in params.yaml; the first of `architectures` if empty.
        output: Which of what it returns is the answer, such as `logits`; the only tensor where none is named.
    """

    kind: Literal["transformers"] = "transformers"
    path: Annotated[str, Field(max_length=400)] = ""
    config: dict[str, Any] = Field(default_factory=dict)
    class_: Annotated[str, Field(alias="class", max_length=200, pattern=r"^([A-Z]\w*)?$")] = ""
    output: tuple[Word, ...] = Field((), max_length=16)

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
            raise ValueError(f"must be a folder below this one, as networks/mine, got {path!r}")
        return path

    @field_validator("output", mode="before")
    @classmethod
    def _single(cls, output: Any) -> Any:
        return (output,) if isinstance(output, str) else output

    @model_validator(mode="after")
    def _described_somewhere(self) -> Transformers:
        if not self.path and not self.config:
            raise ValueError("needs path, a folder with config.json, or config")
        return self

    @classmethod
    def of(cls, folder: Path | str, **options: Any) -> Transformers:
        """Return the architecture that a folder's config.json describes.

        Args:
            folder: Anywhere.
            options: `class_` and `output`.
        """
        content = {"class" if name == "class_" else name: each for name, each in options.items()}
        folder = Path(folder)
        return cls.model_validate({"path": folder.name, **content}).described(folder)

    @property
    def origin(self) -> str:
        """What sentences of errors call it."""
        return f"{self.class_ or self.path} of transformers"

    def described(self, folder: Path) -> Transformers:
        """Return the architecture with all that builds it: the configuration, the class and the version.

        Args:
            folder: Where config.json is; not looked into where the configuration is known.

        Raises:
            DecantError: There is none, or it does not say what the network is; or transformers is missing.
        """
        config = self.config or _read_config(folder / "config.json")
        named = config.get("architectures") or [""]
        class_ = self.class_ or (named[0] if isinstance(named, list) else "")
        place = "config" if self.config else str(folder / "config.json")
        if not isinstance(config.get("model_type"), str):
            raise DecantError(f"{place} has no model_type, as transformers writes it")
        if not isinstance(class_, str) or not class_.isidentifier():
            raise DecantError(f"{place} names no class in architectures; name it, as class: BertModel")
        if config.get("quantization_config"):
            raise DecantError(
                f"{place} has a quantization_config: its weights are compressed already; take the network as "
                "it was before"
            )
        return self.pinned().model_copy(update={"config": config, "class_": class_})

    def build(self, shape: Any = None, classes: object = None) -> nn.Module:
        """Return the network with fresh weights, as a function of what it takes.

        Args:
            shape: What it takes: tensors by the names that its forward has for them, or a picture.
            classes: Not asked for: the configuration says how many there are.

        Raises:
            DecantError: transformers is missing, has no such class, or cannot build it; or its forward takes
                no tensor of that name.
        """
        from decant.networks.answering import Answering

        kind, config = self.found()
        names = self._names(kind, list(shape) if isinstance(shape, Mapping) else [kind.main_input_name])
        with blaming(self.origin, "the network cannot be built"), offline():
            return Answering(kind(config), names, self.output, self.origin)

    def found(self) -> tuple[Any, Any]:
        """Return the class of transformers and its configuration.

        Raises:
            DecantError: There is no such class or kind of configuration; or the latter does not fit.
        """
        self.check_version()
        package = _transformers()
        content = {key: each for key, each in self.config.items() if key not in CHOSEN_HERE}
        kind = getattr(package, self.class_, None)
        if not (isinstance(kind, type) and issubclass(kind, package.PreTrainedModel)):
            raise DecantError(
                f"transformers {package.__version__} has no network {self.class_!r}; if its code lies beside "
                "config.json, it is not run: copy it to networks/ and take kind: python"
            )
        if (model_type := content.get("model_type")) not in package.CONFIG_MAPPING:
            raise DecantError(f"transformers {package.__version__} knows no model_type {model_type!r}")
        with blaming(self.origin, "its configuration cannot be read"), offline():
            config = package.CONFIG_MAPPING[model_type].from_dict(content, attn_implementation="eager")
            config.use_cache = False
        return kind, config

    def _names(self, kind: Any, given: list[str]) -> tuple[str, ...]:
        """Return what each tensor is called; a single one may have any name."""
        parameters = inspect.signature(kind.forward).parameters.values()
        known = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][1:]
        if len(given) == 1 and given[0] not in known:
            return (kind.main_input_name,)
        if unknown := [name for name in given if name not in known]:
            raise DecantError(
                f"{self.origin} takes no {', '.join(unknown)}; name the inputs as it does: {', '.join(known)}"
            )
        return tuple(given)


class Timm(Packaged):
    """A network of timm, by its name there.

    Attributes:
        name: Such as `resnet18`.
        with_: What timm.create_model is given beside it, by name; `with` in params.yaml.
    """

    kind: Literal["timm"] = "timm"
    name: Annotated[str, Field(max_length=200, pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_]+)?$")]
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")

    @field_validator("with_")
    @classmethod
    def _fetches_nothing(cls, options: dict[str, Any]) -> dict[str, Any]:
        if fetching := [name for name in options if name in FETCHING]:
            raise ValueError(
                f"{fetching[0]} would fetch or read weights; save them once with "
                "safetensors.torch.save_model, and name the file under teacher.weights"
            )
        return options

    @classmethod
    def of(cls, name: str, **options: Any) -> Timm:
        """Return the architecture that timm.create_model builds, called with `options`."""
        return cls.model_validate({"name": name, "with": options}).pinned()

    @property
    def origin(self) -> str:
        """What sentences of errors call it."""
        return f"{self.name} of timm"

    def build(self, shape: object = None, classes: object = None) -> nn.Module:
        """Return the network with fresh weights.

        Raises:
            DecantError: timm is missing, has no such network, or cannot build it.
        """
        self.check_version()
        package = _timm()
        if not package.is_model(self.name):
            raise DecantError(
                f"timm {package.__version__} has no network {self.name!r}"
                f"{did_you_mean(self.name, package.list_models())}"
            )
        with blaming(self.origin, "the network cannot be built"), offline():
            module: nn.Module = package.create_model(self.name, pretrained=False, **self.with_)
        return module


FROM_PYPI = {"timm": "timm torchvision", "transformers": "'transformers>=5'"}
"""What brings each package. Extras of `decant` do not: that is the name of another project there."""


def installed(package: str) -> str:
    """Return the version of a package, without importing it.

    Raises:
        DecantError: It is not installed.
    """
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DecantError(
            f"{package} is not installed, and kind: {package} builds its networks: "
            f"`pip install {FROM_PYPI[package]}`"
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    """Return the content of a config.json.

    Raises:
        DecantError: There is none, or it holds something else than a mapping of JSON.
    """
    if not path.is_file():
        raise DecantError(f"No {path} here, which should describe the network")
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_OF_CONFIG), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise DecantError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise DecantError(f"{path} must hold a mapping, found {type(content).__name__}")
    return content


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _transformers() -> Any:
    try:
        import transformers
    except Exception as error:  # whatever its own imports raise
        raise _unimportable("transformers", error) from None
    return transformers


def _timm() -> Any:
    try:
        import timm
    except Exception as error:  # whatever its own imports raise: RuntimeError where torchvision does not fit
        raise _unimportable("timm", error) from None
    return timm


def _unimportable(package: str, error: Exception) -> DecantError:
    return DecantError(
        f"{package} {installed(package)} cannot be imported beside torch {torch.__version__} "
        f"({type(error).__name__}: {str(error).strip()[:200]}); install versions that fit one another"
    )


@contextmanager
def offline() -> Iterator[None]:
    """Keep both packages from fetching anything from the hub that they share."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
