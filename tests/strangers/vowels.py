"""Rows of series of unequal length, and a network that looks at no more of each than there is."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

LONGEST = 29


def rows(folder="data/own"):
    """Yield each utterance: 12 numbers a step, filled up with zeros, how many steps there are, who speaks."""
    for part in ("TRAIN", "TEST"):
        text = Path(folder, f"JapaneseVowels_{part}.ts").read_text()
        for number, line in enumerate(text.split("@data\n")[1].split("\n")):
            if line.strip():
                *channels, speaker = line.split(":")
                series = np.array([channel.split(",") for channel in channels], np.float32)
                held_out = "validation" if number % 6 == 5 else "train"
                yield {
                    "series": np.pad(series, ((0, 0), (0, LONGEST - series.shape[1]))),
                    "steps": series.shape[1],
                    "speaker": speaker.strip(),
                    "part": "test" if part == "TEST" else held_out,
                }


class Listener(nn.Module):
    """Two convolutions over time beside the series itself; mean, deviation, ends of the steps there are."""

    def __init__(self, width, speakers):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.first, self.second = nn.Conv1d(12, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(12 * 4 + width, speakers)

    def forward(self, series, steps):
        there = (torch.arange(series.shape[2], device=series.device) < steps[:, None]).to(series.dtype)[
            :, None
        ]
        x = self.norm(series) * there
        hidden = torch.relu(self.first(x)) * there
        hidden = torch.relu(self.second(hidden)) * there
        count = there.sum(2)
        mean = x.sum(2) / count
        deviation = (((x - mean[..., None]) * there).square().sum(2) / count + 1e-6).sqrt()
        last = x.gather(2, (steps - 1)[:, None, None].expand(-1, 12, 1))[..., 0]
        seen = torch.cat([mean, deviation, x[..., 0], last, hidden.sum(2) / count], 1)
        return self.head(self.drop(seen))


def build(width=32, speakers=9):
    return Listener(width, speakers)
