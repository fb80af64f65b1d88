"""Your own images: a folder with one folder of images for each class."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metarl.errors import UsageError, require_between
from metarl.fewshot.episodes import Split
from metarl.fewshot.images import InMemoryImages, LabelledImages, shuffled_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
HELD_OUT_FOLDERS = ("held-out", "test")


@dataclass(frozen=True)
class ImageFolder(InMemoryImages):
    """A folder of class folders of images, or two of those, called train and held-out (or test)."""

    name: ClassVar[str] = "images"

    path: str = ""
    """the folder"""
    size: int = 0
    """side of the images in pixels: their middle square is resized to it; 0 takes them as they are,
    which must then be of one size"""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """one channel or three; auto: one if every image is grey"""
    invert: bool = False
    """whether white becomes 0, for dark ink on white paper"""
    held_out: float = 0.3
    """share of the classes that are held out, where the folder does not say which"""
    rotations: bool = False
    """every class, turned by 90, 180 and 270 degrees, makes three more classes"""
    seed: int = 0
    """of the shuffling of the classes"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for options that make no data."""
        require_between(self, ("size",), self.name, 0, 1024)
        require_between(self, ("seed",), self.name, 0, 2**62)
        if not 0.0 < self.held_out < 1.0:
            raise UsageError(
                f"{self.name}: held_out must be above 0 and below 1, got {self.held_out}"
            )

    def load(self) -> Mapping[Split, LabelledImages]:
        """Read all images."""
        root = Path(self.path).expanduser()
        if not (self.path and root.is_dir()):
            raise UsageError(
                f"{self.name}: path must be a folder with one folder of images for each class; "
                f"there is none at {self.path!r}"
            )
        other = next((root / f for f in HELD_OUT_FOLDERS if (root / f).is_dir()), None)
        if not (root / "train").is_dir() or other is None:
            everything = self._read(class_folders(root))
            train = len(everything) - max(1, round(self.held_out * len(everything)))
            return shuffled_split(everything, max(1, train), self.seed, self.name)
        learn, judge = class_folders(root / "train"), class_folders(other)
        if both := {folder.name for folder in learn} & {folder.name for folder in judge}:
            raise UsageError(
                f"{self.name}: the class {min(both)!r} is in both 'train' and {other.name!r}; "
                "what is held out must be classes never seen in training"
            )
        # Together, because both must have one shape.
        everything = self._read(learn + judge)
        index = torch.arange(len(everything))
        return {
            "train": everything.subset(index[: len(learn)]),
            "held-out": everything.subset(index[len(learn) :]),
        }

    def _read(self, folders: list[Path]) -> LabelledImages:
        """The images of class folders.

        Raises:
            UsageError: if one cannot be read, or they are not of one size.
        """
        files = [_image_files(folder) for folder in folders]
        flat = [file for some in files for file in some]
        images = [self._image(file) for file in flat]
        channels = max(len(image) for image in images)
        for file, image in zip(flat, images, strict=True):
            if image.shape[1:] != images[0].shape[1:]:
                raise UsageError(
                    f"{self.name}: {file.name!r} of the class {file.parent.name!r} has "
                    f"{image.shape[2]}x{image.shape[1]} pixels and the first image "
                    f"{images[0].shape[2]}x{images[0].shape[1]}; give a size to resize them all"
                )
        stacked = torch.stack([image.expand(channels, -1, -1) for image in images])
        counts = torch.tensor([len(some) for some in files])
        return LabelledImages(stacked, counts, [folder.name for folder in folders])

    def _image(self, file: Path) -> Tensor:
        """One image, uint8 `[1, H, W]` or `[3, H, W]`, as the options ask for it."""
        try:
            with Image.open(file) as opened:
                image = _plain(ImageOps.exif_transpose(opened))
        except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as e:
            raise UsageError(
                f"{self.name}: cannot read {file.name!r} of the class {file.parent.name!r}: {e}"
            ) from e
        if self.colour != "auto":
            image = image.convert("L" if self.colour == "grey" else "RGB")
        if self.size:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels = np.array(image)
        if self.invert:
            pixels = 255 - pixels
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def _plain(image: Image.Image) -> Image.Image:
    """In mode `L` if it is grey, else `RGB`; what is transparent becomes white.

    Raises:
        ValueError: for pixels of more than 16 bits, whose range is not known.
    """
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.max(initial=0) > 0xFFFF or pixels.min(initial=0) < 0:
            raise ValueError("its pixels are neither of 8 nor of 16 bits")
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def class_folders(root: Path) -> list[Path]:
    """The folders in `root`, by name, hidden ones left out.

    Raises:
        UsageError: if there are none.
    """
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UsageError(
            f"{ImageFolder.name}: {str(root)!r} has no folders in it; give a folder with one "
            "folder of images for each class"
        )
    return folders


def _image_files(folder: Path) -> list[Path]:
    """The images of a class, by name.

    Raises:
        UsageError: if there are none.
    """
    files = sorted(
        f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")
    )
    if not files:
        raise UsageError(
            f"{ImageFolder.name}: the class {folder.name!r} in {str(folder.parent)!r} has no "
            f"images ({', '.join(SUFFIXES)})"
        )
    return files
