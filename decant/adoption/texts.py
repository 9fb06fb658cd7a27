"""What has to be so of a network of other people that reads texts: tokens are the data's, padding is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from decant.adoption.checks import APART, answered, forward_of
from decant.errors import DecantError
from decant.examples import Rows, arguments
from decant.inputs import IDS, MASK
from decant.networks.dispatch import Watching
from decant.networks.python import blaming

SPARE = 128
"""Rows that an embedding may have beyond the tokens, or a fiftieth of these: sizes are rounded up."""

LOOKED_AT = 1000
"""Rows among which the shortest is looked for."""


def check_texts(module: nn.Module, rows: Rows, file: str) -> None:
    """Check that a network can read these texts; others than rows of the source `text` are not looked at.

    Args:
        module: The network, in eval mode.
        rows: What it will be called with.
        file: Its user's file.

    Raises:
        DecantError: Its embedding is of other tokens than the tokenizer's; it fails on shorter rows; or what
            it answers for a text depends on how much padding comes behind.
    """
    if rows.inputs is None or IDS not in rows.inputs:
        return
    _check_vocabulary(module, rows, rows.inputs[IDS].below, file)
    if rows.lengths is not None:
        _check_padding(module, rows, file)


def _check_vocabulary(module: nn.Module, rows: Rows, tokens: int, file: str) -> None:
    watch = _Lookups(rows[:1].tensors[IDS][:])
    with torch.no_grad(), watch, blaming(file, "the network fails on a text", forward_of(module, file)):
        try:
            module(*arguments(rows[:1]))
        except IndexError:  # a token beyond the embedding, which the watch has seen
            if watch.size is None:
                raise
    if watch.size is not None and not tokens <= watch.size <= tokens + max(SPARE, tokens // 50):
        raise DecantError(
            f"{file}: the network's embedding is of {watch.size:,} tokens, and the tokenizer has {tokens:,} "
            "(data.tokenizer); take the tokenizer that the network was made for, or give the embedding as "
            "many rows"
        )


class _Lookups(Watching):
    """Notes how many rows a table has in which these tokens are looked up."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self._tokens = tokens.flatten()
        self.size: int | None = None

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func.overloadpacket is torch.ops.aten.embedding:
            table, places = args[:2]
            if torch.equal(places.flatten().long(), self._tokens.long()):
                self.size = len(table)
        return func(*args, **kwargs)


def _check_padding(module: nn.Module, rows: Rows, file: str) -> None:
    lengths = rows[:LOOKED_AT].lengths
    assert lengths is not None
    row = int(lengths.argmin())
    length, places = int(lengths[row]), rows.tensors[MASK].shape[1]
    padded = rows[row : row + 1]
    if length == places:
        return
    whole = answered(module, padded, file)
    alone = answered(module, padded.cut(length), file)
    # Of a network that answers at each place, those of the text come first.
    whole = whole[:, : alone.shape[1]] if whole.shape[1] * length == alone.shape[1] * places else whole
    gap = (whole - alone).abs().max().item() if whole.shape == alone.shape else float("inf")
    if not gap <= APART * max(whole.abs().max().item(), 1e-6):
        raise DecantError(
            f"{forward_of(module, file)}: what the network answers for a text of {length} tokens changes by "
            f"{gap:.3g} with {places - length} places of padding behind it; leave out what {MASK} is 0 at, "
            f"or say `fixed: true` in data, so that every row has {places} places"
        )
