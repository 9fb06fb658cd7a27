"""Which words a text has, however often, through two layers: a bag of words."""

import torch
from torch import nn
from torch.nn import functional as F


class Words(nn.Module):
    """Tell classes of texts apart by their words.

    Of each word counts the logarithm of one more than its number, times a weight that is learned; a long mail
    says no more than a short one, as all of it together has length `LENGTH`.
    """

    LENGTH = 8

    def __init__(self, words, width, dropout):
        super().__init__()
        self.importance = nn.Parameter(torch.ones(words))
        self.hidden = nn.Linear(words, width)
        self.head = nn.Linear(width, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids, attention_mask):
        """Return logits [N, 2] of word numbers and masks [N, L], int64; the mask is 0 behind a text."""
        counts = self.importance.new_zeros(input_ids.shape[0], len(self.importance))
        counts = counts.scatter_add(1, input_ids, attention_mask.to(counts.dtype))
        words = F.normalize(torch.log1p(counts) * self.importance, dim=1) * self.LENGTH
        hidden = torch.relu(self.hidden(self.dropout(words)))
        return self.head(self.dropout(hidden))


def build(words, width=32, dropout=0.3):
    """Return the network for a tokenizer of so many words."""
    return Words(words, width, dropout)
