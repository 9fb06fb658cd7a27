"""The cards of docs/quantization.md: blocks are valid, each choice has its card, each card says all of it."""

import re
from typing import Any, get_args

import pytest
import yaml

from decant.quantize.mixed_precision.params import Mixed, WidthBudget
from decant.quantize.params import Activations, QuantizeParams
from decant.quantize.qat.trainers import Train
from decant.quantize.rounding.methods import Rounding
from decant.quantize.schemes import Scheme
from tasks.pipeline.params import validate
from tests.imports import ROOT

TEXT = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
PLAIN = {"op": "quantize", "from": "teacher", "scheme": {"kind": "integer"}}


def paragraphs() -> list[str]:
    return [re.sub("(?m)^    ", "", found) for found in re.findall(r"(?m)(?:^    .*\n)+", TEXT)]


def blocks() -> list[dict[str, Any]]:
    """Return each block that is shown, filled up to a whole one where the page shows some keys of it.

    Lines of one key are alternatives; lines of several keys go together.
    """
    shown: list[dict[str, Any]] = []
    for paragraph in paragraphs():
        keys = [line.split(":")[0] for line in paragraph.splitlines() if not line.startswith(" ")]
        alone = len(set(keys)) < len(keys)
        for part in paragraph.splitlines() if alone else [paragraph]:
            content = yaml.safe_load(part)
            whole = all(isinstance(value, dict) and "op" in value for value in content.values())
            shown += content.values() if whole else [PLAIN | content]
    return shown


def kinds(union: Any) -> set[str]:
    return {kind.model_fields["kind"].default for kind in get_args(get_args(union)[0])}


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_on_the_page_is_valid(block: dict[str, Any]) -> None:
    assert validate(block, QuantizeParams).op == "quantize"


def test_the_page_shows_every_choice_there_is() -> None:
    read = [validate(block, QuantizeParams) for block in blocks()]
    assert {block.scheme.kind for block in read} == kinds(Scheme)
    assert {block.rounding.kind for block in read} == kinds(Rounding)
    assert {block.train.kind for block in read if block.train} == kinds(Train)
    assert {block.mixed.budget.measure for block in read if block.mixed} == set(WidthBudget.model_fields)


@pytest.mark.parametrize(
    ("key", "section"), [(None, QuantizeParams), ("activations", Activations), ("mixed", Mixed)], ids=str
)
def test_the_page_shows_every_key(key: str | None, section: type[QuantizeParams]) -> None:
    shown = [block if key is None else block[key] for block in blocks() if key is None or key in block]
    assert set().union(*shown) == {field.alias or name for name, field in section.model_fields.items()}


def test_every_key_of_the_schemes_is_on_the_page() -> None:
    """Keys that several have, such as `per_channel`, may stand at one of them."""
    named = {name for kind in get_args(get_args(Scheme)[0]) for name in kind.model_fields}
    shown = set().union(*(block["scheme"] for block in blocks()))
    assert named == shown


def cards() -> dict[str, str]:
    """Return each card by its title: a heading of the third level, and mixed precision."""
    sections = re.split(r"(?m)^(?=##+ )", TEXT)
    titled = {section.splitlines()[0]: section for section in sections[1:]}
    return {title: body for title, body in titled.items() if title.startswith("### ") or "Mixed" in title}


@pytest.mark.parametrize("title", cards())
def test_every_card_says_what_when_when_not_at_what_cost_and_where_from(title: str) -> None:
    card = cards()[title]
    assert [
        word for word in ("Does", "Take it", "It does not help", "Cost") if card.count(f"**{word}**") != 1
    ] == []
    assert re.search(r"\*\*Papers?\*\*:\s+.*?\]\(https://", card, re.DOTALL)
    assert "\n    " in card, "shows how to ask for it"


def test_there_is_a_card_for_each_choice() -> None:
    titles = {title.removeprefix("### ").lower().replace(" ", "-") for title in cards()}
    assert kinds(Scheme) | kinds(Rounding) | kinds(Train) <= titles
