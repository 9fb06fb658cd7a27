"""LSTM layers step by step, so that what they multiply can be rounded in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import DecantError
from decant.networks.record import record_of

State = tuple[Tensor, Tensor]
"""What an LSTM layer hands from step to step: its answer and its memory."""


def steppable(module: nn.Module) -> dict[str, list[list[str]]]:
    """Return the weights of the layers in each LSTM that a pass calls, in order, by the LSTM's name.

    An LSTM with projections, and a subclass, which computes what it likes, are left out.
    """
    called = record_of(module).called
    return {
        name: [_weights(name, layer, at) for at in range(layer.num_layers)]
        for name, layer in module.named_modules()
        if type(layer) is nn.LSTM and not layer.proj_size and name in called
    }


def _weights(name: str, layer: nn.LSTM, at: int) -> list[str]:
    return [f"{name}.{part}".removeprefix(".") for names in _names(layer, at) for part in names[:2]]


def stepped(
    layer: nn.LSTM, numbers: Collection[int], rounding: Callable[[Tensor], Tensor], input: Any, hx: Any = None
) -> tuple[Tensor, State]:
    """Return what an LSTM answers where some of its layers round all that they multiply.

    Such a layer rounds what comes in at once, and its own answer before each step.

    Args:
        layer: The LSTM.
        numbers: Which of its `num_layers`.
        rounding: What is done to [L, N, I], and at each step to [N, h].
        input: [L, N, I], [N, L, I] where the batch comes first, or [L, I] of one row.
        hx: The states to begin with; zeros where None.

    Raises:
        DecantError: The sequences are packed together, so that a step has rows of its own.
    """
    if not isinstance(input, Tensor):
        raise DecantError(
            "The inputs of an LSTM on packed sequences are not rounded: name it in skip, or pad sequences"
        )
    single, turned = input.dim() == 2, layer.batch_first and input.dim() == 3
    x = input.unsqueeze(1) if single else input.transpose(0, 1) if turned else input
    ways = 1 + layer.bidirectional
    zeros = x.new_zeros(ways * layer.num_layers, x.shape[1], layer.hidden_size)
    given = (zeros, zeros) if hx is None else [each.reshape(zeros.shape) for each in hx]
    ends = []
    for at in range(layer.num_layers):
        state = tuple(each[at * ways : (at + 1) * ways] for each in given)
        x, end = _layer(layer, at, rounding if at in numbers else None, x, state)
        ends.append(end)
        if at + 1 < layer.num_layers:
            x = F.dropout(x, layer.dropout, layer.training)
    h, c = (torch.cat(parts) for parts in zip(*ends, strict=True))
    if single:
        return x.squeeze(1), (h.squeeze(1), c.squeeze(1))
    return x.transpose(0, 1) if turned else x, (h, c)


def _layer(
    layer: nn.LSTM, at: int, rounding: Callable[[Tensor], Tensor] | None, x: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, State]:
    """Return the answers [L, N, D h] of one layer, all of its directions, and its last states [D, N, h]."""
    weights = [[getattr(layer, name) for name in names] for names in _names(layer, at)]
    if rounding is None:
        flat = [each for way in weights for each in way]
        y, h, c = torch.lstm(x, tuple(state), flat, layer.bias, 1, 0.0, False, layer.bidirectional, False)
        return y, (h, c)
    x = rounding(x)
    parts = []
    for way, own in enumerate(weights):
        y, end = _steps(own, rounding, x.flip(0) if way else x, (state[0][way], state[1][way]))
        parts.append((y.flip(0) if way else y, *end))
    answers, hs, cs = zip(*parts, strict=True)
    return torch.cat(answers, -1), (torch.stack(hs), torch.stack(cs))


def _names(layer: nn.LSTM, at: int) -> list[list[str]]:
    """Return the names of what each direction of one layer computes with: two weights, and two biases."""
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
    return [[f"{kind}_l{at}{way}" for kind in kinds] for way in ("", "_reverse")[: 1 + layer.bidirectional]]


def _steps(
    own: Sequence[Tensor], rounding: Callable[[Tensor], Tensor], x: Tensor, state: State
) -> tuple[Tensor, State]:
    """Return the answers [L, N, h] of one direction, and its last state."""
    weight, recurrent, *biases = own
    sums = F.linear(x, weight, sum(biases[1:], biases[0]) if biases else None)
    (h, c), answers = state, []
    for each in sums:
        i, f, g, o = (each + F.linear(rounding(h), recurrent)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        answers.append(h)
    return torch.stack(answers), (h, c)
