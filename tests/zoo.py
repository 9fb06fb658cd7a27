"""Small networks as other people write them, each with a trap, and the facts that are right of them.

Every fact was found by hand, from the code of the network alone: the arithmetic of the multiplications is
written out. `test_networks.py` holds the record to them, and `test_generality.py` every operation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, weight_norm

from decant.examples import Rows


@dataclass(frozen=True)
class Ids:
    """Whole numbers below `words`, in rows of a shape."""

    words: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """A network and its facts.

    Attributes:
        make: Builds it.
        takes: Of each input, the shape of a row of fractions, or what ids a row has.
        calls: What multiplies, in order: a letter and a parameter, `.weight` left out. The letter is that of
            the kind: c convolution, t transposed convolution, l linear, r recurrent, e embedding. Where the
            weight is computed, a ~ and the layer.
        macs: Multiplications for one row.
        folds: Layers and the batch norms that may be folded into them.
        tied: Names of one tensor.
        unused: Parameters of two dimensions and more that nothing reads.
        named: What the network calls its inputs, where it takes one dict of them.
        attends: Whether there are products of two computed sides beside the calls.
    """

    make: Callable[[], nn.Module]
    takes: tuple[tuple[int, ...] | Ids, ...]
    calls: str
    macs: int
    folds: str = ""
    tied: tuple[str, ...] = ()
    unused: str = ""
    named: tuple[str, ...] = ()
    attends: bool = False

    def draw(self, count: int, seed: int = 1) -> tuple[Tensor, ...]:
        """Return inputs of so many rows."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(1, each.words, (count, *each.shape), generator=generator)
            if isinstance(each, Ids)
            else torch.randn(count, *each, generator=generator)
            for each in self.takes
        )

    def rows(self, count: int, seed: int = 1) -> Rows:
        """Return them as a table."""
        return Rows({f"input{index}": each for index, each in enumerate(self.draw(count, seed))})

    def example(self, count: int = 2) -> tuple[Any, ...]:
        """Return what the network itself is called with."""
        drawn = self.draw(count)
        return (dict(zip(self.named, drawn, strict=True)),) if self.named else drawn

    @property
    def pairs(self) -> dict[str, str]:
        """The batch norms that may be folded, by the layer."""
        return dict(pair.split("+") for pair in self.folds.split())  # type: ignore[misc]


def lively(module: nn.Module) -> nn.Module:
    """Return a network in eval mode in which each number has an effect: no ones, no zeros."""
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.uniform_(0.6, 1.4) if bool(tensor.any()) else tensor.normal_(0, 0.2)
        for each in module.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.running_mean is not None:
                each.running_mean.normal_(0, 0.3)
                each.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module.eval()


def network(name: str) -> nn.Module:
    """Return a network of the zoo, the same each time."""
    torch.manual_seed(len(name))
    return lively(ZOO[name].make())


def build(name: str) -> nn.Module:
    """Return it as its owner would give it away: called with tensors in order."""
    module, named = network(name), ZOO[name].named
    return InOrder(module, named) if named else module


class InOrder(nn.Module):
    """A network that takes a dict, called with tensors."""

    def __init__(self, inner: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(dict(zip(self.names, inputs, strict=True)))


# ------------------------------------------------------------ convolutions, one after the other


class Gauge(nn.Module):
    """One number a row, and no dimension for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(9, 20), nn.BatchNorm1d(20)
        self.drop, self.second, self.last = nn.Dropout(0.4), nn.Linear(20, 12), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.first(x)).tanh())
        return self.last(self.second(x).relu()).squeeze(-1)


def numbered() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(144, 24), nn.ReLU(), nn.Linear(24, 300))


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and its batch norm."""
    padding = size // 2
    layer = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class Stacked(nn.Module):
    """Rectifiers in place, and a view in place of a flattening layer."""

    def __init__(self) -> None:
        super().__init__()
        first, second = [*conv(3, 8), nn.ReLU(inplace=True)], [*conv(8, 12), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2))
        self.top = nn.Sequential(nn.Dropout(), nn.Linear(48, 16), nn.ReLU(True), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.body(x).view(len(x), -1))


