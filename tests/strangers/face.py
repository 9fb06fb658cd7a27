"""MTCNN's last network: is this crop of a photo a face, where is its box, and where are five points of it?

Weights: facenet_pytorch/data/onet.pt of the package facenet-pytorch 2.6.0 (MIT).
"""

from torch import Tensor, nn

LAYERS = ((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2))
WINDOWS = (3, 3, 2)


class Face(nn.Module):
    """Four convolutions and a linear layer, each with a slope for each channel, and three heads."""

    def __init__(self) -> None:
        super().__init__()
        for at, (inside, width, kernel) in enumerate(LAYERS, 1):
            self.add_module(f"conv{at}", nn.Conv2d(inside, width, kernel))
            self.add_module(f"prelu{at}", nn.PReLU(width))
        for at, window in enumerate(WINDOWS, 1):
            self.add_module(f"pool{at}", nn.MaxPool2d(window, 2, ceil_mode=True))
        self.dense5 = nn.Linear(3 * 3 * 128, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [N, 4], points [N, 10] and probabilities [N, 2] of RGB [N, 3, 48, 48] in [-1, 1]."""
        x = crops
        for at in range(1, 5):
            x = self.get_submodule(f"prelu{at}")(self.get_submodule(f"conv{at}")(x))
            if at <= len(WINDOWS):
                x = self.get_submodule(f"pool{at}")(x)
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def build() -> nn.Module:
    """Return the network."""
    return Face()
