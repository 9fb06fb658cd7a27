"""The base class of all recipes, and errors that name the place in the file and the nearest valid word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from reprlib import Repr
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin

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

from decant.errors import Message

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
"""Numbers of recipes end somewhere, so that a slip of the finger is no work for years; pydantic's do not."""

Amount = Annotated[float, Field(gt=0, le=1e15)]
"""Of bytes, weights or multiplications; or a share of them."""

LONGEST_NAME = 64

RESERVED = {
    *("true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf", "infinity"),
    *("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))),
}
"""Words that are no words to YAML or to `dvc exp run -S`, and those that no file on Windows can be called."""


def _name(value: str) -> str:
    """Names are parts of paths, of stages' names, of dotted keys and of command lines."""
    if not re.fullmatch("[a-z][a-z0-9_-]*", value):
        raise ValueError(
            f"a name has lower-case letters, digits, - and _ and begins with a letter, got {_short(value)}"
        )
    if value in RESERVED:
        raise ValueError(f"{value!r} is no name: YAML, DVC or Windows take it for something else")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters, got {len(value)}")
    return value


Name = Annotated[str, AfterValidator(_name)]


@dataclass(frozen=True)
class CountOf:
    """Marks a number of a recipe as one of images, and says of which split."""

    split: Literal["training", "validation"]


TrainImages = Annotated[int, Field(gt=0, le=100_000_000), CountOf("training")]
"""A number of training images in a recipe: refused where there are fewer, see `decant.recipes.counted`."""

ValidationImages = Annotated[int, Field(gt=0, le=100_000_000), CountOf("validation")]
"""The like of validation images."""


class Section(BaseModel):
    """A part of params.yaml: immutable, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, value: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Name the nearest known key, and take no switch or word for a number: pydantic does neither."""
        mistakes = [*_switches(cls, value), *_words(cls, value)]
        try:
            section = read(value)
        except ValidationError as error:
            reported = [mistake["loc"] for mistake in mistakes]
            mistakes += [
                _renamed(cls, details)
                for details in error.errors()
                if not any(details["loc"][: len(place)] == place for place in reported)
            ]
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return section


class Block(Section):
    """What the block of every compressed model has: an operation and the model that it starts from.

    Attributes:
        op: The operation.
        from_: The model that it is applied to.
        seeds: How often the pipeline makes the model, each time by another seed; the first is the model, the
            others say how much of it is chance. A call of an operation makes one.
    """

    op: str
    from_: str = Field(alias="from")
    seeds: Annotated[int, Field(gt=0, le=20, exclude_if=lambda count: count == 1)] = 1


LISTED = 100
"""Known words in a message, and characters of a word that are compared with them."""


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> Message:
    """Return `; did you mean …?` where known words are near, and the list of known words where none is.

    Args:
        word: What was found.
        known: What there is.
        most: How many near words are named.
    """
    known = sorted(known)
    if near := difflib.get_close_matches(word[:LISTED], known, n=most):
        *first, last = map(repr, near)
        return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"; known are {', '.join(known[:LISTED])}{more}" if known else ""


def mistakes(content: Any, schema: Any, place: str = "") -> list[str]:
    """Return every mistake in `content` as a line that begins with its path in the file; none if it fits."""
    try:
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        return [_line(details, content, place) for details in _causes(error.errors())]
    return []


def _switches(section: type[Section], value: Any) -> list[InitErrorDetails]:
    """Return a mistake for each true or false where there is no switch; pydantic would read 1 or 0."""
    return [
        _mistake("not_a_switch", "must not be true or false", (key,), value[key])
        for name, field in section.model_fields.items()
        if isinstance(value, dict) and isinstance(value.get(key := field.alias or name), bool)
        if bool not in (field.annotation, *get_args(field.annotation))
    ]


def _words(section: type[Section], value: Any) -> Iterator[InitErrorDetails]:
    """Yield a mistake for each word in the place of a number or a switch; pydantic reads `yes` and `"5"`."""
    for name, field in section.model_fields.items():
        key, annotation = field.alias or name, cast(Any, field.annotation)
        leaves = _leaves(annotation)
        expected = next((words for kind, words in _WORDLESS.items() if kind in leaves), "")
        if not expected or str in leaves or not isinstance(value, dict) or key not in value:
            continue
        found: dict[tuple[int | str, ...], Any] = {(key,): value[key]}
        if isinstance(value[key], list | tuple):
            found = {(key, index): each for index, each in enumerate(value[key])}
        for place, each in found.items():
            if isinstance(each, str) and each not in leaves:
                yield _mistake("a_word", f"must be {expected}, got {_short(each)}", place, each)


_WORDLESS = {float: "a number", int: "a whole number", bool: "true or false"}


@cache
def _leaves(annotation: Any) -> frozenset[Any]:
    """Return the types, and the values of literals, that an annotation is put together from."""
    if get_origin(annotation) is Annotated:
        return _leaves(get_args(annotation)[0])
    if get_origin(annotation) is Literal or not get_args(annotation):
        return frozenset(get_args(annotation) or [annotation])
    return frozenset().union(*map(_leaves, get_args(annotation)))


def _renamed(section: type[Section], details: ErrorDetails) -> InitErrorDetails:
    """Return the mistake as it was, or a message of our own: for an unknown key, and from our validators."""
    if details["type"] == "extra_forbidden":
        *place, key = details["loc"]
        known = {field.alias or name for name, field in section.model_fields.items()}
        message = f"unknown key {key!r}{did_you_mean(str(key), known)}"
        return _mistake("unknown_key", message, tuple(place), details["input"])
    context = details.get("ctx", {})
    if "message" in context:
        return _mistake(details["type"], context["message"], details["loc"], details["input"])
    return {"type": details["type"], "loc": details["loc"], "input": details["input"], "ctx": context}


def _mistake(kind: str, message: str, place: tuple[int | str, ...], value: Any) -> InitErrorDetails:
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return {"type": error, "loc": place, "input": value}


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the mistakes without those that only follow: a list lacks an entry that is wrong itself."""
    around = {details["loc"][:depth] for details in errors for depth in range(len(details["loc"]))}
    return [details for details in errors if details["type"] != "too_short" or details["loc"] not in around]


def _line(details: ErrorDetails, content: Any, place: str) -> Message:
    """Return `models.a.bits: message` with only the parts of the location that stand in the file."""
    parts = [place] if place else []
    last = len(details["loc"]) - 1
    entered = True  # into a mapping: the next part may be the tag that chose a member of a union
    for index, part in enumerate(details["loc"]):
        is_key = isinstance(content, dict) and part in content and not (entered and _is_tag(part, content))
        if is_key or (isinstance(content, list) and isinstance(part, int) and part < len(content)):
            content, entered = content[part], True
        elif index < last or details["type"] != "missing":
            entered = False
            continue  # the tag of a union: in the schema, not in the file
        parts.append(str(part) if str(part).isprintable() else repr(part))
    return f"{'.'.join(parts) or 'top level'}: {_message(details)}"


def _is_tag(part: int | str, content: dict[Any, Any]) -> bool:
    """Say whether a part of a location is what a mapping says it is, even if it has a key of that name."""
    return part in (content.get("kind"), content.get("op"))


def _message(details: ErrorDetails) -> Message:
    """Return pydantic's message as it helps someone who writes YAML, and what was found."""
    context, kind, found = details.get("ctx", {}), details["type"], _short(details["input"])
    if "message" in context:
        return context["message"]
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
        case "too_long":
            return f"takes at most {context['max_length']} entries, got {found}"
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


SHOWN = 60
"""Characters of a value in a message."""

_FEW = Repr()
_FEW.maxlist = _FEW.maxtuple = _FEW.maxdict = SHOWN // 3
_FEW.maxstring = _FEW.maxlong = _FEW.maxother = 2 * SHOWN


def _short(value: Any) -> str:
    """Return the beginning of a value's text, without making the rest of it."""
    try:
        text = _FEW.repr(value)
    except ValueError:  # Python makes no text of thousands of digits
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