class Residual(nn.Module):
    """The shortcut is registered last and runs first; the addition is in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = conv(3, 8)
        self.conv1, self.bn1 = conv(8, 12, stride=2)
        self.conv2, self.bn2 = conv(12, 12)
        self.shortcut = nn.Sequential(*conv(8, 12, 1, stride=2))
        self.fc = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        kept = self.shortcut(x)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        y += kept
        return self.fc(F.adaptive_avg_pool2d(y.relu_(), 1).flatten(1))


class Bottleneck(nn.Module):
    """The shortcut pools before it convolves."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bn_down = conv(3, 4, 1)
        self.mid, self.bn_mid = conv(4, 4, stride=2)
        self.up, self.bn_up = conv(4, 10, 1)
        self.short = nn.Sequential(nn.AvgPool2d(2), *conv(3, 10, 1))
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn_mid(self.mid(self.bn_down(self.down(x)).relu())).relu()
        return self.fc((self.bn_up(self.up(y)) + self.short(x)).relu().mean((2, 3)))


class Preactivated(nn.Module):
    """What feeds a batch norm also goes past it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.last = (nn.BatchNorm2d(8) for _ in range(3))
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


def depthwise() -> nn.Module:
    first, apart = [*conv(3, 8, stride=2), nn.ReLU()], [*conv(8, 8, groups=8), nn.ReLU()]
    return nn.Sequential(
        nn.Sequential(*first),
        nn.Sequential(*apart, *conv(8, 12, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class Inverted(nn.Module):
    """A depthwise convolution on the picture itself; a sum of two linear bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv(3, 3, groups=3), nn.ReLU6(True), *conv(3, 6, 1))
        wide = [*conv(6, 18, 1), nn.ReLU6(True), *conv(18, 18, groups=18), nn.ReLU6(True)]
        self.second = nn.Sequential(*wide, *conv(18, 6, 1))
        self.top = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.top((x + self.second(x)).mean([2, 3]))


class Squeezed(nn.Module):
    """Classes straight from a convolution; what runs first is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.classes = nn.Conv2d(12, 7, 1)
        self.squeeze = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.squeeze(x).relu(), 3, 2, ceil_mode=True)
        x = torch.cat([self.narrow(x).relu(), self.wide(x).relu()], 1)
        return F.adaptive_avg_pool2d(self.classes(x).relu(), 1).flatten(1)


class Dense(nn.Module):
    """Batch norms that read what several layers gave, before the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * index) for index in range(2))
        self.convs = nn.ModuleList(
            nn.Conv2d(6 + 4 * index, 4, 3, padding=1, bias=False) for index in range(2)
        )
        self.tail, self.fc = nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.fc(self.tail(x).relu().mean((2, 3)))


class Branches(nn.Module):
    """One batch norm over three branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        deep = nn.Sequential(*conv(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 4, 1))
        self.all = nn.ModuleDict({"plain": nn.Conv2d(6, 4, 1), "deep": deep, "pooled": pooled})
        self.stem, self.norm, self.fc = nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([branch(x) for branch in self.all.values()], 1)
        return self.fc(self.norm(x).relu().amax((2, 3)))


class Skips(nn.Module):
    """A picture out of a picture: a batch norm behind a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv(1, 6), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU())
        self.up, self.bn_up = nn.ConvTranspose2d(10, 6, 2, 2, bias=False), nn.BatchNorm2d(6)
        self.join, self.out = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.down(x)
        x = self.bn_up(self.up(self.bottom(F.max_pool2d(kept, 2))))
        return self.out(self.join(torch.cat([x, kept], 1)).relu())


