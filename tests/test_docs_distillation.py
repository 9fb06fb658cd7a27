"""The cards of docs/distillation.md: blocks are valid, each loss has its card, each card says all of it."""

import re
from typing import Any, get_args

import pytest
import yaml

from decant.distill.params import DistillParams
from decant.training.losses import SoftTargets
from decant.training.ramps import Ramp
from tasks.pipeline.params import validate
from tests.imports import ROOT

TEXT = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
PLAIN = {
    "op": "distill",
    "from": "teacher",
    "student": {"kind": "mlp", "hidden": [8]},
    "training": {"epochs": 1},
}
KINDS = get_args(get_args(SoftTargets)[0])


def paragraphs() -> list[str]:
    return [re.sub("(?m)^    ", "", found) for found in re.findall(r"(?m)(?:^    .*\n)+", TEXT)]


def blocks() -> list[dict[str, Any]]:
    """Return each block that is shown, filled up to a whole one; each `loss:` is a block of its own."""
    shown: list[dict[str, Any]] = []
    for paragraph in paragraphs():
        for part in re.split(r"(?m)^(?=loss:)", paragraph):
            content = yaml.safe_load(part) or {}
            whole = all("op" in value for value in content.values())
            shown += content.values() if whole else [PLAIN | content]
    return shown


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_on_the_page_is_valid(block: dict[str, Any]) -> None:
    assert validate(block, DistillParams).op == "distill"


def test_the_page_shows_every_loss_and_every_key() -> None:
    shown = [block["loss"] for block in blocks()]
    for kind in KINDS:
        name = kind.model_fields["kind"].default
        keys = set().union(*(loss for loss in shown if loss["kind"] == name))
        assert keys | {"hard", "factor", "standardize"} >= set(kind.model_fields), name
    named = {key for loss in shown for key in loss}
    assert named >= {"hard", "factor", "standardize", "layers"}
    ramps = [loss["hard"] for loss in shown if isinstance(loss.get("hard"), dict)]
    assert ramps and all(set(ramp) <= set(Ramp.model_fields) for ramp in ramps)
    assert {"until", "shape"} <= set(re.findall("[a-z]+", TEXT))
    keys = {field.alias or name for name, field in DistillParams.model_fields.items()}
    assert set().union(*blocks()) == keys - {"seeds"}, "seeds is of every operation"


def cards() -> dict[str, str]:
    sections = re.split(r"(?m)^(?=##+ )", TEXT)
    titled = {section.splitlines()[0]: section for section in sections[1:]}
    return {title.removeprefix("### "): body for title, body in titled.items() if title.startswith("### ")}


@pytest.mark.parametrize("title", cards())
def test_every_card_says_what_when_when_not_at_what_cost_and_where_from(title: str) -> None:
    card = cards()[title]
    words = ("Does", "Take it", "It does not help", "Cost")
    assert [word for word in words if card.count(f"**{word}**") != 1] == []
    assert re.search(r"\*\*Paper\*\*:\s+\[.*?\]\(https://", card, re.DOTALL)
    assert "\n    loss:" in card, "shows how to ask for it"


def test_there_is_a_card_for_each_loss_and_its_paper_is_the_class_s() -> None:
    by_name = {title.lower(): card for title, card in cards().items()}
    assert set(by_name) == {kind.model_fields["kind"].default for kind in KINDS}
    for kind in KINDS:
        assert "help" in kind.__doc__.lower() and "References:" in kind.__doc__
        link = re.search(r"arxiv\.org/abs/[\d.]+\d", by_name[kind.model_fields["kind"].default])
        assert link is None or link.group() in kind.__doc__, kind
