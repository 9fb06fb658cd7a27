"""Resemblyzer's voice encoder: 1.6 s of speech to one vector of length 1, near for the same speaker.

Weights: resemblyzer/pretrained.pt of the package resemblyzer 0.1.4 (Apache-2.0), under `model_state` of a
training's checkpoint. Two of its tensors belong to the loss and are none of the network's.
"""

import torch
from torch import Tensor, nn


class VoiceEncoder(nn.Module):
    """Three layers of LSTM, the last state of the last one through a linear layer."""

    def __init__(self, hidden: int, loss: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, hidden, 3, batch_first=True)
        self.linear = nn.Linear(hidden, hidden)
        if loss:
            self.similarity_weight = nn.Parameter(torch.tensor([10.0]))
            self.similarity_bias = nn.Parameter(torch.tensor([-5.0]))

    def forward(self, mels: Tensor) -> Tensor:
        """Return vectors [N, 256] of mel spectra [N, 160, 40], powers of windows 10 ms apart."""
        hidden = self.lstm(mels)[1][0]
        vector = self.linear(hidden[-1]).relu()
        return vector / vector.norm(dim=1, keepdim=True)


def build(hidden: int = 256, loss: bool = True) -> nn.Module:
    """Return the network; with what its training's loss learned where `loss`."""
    return VoiceEncoder(hidden, loss)
