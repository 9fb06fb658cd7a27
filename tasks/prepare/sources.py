"""The sources of images: one entry each; knows no file and no array, so that schemas are quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

TRAIN_IMAGES, TRAIN_LABELS = "train-images", "train-labels"
TEST_IMAGES, TEST_LABELS = "t10k-images", "t10k-labels"
STEMS = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True)
class IdxSource:
    """A source in the format of MNIST: four files of unsigned bytes, one grey channel.

    Attributes:
        name: What params.yaml calls it, and the name of its folder.
        classes: The classes' names, in the order of their labels.
        sums: SHA-256 of the decompressed bytes, for each of `STEMS`. (Not of the .gz files: the same bytes
            are packed in more than one way.)
        address: Where the authors publish the .gz files, ending in a slash.
        package: Debian's package of the same files, which puts them in /usr/share/datasets/<name>.
        shape: One image [C, H, W].
    """

    name: str
    classes: tuple[str, ...]
    sums: Mapping[str, str]
    sizes: Mapping[str, int]
    address: str
    package: str | None = None
    shape: tuple[int, int, int] = (1, 28, 28)

    @property
    def training(self) -> int:
        """How many images there are that are no test images."""
        return self.sizes[TRAIN_LABELS] - 8


@dataclass(frozen=True)
class DigitsSource:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn carries; needs no file and no network.

    Attributes:
        name: What params.yaml calls it.
        classes: The classes' names, in the order of their labels.
        test: How many of the images, drawn by the seed, are the test set; the source has none of its own.
        shape: One image [C, H, W].
    """

    name: str
    classes: tuple[str, ...]
    test: int
    shape: tuple[int, int, int] = (1, 8, 8)

    @property
    def training(self) -> int:
        """How many images there are that are no test images."""
        return 1797 - self.test


Source = IdxSource | DigitsSource


def _sums(*sums: str) -> Mapping[str, str]:
    return MappingProxyType(dict(zip(STEMS, sums, strict=True)))


def _sizes(train: int, test: int, pixels: int) -> Mapping[str, int]:
    """Return the bytes of four IDX files: a header of 16 or 8 bytes, then the values."""
    sizes = (16 + train * pixels, 8 + train, 16 + test * pixels, 8 + test)
    return MappingProxyType(dict(zip(STEMS, sizes, strict=True)))


_ALL = (
    IdxSource(
        name="fashion-mnist",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        sums=_sums(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        sizes=_sizes(60_000, 10_000, 28 * 28),
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        package="dataset-fashion-mnist",
    ),
    IdxSource(
        name="mnist",
        classes=tuple("0123456789"),
        sums=_sums(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        sizes=_sizes(60_000, 10_000, 28 * 28),
        address="https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    DigitsSource(name="digits", classes=tuple("0123456789"), test=360),
)

SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})
