"""Sections of params.yaml: their base class, reading one, and errors that name the place in the file."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from tasks.errors import DecantError

PARAMS = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, le=1)]


def _name(value: str) -> str:
    """Names are parts of paths, of stages' names and of dotted keys."""
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", value):
        raise ValueError(
            f"a name has lower-case letters, digits, - and _ and begins with a letter or digit, got {value!r}"
        )
    return value


Name = Annotated[str, AfterValidator(_name)]


class Section(BaseModel):
    """A part of params.yaml: immutable, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, value: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Name the nearest known key, and take no true or false for a number: pydantic does neither."""
        mistakes = _switches(cls, value)
        try:
            section = read(value)
        except ValidationError as error:
            told = {mistake.get("loc") for mistake in mistakes}
            mistakes += [_told(cls, details) for details in error.errors() if details["loc"] not in told]
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return section


class Block(Section):
    """What the block of every compressed model has: an operation and the model that it starts from."""

    op: str
    from_: str = Field(alias="from")


S = TypeVar("S")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` where a known word is near, and the list of known words where none is."""
    known = sorted(known)
    if near := difflib.get_close_matches(word, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""


def read_yaml(path: Path = PARAMS) -> dict[str, Any]:
    """Return the whole of params.yaml, unvalidated.

    Raises:
        DecantError: The file is missing or no YAML, a key is no word or stands twice, it is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise DecantError(f"No {path} here; run from the root of the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DecantError(f"Cannot read {path}: {error}; it must be a text file in UTF-8") from None
    except yaml.YAMLError as error:
        words = str(error).replace('"<unicode string>"', str(path))
        raise DecantError(f"{path} is not valid YAML: {words}") from None
    if not isinstance(content, dict):
        raise DecantError(f"{path} must hold named sections, found {type(content).__name__}")
    return content


def read_section(name: str, schema: type[S], path: Path = PARAMS) -> S:
    """Return one section, validated; `name` may be dotted, such as `models.prune-80`.

    Raises:
        DecantError: There is no such section, or it does not fit the schema.
    """
    content: Any = read_yaml(path)
    for depth, key in enumerate(name.split(".")):
        if not isinstance(content, dict) or key not in content:
            place = ".".join(name.split(".")[:depth]) or str(path)
            known = [str(key) for key in content] if isinstance(content, dict) else []
            raise DecantError(f"{place} has no {key!r}{did_you_mean(key, known)}")
        content = content[key]
    return validate(content, schema, name, path)


def validate(content: Any, schema: Any, place: str = "", path: Path = PARAMS) -> Any:
    """Return `content` as `schema`, or raise a DecantError with one line for each mistake."""
    if wrong := mistakes(content, schema, place):
        raise DecantError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return TypeAdapter(schema).validate_python(content)


def mistakes(content: Any, schema: Any, place: str = "") -> list[str]:
    """Return every mistake in `content` as a line that begins with its path in the file; none if it fits."""
    try:
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        return [_line(details, content, place) for details in _causes(error.errors())]
    return []


def derive_seed(seed: int, name: str) -> int:
    """Return the seed of one model, in [0, 2^63): other names give other seeds, in any order of running."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _switches(section: type[Section], value: Any) -> list[InitErrorDetails]:
    """Return a mistake for each true or false where there is no switch; pydantic would read 1 or 0."""
    return [
        _mistake("not_a_switch", "must not be true or false", (key,), value[key])
        for name, field in section.model_fields.items()
        if isinstance(value, dict) and isinstance(value.get(key := field.alias or name), bool)
        if bool not in (field.annotation, *get_args(field.annotation))
    ]


def _told(section: type[Section], details: ErrorDetails) -> InitErrorDetails:
    """Return the mistake as it was, or an unknown key in words."""
    if details["type"] == "extra_forbidden":
        *place, key = details["loc"]
        known = {field.alias or name for name, field in section.model_fields.items()}
        words = f"unknown key {key!r}{did_you_mean(str(key), known)}"
        return _mistake("unknown_key", words, tuple(place), details["input"])
    context = details.get("ctx", {})
    if "words" in context:
        return _mistake(details["type"], context["words"], details["loc"], details["input"])
    return {"type": details["type"], "loc": details["loc"], "input": details["input"], "ctx": context}


def _mistake(kind: str, words: str, place: tuple[int | str, ...], value: Any) -> InitErrorDetails:
    error = PydanticCustomError(kind, "{words}", {"words": words})
    return {"type": error, "loc": place, "input": value}


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the mistakes without those that only follow: a list lacks an entry that is wrong itself."""
    around = {details["loc"][:depth] for details in errors for depth in range(len(details["loc"]))}
    return [details for details in errors if details["type"] != "too_short" or details["loc"] not in around]


def _line(details: ErrorDetails, content: Any, place: str) -> str:
    """Return `models.a.bits: message` with only the parts of the location that stand in the file."""
    parts = [place] if place else []
    last = len(details["loc"]) - 1
    entered = True  # into a mapping: the next part may be the tag that told which one of a union it is
    for index, part in enumerate(details["loc"]):
        is_key = isinstance(content, dict) and part in content and not (entered and _is_tag(part, content))
        if is_key or (isinstance(content, list) and isinstance(part, int) and part < len(content)):
            content, entered = content[part], True
        elif index < last or details["type"] != "missing":
            entered = False
            continue  # the tag of a union: a word of the schema, not of the file
        parts.append(str(part))
    return f"{'.'.join(parts) or 'top level'}: {_message(details)}"


def _is_tag(part: int | str, content: dict[Any, Any]) -> bool:
    """Say whether a part of a location is what a mapping says it is, even if it has a key of that name."""
    return part in (content.get("kind"), content.get("op"))


def _message(details: ErrorDetails) -> str:
    """Return pydantic's message in the words of someone who writes YAML, and what was found."""
    context, kind, found = details.get("ctx", {}), details["type"], _short(details["input"])
    if "words" in context:
        return context["words"]
    match kind:
        case "union_tag_invalid":
            expected = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
            discriminator, tag = str(context["discriminator"]).strip("'"), str(context["tag"])
            return f"unknown {discriminator} {tag!r}{did_you_mean(tag, expected)}"
        case "union_tag_not_found":
            return f"needs the key {context['discriminator']}"
        case "missing":
            return "is missing"
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
        case "too_short":
            return f"needs {context['min_length']} or more entries, got {found}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping of keys to values, got {found}"
        case "tuple_type" | "list_type":
            return f"must be a list, got {found}"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"must be a whole number, got {found}"
        case "float_type" | "float_parsing":
            return f"must be a number, got {found}"
        case "bool_type" | "bool_parsing":
            return f"must be true or false, got {found}"
        case "string_type":
            return f"must be a word, got {found}"
        case _:
            return f"{details['msg'].replace('Input should be', 'must be', 1)}, got {found}"


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:59]}…"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys without a word: a model would vanish unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping whose keys are words, each written once; what `<<` merges in may repeat them."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                kind = key.tag.removeprefix(_TAG)
                raise _unreadable(f"this key is of type {kind} to YAML; put it in quotes", key)
            if key.value in seen:
                raise _unreadable(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
        return node


_TAG = "tag:yaml.org,2002:"


def _unreadable(words: str, key: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, words, key.start_mark)