class Grouped(nn.Module):
    """Groups and holes; norms without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=d, dilation=d, groups=2) for d in (1, 2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(2))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.silu(norm(layer(x)))
        return self.head(x)


class Codec(nn.Module):
    """A tuple of two; a linear layer whose outputs become channels."""

    def __init__(self) -> None:
        super().__init__()
        code = [nn.Flatten(), nn.Linear(6 * 16, 8)]
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.InstanceNorm2d(6, affine=True), nn.LeakyReLU(0.1), *code
        )
        self.decoder = nn.Sequential(
            nn.Linear(8, 96),
            nn.Unflatten(1, (6, 4, 4)),
            nn.ConvTranspose2d(6, 4, 4, 2, 1),
            nn.BatchNorm2d(4),
            nn.ELU(),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return self.decoder(code), code


class ChannelsLast(nn.Module):
    """Linear layers on [N, H, W, C], and a scale of the layer that began at a millionth."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.apart = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.grow, self.shrink = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(1e-6 * torch.ones(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.apart(x).permute(0, 2, 3, 1))
        y = self.scale * self.shrink(F.gelu(self.grow(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


# ------------------------------------------------------------ attention


class Attention(nn.Module):
    """Queries, keys and values of one layer; products written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if causal:
            later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))


class Patches(nn.Module):
    """A token of its own and places, as plain parameters."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 4)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """A linear layer over places, on the other axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 12)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.over_places = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 9))
        self.over_channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        x = x + self.over_places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.over_channels(self.norm2(x))).mean(1))


class Encoder(nn.Module):
    """Layers of torch, which one fused operator replaces in eval mode; padding."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, width, padding_idx=0), nn.Embedding(10, width)
        layer = nn.TransformerEncoderLayer(width, 4, 24, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.layers(x, src_key_padding_mask=ids == 0)[:, 0])


class Pooled(nn.Module):
    """nn.MultiheadAttention with a parameter for a query: what keys meet is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.query = nn.Linear(6, 12), nn.Parameter(torch.randn(1, 1, 12))
        self.attention, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).relu()
        return self.head(self.attention(self.query.expand(len(x), -1, -1), x, x)[0][:, 0])


class Series(nn.Module):
    """One LayerNorm that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList([Attention(8, 2), Attention(8, 2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = self.norm(x + block(x))
        return self.out(x.mean(1))


class RootMean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Decoder(nn.Module):
    """The table of words is the last layer too; a mask made in the pass; a gated unit; logits by place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(40, width)
        self.norm1, self.norm2, self.norm3 = (RootMean(width) for _ in range(3))
        self.attention = Attention(width, 2)
        self.gate, self.up = nn.Linear(width, 20, bias=False), nn.Linear(width, 20, bias=False)
        self.down, self.head = nn.Linear(20, width, bias=False), nn.Linear(width, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + self.attention(self.norm1(x), causal=True)
        y = self.norm2(x)
        return self.head(self.norm3(x + self.down(F.silu(self.gate(y)) * self.up(y))))


# ------------------------------------------------------------ sequences


class Words(nn.Module):
    """Two layers in one module, whose last state is read and not what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.steps, self.fc = nn.LSTM(8, 10, num_layers=2, batch_first=True, dropout=0.1), nn.Linear(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.steps(self.words(ids))[1][0][-1])


class Forecast(nn.Module):
    """Time comes first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.fc = nn.GRU(4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] + self.fc(self.steps(x.transpose(0, 1))[0][-1])


class Tagger(nn.Module):
    """Both directions; a class for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU())
        self.steps, self.tags = nn.LSTM(8, 6, bidirectional=True, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.tags(self.steps(self.front(x).transpose(1, 2))[0])


class Cells(nn.Module):
    """A loop in the network's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.fc(state)


class Causal(nn.Module):
    """weight_norm: what is stored is not what multiplies."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv1d(inputs, 8, 3, dilation=d) for inputs, d in ((3, 1), (8, 2))]
        self.convs = nn.ModuleList(parametrizations.weight_norm(each) for each in layers)
        self.skip, self.out = nn.Conv1d(3, 8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.skip(x)
        for layer in self.convs:
            x = layer(F.pad(x, (2 * layer.dilation[0], 0))).relu()  # type: ignore[index, operator, union-attr]
        return self.out((x + y)[:, :, -1])


class Sound(nn.Module):
    """Gated linear units, which pair channel i with i + C / 2; several labels at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(1, 12, 16, 8), nn.BatchNorm1d(12)
        self.conv2, self.bn2 = nn.Conv1d(6, 16, 5, 2, bias=False), nn.BatchNorm1d(16)
        self.tags = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.bn1(self.conv1(x)), 1)
        return self.tags(F.glu(self.bn2(self.conv2(x)), 1).mean(-1)).sigmoid()


# ------------------------------------------------------------ wiring


