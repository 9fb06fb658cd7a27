"""A network for rows of numbers and categories: embeddings beside normalized numbers, then layers."""

from itertools import pairwise

import torch
from torch import nn


class Tabular(nn.Module):
    """Predict one number of each row.

    The buffers are those of the training rows: Decant sets them before it trains (docs/own-data.md).
    """

    def __init__(self, numbers, categories, embedding, widths):
        super().__init__()
        self.register_buffer("numbers_mean", torch.zeros(numbers))
        self.register_buffer("numbers_deviation", torch.ones(numbers))
        self.register_buffer("target_mean", torch.zeros(1))
        self.register_buffer("target_deviation", torch.ones(1))
        self.tables = nn.ModuleList(nn.Embedding(count, embedding) for count in categories)
        sizes = [2 * numbers + embedding * len(categories), *widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], 1)

    def forward(self, numbers, carrier, origin, dest):
        """Return [N, 1] of numbers [N, F], NaN where one is missing, and categories [N], 0 where unknown."""
        missing = torch.isnan(numbers)
        scaled = (numbers - self.numbers_mean) / self.numbers_deviation
        columns = [torch.where(missing, 0.0, scaled), missing.to(numbers.dtype)]
        columns += [table(codes) for table, codes in zip(self.tables, (carrier, origin, dest), strict=True)]
        hidden = torch.cat(columns, 1)
        for layer in self.hidden:
            hidden = torch.relu(layer(hidden))
        return self.head(hidden) * self.target_deviation + self.target_mean


def build(numbers, categories, embedding=8, widths=(256, 128, 64)):
    """Return the network for so many numbers, and categories of so many words each, unknown ones included."""
    return Tabular(numbers, categories, embedding, widths)
