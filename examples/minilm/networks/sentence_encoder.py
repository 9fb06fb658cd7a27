"""all-MiniLM-L6-v2, a BERT of six layers: token ids in, one vector of length 1 for each sentence out.

The names of parameters are those of its file of weights. `pooler` is there and takes no part in the answer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embeddings(nn.Module):
    """A vector for each token: its word's, its place's and its sentence's, added up and normalized."""

    def __init__(self, words: int, places: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(places, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(places)[None])

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        kinds = self.token_type_embeddings(torch.zeros_like(ids))
        return self.LayerNorm(self.word_embeddings(ids) + kinds + places)


class SelfAttention(nn.Module):
    """What each token takes from the others; what is added to `bias` is seen less."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Sum(nn.Module):
    """A linear layer, added to what goes past it, and normalized."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + past)


class Layer(nn.Module):
    """Attention, then two linear layers, each added to what goes past it."""

    def __init__(self, width: int, heads: int, inside: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(width, heads), "output": Sum(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inside)})
        self.output = Sum(inside, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, bias), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class SentenceEncoder(nn.Module):
    """The mean of the last layer over the tokens of a sentence, at length 1."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 12, inside: int = 1536) -> None:
        super().__init__()
        self.embeddings = Embeddings(30522, 512, width)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(Layer(width, heads, inside) for _ in range(layers))}
        )
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [N, width] of ids and mask [N, L], int64; the mask is 1 at a token and 0 at padding."""
        mask = attention_mask.to(torch.float32)
        bias = (mask[:, None, None, :] - 1) * 1e9
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(mean, dim=1)


def build(layers: int = 6) -> nn.Module:
    """Return the encoder with fresh weights."""
    return SentenceEncoder(layers)