class Siamese(nn.Module):
    """Each layer runs twice, on two inputs, and its batch norm with it."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(*conv(1, 6, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
        self.score = nn.Linear(10, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.score((self.look(one) - self.look(other)).abs())


class Twice(nn.Module):
    """One convolution with two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.shared = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.early, self.late = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(self.shared(self.lift(x))).relu()
        return self.fc(self.late(self.shared(x)).relu().mean((2, 3)))


class Backwards(nn.Module):
    """Registered in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.norm_of_second, self.norm_of_first = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.second, self.first = nn.Conv2d(6, 6, 3), nn.Conv2d(1, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_of_first(self.first(x)).relu()
        return self.fc(self.norm_of_second(self.second(x)).relu().mean((2, 3)))


class Behind(nn.Module):
    """The batch norm stands behind the rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.rectify = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6)
        self.conv2, self.bn2, self.fc = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.rectify(self.conv1(x)))
        return self.fc(self.bn2(self.conv2(x).relu()).flatten(2).mean(-1))


class Functional(nn.Module):
    """Parameters that functions read; there is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.shift = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.2), nn.Parameter(torch.zeros(6))
        self.norm, self.table = nn.BatchNorm2d(6), nn.Parameter(torch.randn(6, 4) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.conv2d(x, self.filters, self.shift, padding=1)).relu()
        return x.mean((2, 3)) @ self.table


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, scaled, self.bias, padding=self.padding)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class Reshaped(nn.Module):
    """A subclass with a pass of its own; a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Standardized(2, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.mix, self.fc = nn.Linear(6, 6), nn.Linear(6, 4)
        parametrize.register_parametrization(self.mix, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


@dataclass
class Answer:
    """What a network gives."""

    classes: Tensor
    seen: Tensor


class Renewed(nn.Module):
    """Weights computed before each pass in the older way; a batch norm that is a function; a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are deprecated, and in use
            self.conv = weight_norm(nn.Conv2d(2, 6, 3, padding=1))
            self.mix = weight_norm(nn.Linear(6, 6), dim=None)
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("variance", torch.rand(6) + 0.5)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Answer:
        x = F.batch_norm(self.conv(x), self.mean, self.variance, self.scale, self.shift, self.training)
        seen = x.relu().mean((2, 3))
        return Answer(self.fc(self.mix(seen).relu()), seen)


class Keywords(nn.Module):
    """Layers are called by the names of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(input=x)
        return self.out(input=self.attention(query=x, key=x, value=x, need_weights=False)[0].mean(1))


class NamedInputs(nn.Module):
    """Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Linear(5, 8)
        self.picture = nn.Sequential(*conv(1, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(24, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        seen = self.picture(batch["picture"]).flatten(1)
        return self.head(torch.cat([seen, self.numbers(batch["numbers"]).relu()], 1))


class NamedOutputs(nn.Module):
    """Gives a dict; squeeze and excite; a module is called as a method of dicts is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 10, 3, 2), nn.ReLU())
        self.excite = nn.Sequential(nn.Linear(10, 3), nn.ReLU(), nn.Linear(3, 10), nn.Sigmoid())
        self.items = nn.ModuleDict({"kind": nn.Linear(10, 4), "box": nn.Linear(10, 4)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        x = (x * self.excite(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))
        return {name: head(x) for name, head in self.items.items()}


class OddBuffers(nn.Module):
    """Buffers of many types, one of which is not kept; what is frozen, and what is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.spare, self.out = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)), nn.Linear(8, 3)
        self.register_buffer("mean", torch.arange(6, dtype=torch.float64) / 7)
        self.register_buffer("keep", torch.tensor([True, True, False, True, True, True]))
        self.register_buffer("order", torch.tensor([5, 3, 4, 0, 1, 2]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x.double() - self.mean) * self.keep).to(x.dtype)[:, self.order]
        return self.out(self.frozen(x).relu())


class Bag(nn.Module):
    """Bags of words beside columns of categories."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(60, 12, mode="mean")
        self.columns = nn.ModuleList([nn.Embedding(count, 4) for count in (7, 9)])
        self.tags = nn.Linear(20, 16)

    def forward(self, words: Tensor, columns: Tensor) -> Tensor:
        parts = [table(columns[:, index]) for index, table in enumerate(self.columns)]
        return self.tags(torch.cat([self.bag(words), *parts], 1))


class Volumes(nn.Module):
    """Three dimensions; a transposed convolution of two groups, and its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(1, 6, 3, 2, 1), nn.BatchNorm3d(6)
        self.up, self.norm_up = nn.ConvTranspose3d(6, 4, 2, 2, groups=2), nn.BatchNorm3d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_up(self.up(self.norm(self.conv(x)).relu())).relu()
        return self.fc(x.mean((2, 3, 4)))


class Tokens(nn.Module):
    """A batch norm over what a linear layer gives for each place: it normalizes the places."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.inp(x)).relu().mean(1))


# ------------------------------------------------------------ all of them

ATTEND = 2  # products: of queries and keys, and of what that gives and values

ZOO: dict[str, Foreign] = {
    "gauge": Foreign(Gauge, ((9,),), "l:first l:second l:last", 9 * 20 + 20 * 12 + 12, "first+norm"),
    "numbered": Foreign(numbered, ((1, 12, 12),), "c:0 l:4 l:6", 4 * 9 * 144 + 144 * 24 + 24 * 300),
    "stacked": Foreign(
        Stacked,
        ((3, 8, 8),),
        "c:body.0 c:body.4 l:top.1 l:top.3",
        3 * 9 * 8 * 64 + 8 * 9 * 12 * 16 + 48 * 16 + 16 * 5,
        "body.0+body.1 body.4+body.5",
    ),
    "residual": Foreign(
        Residual,
        ((3, 8, 8),),
        "c:stem c:shortcut.0 c:conv1 c:conv2 l:fc",
        3 * 9 * 8 * 64 + 8 * 12 * 16 + 8 * 9 * 12 * 16 + 12 * 9 * 12 * 16 + 12 * 6,
        "stem+bn0 conv1+bn1 conv2+bn2 shortcut.0+shortcut.1",
    ),
    "bottleneck": Foreign(
        Bottleneck,
        ((3, 8, 8),),
        "c:down c:mid c:up c:short.1 l:fc",
        3 * 4 * 64 + 4 * 9 * 4 * 16 + 4 * 10 * 16 + 3 * 10 * 16 + 10 * 4,
        "down+bn_down mid+bn_mid up+bn_up short.1+short.2",
    ),
    "preactivated": Foreign(
        Preactivated,
        ((3, 6, 6),),
        "c:stem c:conv1 c:conv2 l:fc",
        3 * 9 * 8 * 36 + 2 * 8 * 9 * 8 * 36 + 8 * 4,
        "conv1+norm2",
    ),
    "depthwise": Foreign(
        depthwise,
        ((3, 8, 8),),
        "c:0.0 c:1.0 c:1.3 l:4",
        3 * 9 * 8 * 16 + 9 * 8 * 16 + 8 * 12 * 16 + 12 * 5,
        "0.0+0.1 1.0+1.1 1.3+1.4",
    ),
    "inverted": Foreign(
        Inverted,
        ((3, 6, 6),),
        "c:first.0 c:first.3 c:second.0 c:second.3 c:second.6 l:top.1",
        (9 * 3 + 3 * 6 + 6 * 18 + 9 * 18 + 18 * 6) * 36 + 6 * 4,
        "first.0+first.1 first.3+first.4 second.0+second.1 second.3+second.4 second.6+second.7",
    ),
    "squeezed": Foreign(
        Squeezed,
        ((3, 13, 13),),
        "c:squeeze c:narrow c:wide c:classes",
        3 * 9 * 4 * 36 + (4 * 6 + 4 * 9 * 6 + 12 * 7) * 9,
    ),
    "dense": Foreign(
        Dense,
        ((2, 6, 6),),
        "c:stem c:convs.0 c:convs.1 l:fc",
        (2 * 9 * 6 + 6 * 9 * 4 + 10 * 9 * 4) * 36 + 14 * 3,
    ),
    "branches": Foreign(
        Branches,
        ((1, 10, 10),),
        "c:stem c:all.plain c:all.deep.0 c:all.deep.3 c:all.pooled.1 l:fc",
        (9 * 6 + 6 * 4 + 6 * 4 + 4 * 9 * 8 + 6 * 4) * 25 + 16 * 4,
        "all.deep.0+all.deep.1",
    ),
    "skips": Foreign(
        Skips,
        ((1, 8, 8),),
        "c:down.0 c:bottom.0 t:up c:join c:out",
        9 * 6 * 64 + 6 * 9 * 10 * 16 + 10 * 6 * 4 * 16 + (12 * 9 * 6 + 6 * 2) * 64,
        "down.0+down.1 up+bn_up",
    ),
    "grouped": Foreign(
        Grouped,
        ((2, 6, 6),),
        "c:stem c:convs.0 c:convs.1 c:head",
        (2 * 9 * 8 + 2 * 4 * 9 * 8 + 8 * 3) * 36,
    ),
    "codec": Foreign(
        Codec,
        ((1, 8, 8),),
        "c:encoder.0 l:encoder.4 l:decoder.0 t:decoder.2 c:decoder.5",
        9 * 6 * 16 + 96 * 8 + 8 * 96 + 6 * 4 * 16 * 16 + 4 * 9 * 64,
        "decoder.2+decoder.3",
    ),
    "channels_last": Foreign(
        ChannelsLast,
        ((3, 16, 16),),
        "c:stem c:apart l:grow l:shrink l:head",
        (3 * 16 * 8 + 25 * 8 + 2 * 8 * 24) * 16 + 8 * 5,
    ),
    "patches": Foreign(
        Patches,
        ((3, 8, 8),),
        "c:patch l:attention.qkv l:attention.out l:mlp.0 l:mlp.2 l:head",
        3 * 16 * 16 * 4 + 5 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + ATTEND * 5 * 5 * 16 + 16 * 5,
        attends=True,
    ),
    "mixer": Foreign(
        Mixer,
        ((2, 12, 12),),
        "l:embed l:over_places.0 l:over_places.2 l:over_channels.0 l:over_channels.2 l:head",
        9 * 32 * 12 + 12 * 2 * 9 * 16 + 9 * 2 * 12 * 20 + 12 * 4,
    ),
    "encoder": Foreign(
        Encoder,
        (Ids(50, (7,)),),
        "e:words e:places "
        + " ".join(
            f"l:layers.layers.{index}.{part}"
            for index in range(2)
            for part in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
        )
        + " l:head",
        2 * (7 * (16 * 48 + 16 * 16 + 2 * 16 * 24) + ATTEND * 7 * 7 * 16) + 16 * 3,
        attends=True,
    ),
    "pooled": Foreign(
        Pooled,
        ((9, 6),),
        "l:inp l:attention.in_proj_weight ~:attention l:attention.out_proj l:head",
        9 * 6 * 12 + 12 * 12 + 9 * 12 * 24 + ATTEND * 9 * 12 + 12 * 12 + 12 * 4,
        attends=True,
    ),
    "series": Foreign(
        Series,
        ((10, 3),),
        "l:inp l:blocks.0.qkv l:blocks.0.out l:blocks.1.qkv l:blocks.1.out l:out",
        10 * 3 * 8 + 2 * (10 * (8 * 24 + 8 * 8) + ATTEND * 10 * 10 * 8) + 8,
        attends=True,
    ),
    "decoder": Foreign(
        Decoder,
        (Ids(40, (6,)),),
        "e:words l:attention.qkv l:attention.out l:gate l:up l:down l:words",
        6 * (16 * 48 + 16 * 16 + 3 * 16 * 20 + 16 * 40) + ATTEND * 6 * 6 * 16,
        tied=("words.weight", "head.weight"),
        attends=True,
    ),
    "words": Foreign(
        Words,
        (Ids(30, (6,)),),
        "e:words r:steps.weight_ih_l0 r:steps.weight_hh_l0 r:steps.weight_ih_l1 r:steps.weight_hh_l1 l:fc",
        6 * 40 * (8 + 10 + 10 + 10) + 10 * 4,
    ),
    "forecast": Foreign(
        Forecast, ((8, 4),), "r:steps.weight_ih_l0 r:steps.weight_hh_l0 l:fc", 8 * 36 * (4 + 12) + 12 * 4
    ),
    "tagger": Foreign(
        Tagger,
        ((3, 11),),
        "c:front.0 r:steps.weight_ih_l0 r:steps.weight_hh_l0 r:steps.weight_ih_l0_reverse "
        "r:steps.weight_hh_l0_reverse l:tags",
        11 * (3 * 5 * 8 + 2 * 24 * (8 + 6) + 12 * 5),
        "front.0+front.1",
    ),
    "cells": Foreign(
        Cells,
        ((5, 4),),
        " ".join(5 * ["r:cell.weight_ih r:cell.weight_hh"]) + " l:fc",
        5 * 24 * (4 + 8) + 8 * 3,
    ),
    "causal": Foreign(
        Causal,
        ((3, 14),),
        "c:skip ~:convs.0 ~:convs.1 l:out",
        14 * (3 * 8 + 3 * 3 * 8 + 8 * 3 * 8) + 8,
    ),
    "sound": Foreign(
        Sound,
        ((1, 128),),
        "c:conv1 c:conv2 l:tags",
        15 * 16 * 12 + 6 * 6 * 5 * 16 + 8 * 5,
        "conv1+bn1 conv2+bn2",
    ),
    "siamese": Foreign(
        Siamese,
        ((1, 8, 8), (1, 8, 8)),
        "c:look.0 l:look.4 c:look.0 l:look.4 l:score",
        2 * (9 * 6 * 16 + 96 * 10) + 10,
        "look.0+look.1",
    ),
    "twice": Foreign(
        Twice,
        ((3, 6, 6),),
        "c:lift c:shared c:shared l:fc",
        (3 * 6 + 2 * 6 * 9 * 6) * 36 + 6 * 4,
    ),
    "backwards": Foreign(
        Backwards,
        ((1, 8, 8),),
        "c:first c:second l:fc",
        9 * 6 * 36 + 6 * 9 * 6 * 16 + 6 * 3,
        "first+norm_of_first second+norm_of_second",
    ),
    "behind": Foreign(Behind, ((2, 8, 8),), "c:conv1 c:conv2 l:fc", 2 * 9 * 6 * 36 + 6 * 9 * 6 * 16 + 6 * 2),
    "functional": Foreign(Functional, ((3, 6, 6),), "c:filters l:table", 3 * 9 * 6 * 36 + 6 * 4),
    "reshaped": Foreign(Reshaped, ((2, 6, 6),), "~:conv ~:mix l:fc", 2 * 9 * 6 * 36 + 6 * 6 + 6 * 4),
    "named_inputs": Foreign(
        NamedInputs,
        ((1, 8, 8), (5,)),
        "c:picture.0 l:numbers l:head",
        9 * 4 * 64 + 5 * 8 + 24 * 3,
        "picture.0+picture.1",
        named=("picture", "numbers"),
    ),
    "named_outputs": Foreign(
        NamedOutputs,
        ((3, 9, 9),),
        "c:body.0 l:excite.0 l:excite.2 l:items.kind l:items.box",
        3 * 9 * 10 * 16 + 2 * 10 * 3 + 2 * 10 * 4,
    ),
    "odd_buffers": Foreign(
        OddBuffers,
        ((6,),),
        "l:frozen l:out",
        6 * 8 + 8 * 3,
        unused="spare.0.weight spare.1.weight",
    ),
    "bag": Foreign(Bag, (Ids(60, (8,)), Ids(7, (2,))), "e:columns.0 e:columns.1 e:bag l:tags", 20 * 16),
    "volumes": Foreign(
        Volumes,
        ((1, 6, 6, 6),),
        "c:conv t:up l:fc",
        27 * 6 * 27 + 6 * 2 * 8 * 27 + 4 * 3,
        "conv+norm up+norm_up",
    ),
    "tokens": Foreign(Tokens, ((7, 5),), "l:inp l:out", 7 * 5 * 7 + 7 * 3),
    "renewed": Foreign(Renewed, ((2, 6, 6),), "~:conv ~:mix l:fc", 2 * 9 * 6 * 36 + 6 * 6 + 6 * 4),
    "keywords": Foreign(
        Keywords,
        ((5, 4),),
        "l:inp l:attention.in_proj_weight l:attention.out_proj l:out",
        5 * (4 * 8 + 8 * 24 + 8 * 8) + ATTEND * 5 * 5 * 8 + 8 * 3,
        attends=True,
    ),
}
