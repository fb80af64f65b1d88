"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov and Tenenbaum 2015, "Human-level concept learning through probabilistic program
induction". The usual few-shot protocol (Vinyals et al. 2016, "Matching Networks for One Shot
Learning") shuffles all characters, learns from 1200 of them, is judged by the rest, and counts
every turn by 90 degrees as another class.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metarl.errors import UsageError, require_between, require_positive
from metarl.fewshot.episodes import Split
from metarl.fewshot.images import InMemoryImages, LabelledImages, shuffled_split

AnyArray = NDArray[Any]
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
MOST_BYTES = 64 * 2**20
"""an archive with more in it, unpacked, is not Omniglot"""
MOST_PIXELS = 1024
"""nor is an image with a longer side"""
_Bomb = Image.DecompressionBombError


@dataclass(frozen=True)
class Omniglot(InMemoryImages):
    """Omniglot, from the two original archives or from arrays made of them."""

    name: ClassVar[str] = "omniglot"

    path: str = ""
    """a folder with images_background.zip and images_evaluation.zip, or an .npz with `images` uint8
    [characters, drawers, height, width], ink 255, and `char_split` [characters], background 0,
    evaluation 1"""
    split: Literal["shuffled", "original"] = "shuffled"
    """all characters shuffled, or background to learn from and evaluation to be judged by"""
    train_classes: int = 1200
    """characters to learn from, where they are shuffled"""
    size: int = 28
    """side of the images in pixels: the archives' are reduced to it, arrays must have it"""
    rotations: bool = True
    """every character, turned by 90, 180 and 270 degrees, makes three more classes"""
    seed: int = 0
    """of the shuffling"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for counts that make no data."""
        require_positive(self, ("train_classes",), self.name)
        require_between(self, ("size",), self.name, 8, 105)
        require_between(self, ("seed",), self.name, 0, 2**62)

    def load(self) -> Mapping[Split, LabelledImages]:
        """Read the archives or the arrays."""
        path = Path(self.path).expanduser()
        evaluation: Tensor | None
        if self.path and path.is_dir():
            everything, evaluation = read_archives(path, self.size)
        elif path.is_file():
            everything, evaluation = read_arrays(path, self.size)
        else:
            raise UsageError(
                f"{self.name}: path must be a folder with {' and '.join(ARCHIVES)}, or an .npz "
                f"file; there is none at {self.path!r}"
            )
        if self.split == "shuffled":
            return shuffled_split(everything, self.train_classes, self.seed, self.name)
        if evaluation is None:
            raise UsageError(
                f"{self.name}: {self.path!r} has no array 'char_split', which the original split "
                "needs"
            )
        return {
            "train": everything.subset((~evaluation).nonzero().flatten()),
            "held-out": everything.subset(evaluation.nonzero().flatten()),
        }


def read_arrays(path: Path, size: int) -> tuple[LabelledImages, Tensor | None]:
    """Characters of an .npz file, and which of them are for evaluation, bool `[characters]`.

    Raises:
        UsageError: if it is no such file, or an array is missing, of the wrong kind, or not of
            images of `size` by `size`.
    """
    arrays = _arrays(path, ("images", "char_split", "char_names"))
    if "images" not in arrays:
        raise UsageError(f"omniglot: {str(path)!r} has no array 'images'")
    images = arrays["images"]
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[2:] != (size, size):
        raise UsageError(
            f"omniglot: 'images' in {str(path)!r} must be uint8 [characters, drawers, {size}, "
            f"{size}], got {images.dtype} {list(shape)}"
        )
    names, evaluation = arrays.get("char_names"), arrays.get("char_split")
    if names is None:
        names = np.array([f"character {k}" for k in range(len(images))])
    _check_arrays(path, len(images), names, evaluation)
    labelled = LabelledImages.stacked(
        torch.from_numpy(images).unsqueeze(2), [str(name) for name in names]
    )
    return labelled, None if evaluation is None else torch.from_numpy(evaluation == 1)


def _check_arrays(path: Path, count: int, names: AnyArray, evaluation: AnyArray | None) -> None:
    """Raise `UsageError` unless there is one name, and one of 0 and 1, for each character."""
    for name, array in (("char_names", names), ("char_split", evaluation)):
        if array is not None and array.shape != (count,):
            raise UsageError(
                f"omniglot: {name!r} in {str(path)!r} must have one entry for each of the "
                f"{count} characters, got shape {list(array.shape)}"
            )
    if evaluation is not None and not (
        np.issubdtype(evaluation.dtype, np.integer) and np.isin(evaluation, (0, 1)).all()
    ):
        raise UsageError(
            f"omniglot: 'char_split' in {str(path)!r} must be the integers 0 (background) and 1 "
            "(evaluation)"
        )


def _arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, AnyArray]:
    """Those of the arrays `wanted` that the file has; never a pickled object."""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in wanted if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"omniglot: {str(path)!r} is not a readable .npz: {error}") from error


def read_archives(folder: Path, size: int) -> tuple[LabelledImages, Tensor]:
    """Characters of the two original archives, reduced to `size`, ink 255.

    Nothing is unpacked to disk. The result is sorted by archive, alphabet and character.

    Raises:
        UsageError: if an archive is missing, damaged, empty, or too large to be Omniglot.
    """
    images, counts, names, evaluation = [], [], [], []
    for archive in ARCHIVES:
        path = folder / archive
        if not path.is_file():
            raise UsageError(f"omniglot: the folder {str(folder)!r} has no {archive}")
        characters: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
        try:
            for character, data in _entries(path):
                characters[character].append(_reduced(data, size, f"{character} in {path}"))
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise UsageError(f"omniglot: {str(path)!r} is not readable: {error}") from error
        if not characters:
            raise UsageError(f"omniglot: {str(path)!r} has no alphabet/character/image.png in it")
        for character, drawn in sorted(characters.items()):
            images.extend(drawn)
            counts.append(len(drawn))
            names.append(character)
            evaluation.append(archive == ARCHIVES[1])
    stacked = torch.from_numpy(np.stack(images)).unsqueeze(1)
    return LabelledImages(stacked, torch.tensor(counts), names), torch.tensor(evaluation)


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Alphabet/character and the bytes of each png of an archive, in order of their names."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
        if sum(entry.file_size for entry in entries) > MOST_BYTES:
            raise UsageError(
                f"omniglot: {str(path)!r} has more than {MOST_BYTES // 2**20} MiB in it, which "
                "Omniglot does not have"
            )
        for entry in entries:
            parts = PurePosixPath(entry.filename).parts
            if len(parts) >= 3 and parts[-1].endswith(".png") and parts[0] != "__MACOSX":
                yield "/".join(parts[-3:-1]), archive.read(entry)


def _reduced(data: bytes, size: int, where: str) -> NDArray[np.uint8]:
    """A black drawing on white paper as ink 255 on paper 0, uint8 `[size, size]`."""
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > MOST_PIXELS:
                raise ValueError(f"it is larger than {MOST_PIXELS} pixels")
            grey = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
            return 255 - np.asarray(grey)
    except (OSError, SyntaxError, ValueError, zlib.error, _Bomb) as error:
        raise UsageError(f"omniglot: cannot read an image of {where}: {error}") from error
