"""Few-shot image data: episodes by indexing, invented characters, Omniglot, folders of images."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.errors import UsageError
from metarl.fewshot import omniglot
from metarl.fewshot.characters import CONTROLS, STROKES, Characters, Strokes, _alphabet, render
from metarl.fewshot.episodes import Protocol
from metarl.fewshot.image_folder import ImageFolder
from metarl.fewshot.images import InMemoryImages, LabelledImages
from metarl.fewshot.omniglot import Omniglot

COUNTS = {"train": (7, 4, 9), "held-out": (5, 5)}
SIDE = 3


def drawing(split, label, sample):
    """An image that says where it comes from, and which way up it is."""
    image = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    image[0, 0] = torch.tensor([100 if split == "train" else 200, label + 1, sample + 1])
    image[1, 0, 2] = 255
    return image


@dataclass(frozen=True)
class Numbered(InMemoryImages):
    """Classes of unequal size of images that can be told apart."""

    name = "numbered"
    rotations: bool = True

    def load(self):
        return {
            split: LabelledImages(
                torch.stack([drawing(split, k, j) for k, n in enumerate(counts) for j in range(n)]),
                torch.tensor(counts),
                [f"{split} {k}" for k in range(len(counts))],
            )
            for split, counts in COUNTS.items()
        }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def source(image):
    """Split, class (the turn included) and sample of a drawn image, after a look at every pixel."""
    whole = (image * 255).round().to(torch.uint8)
    for quarters in range(4):
        upright = whole.rot90(-quarters, (-2, -1))
        if upright[0, 0, 0] not in (100, 200):
            continue
        split = "train" if upright[0, 0, 0] == 100 else "held-out"
        base, sample = int(upright[0, 0, 1]) - 1, int(upright[0, 0, 2]) - 1
        assert torch.equal(upright, drawing(split, base, sample))
        return split, quarters * len(COUNTS[split]) + base, sample
    raise AssertionError("an image that nobody drew")


@pytest.mark.parametrize("rotations", [True, False])
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_every_point_is_an_image_of_its_class_and_comes_once(rotations, split):
    data, ways = Numbered(rotations), 3 if split == "train" or rotations else 2
    episodes = data.episodes(Protocol(ways, 1, 3), 40, split, generator())
    assert episodes.support.x.shape == (40, ways, 2, SIDE, SIDE)
    assert episodes.query.x.shape == (40, 3 * ways, 2, SIDE, SIDE)
    assert episodes.support.y.tolist() == [list(range(ways))] * 40
    assert episodes.query.y.tolist() == [[k for k in range(ways) for _ in range(3)]] * 40
    for b in range(40):
        classes = episodes.tasks["classes"][b].tolist()
        assert len(set(classes)) == ways
        seen = []
        for points in (episodes.support, episodes.query):
            for x, y in zip(points.x[b], points.y[b], strict=True):
                where, label, sample = source(x)
                assert (where, label) == (split, classes[y])
                seen.append((label, sample))
        assert len(set(seen)) == len(seen) == 4 * ways


def test_classes_and_images_are_drawn_evenly():
    data, tasks = Numbered(), 3000
    episodes = data.episodes(Protocol(5, 1, 1), tasks, "train", generator())
    chosen = episodes.tasks["classes"]
    # 12 classes, each is way k of a task with probability 1/12: 250 times, give or take 15.
    for k in range(5):
        assert ((chosen[:, k].bincount(minlength=12) - tasks / 12).abs() < 75).all()
    samples = (episodes.support.x[:, 0, 0] * 255).round().amax((-2, -1))
    assert set(samples.tolist()) == {100.0}
    drawn = [source(x)[1:] for x in episodes.support.x.flatten(0, 1)[:6000]]
    for label in range(12):
        count = COUNTS["train"][label % 3]
        samples = torch.tensor([s for k, s in drawn if k == label])
        share = samples.bincount(minlength=count) / len(samples)
        assert len(share) == count and (share - 1 / count).abs().max() < 0.08


def test_plain_batches_have_the_labels_of_the_whole_split():
    data = Numbered()
    points = data.batch(2000, "train", generator())
    assert points.x.shape == (1, 2000, 2, SIDE, SIDE) and points.y.shape == (1, 2000)
    drawn = [source(x) for x in points.x[0]]
    assert [label for _, label, _ in drawn] == points.y[0].tolist()
    every = {(k, j) for k in range(12) for j in range(COUNTS["train"][k % 3])}
    assert {(label, sample) for _, label, sample in drawn} == every
    assert data.classes("train") == 12 and Numbered(False).classes("held-out") == 2


def test_the_generator_alone_decides():
    data, protocol = Numbered(), Protocol(3, 1, 2)
    torch.manual_seed(1)
    one = data.episodes(protocol, 8, "train", generator(3))
    before = torch.get_rng_state()
    two = Numbered().episodes(protocol, 8, "train", generator(3))
    other = data.episodes(protocol, 8, "train", generator(4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.query.x, two.query.x) and torch.equal(one.support.x, two.support.x)
    assert not torch.equal(one.query.x, other.query.x)


def test_float_images_do_not_share_memory_with_the_data():
    data = Numbered()
    data.batch(50, "train", generator()).x.zero_()
    data.episodes(Protocol(3, 1, 1), 9, "train", generator()).support.x.zero_()
    for k in range(3):
        assert torch.equal(
            data.splits["train"].images[int(k == 1) * 7], drawing("train", k == 1, 0)
        )


@pytest.mark.parametrize(
    ("protocol", "rotations", "words"),
    [
        (Protocol(3, 1, 1), False, "held-out split has 2 classes"),
        (Protocol(9, 1, 1), True, "held-out split has 8 classes"),
        (Protocol(2, 2, 3), True, "'train 1' of the train split has 4 images.*need 5"),
    ],
)
def test_protocols_that_ask_for_too_much(protocol, rotations, words):
    with pytest.raises(UsageError, match=words):
        Numbered(rotations).spec(protocol)
    split = "train" if "the train" in words else "held-out"
    with pytest.raises(UsageError, match=words):
        Numbered(rotations).episodes(protocol, 2, split, generator())


def test_protocols_that_just_fit():
    spec = Numbered().spec(Protocol(8, 1, 3))
    assert (spec.kind, spec.input_shape, spec.outputs) == ("classification", (2, SIDE, SIDE), 8)


# Characters


SMALL = Characters(train_classes=60, held_out_classes=50, drawers=8, rotations=False)


def test_characters_are_the_same_every_time():
    one = SMALL.splits["train"].images
    _alphabet.cache_clear()
    fewer = Characters(train_classes=60, held_out_classes=3, drawers=8, rotations=False)
    assert torch.equal(one, fewer.splits["train"].images)
    other = Characters(train_classes=60, held_out_classes=50, drawers=8, rotations=False, seed=1)
    train, held_out = SMALL.splits["train"].images, SMALL.splits["held-out"].images
    for images in (other.splits["train"].images, other.splits["held-out"].images):
        assert not {bytes(i.numpy()) for i in images} & {bytes(i.numpy()) for i in train}
    assert not {bytes(i.numpy()) for i in held_out} & {bytes(i.numpy()) for i in train}


def test_characters_are_ink_on_paper():
    images = SMALL.splits["train"].images
    assert images.shape == (480, 1, 28, 28) and images.dtype == torch.uint8
    assert torch.equal(images.amax((1, 2, 3)), torch.full((480,), 255, dtype=torch.uint8))
    share = images.float().mean((1, 2, 3)) / 255
    assert share.min() > 0.005 and share.max() < 0.4 and 0.04 < share.mean() < 0.12
    assert len({bytes(i.numpy()) for i in images}) == 480
    # What is on the edge of the paper would be cut off.
    edge = images.clone()
    edge[..., 1:-1, 1:-1] = 0
    assert ((edge > 127).flatten(1).any(1)).float().mean() < 0.1
    points = SMALL.episodes(Protocol(5, 1, 1), 4, "train", generator()).support
    assert points.x.dtype == torch.float32 and points.x.min() >= 0 and points.x.max() == 1.0


def test_characters_are_neither_trivial_nor_impossible_for_their_pixels():
    data = Characters(train_classes=2, held_out_classes=150, drawers=16)
    episodes = data.episodes(Protocol(5, 1, 10), 200, "held-out", generator())
    distance = torch.cdist(episodes.query.x.flatten(2), episodes.support.x.flatten(2))
    share = (distance.argmin(-1) == episodes.query.y).float().mean()
    assert 0.5 < share < 0.75


@pytest.mark.parametrize(("size", "width"), [(28, 1.5), (28, 2.5), (56, 1.5)])
def test_a_straight_line_is_as_long_and_wide_as_it_should_be(size, width):
    # At eight heights between two rows of pixels, across, and by a second stroke that is not there.
    control = torch.zeros(8, STROKES, CONTROLS, 2)
    control[:, 0, :, 0] = torch.linspace(-0.3, 0.3, CONTROLS)
    control[:, 0, :, 1] = (torch.arange(8) / 8 / size).unsqueeze(1)
    control[:, 1, :, 0] = control[:, 0, :, 0]
    control[:, 1, :, 1] = 0.4
    present = torch.arange(STROKES).expand(8, -1) == 0
    strokes = Strokes(control, torch.zeros(8, STROKES, dtype=torch.bool), present)
    images = render(strokes, torch.full((8,), width), size).double() / 255
    assert images[:, :, size // 2].sum(1).mean().item() == pytest.approx(
        width * size / 28, rel=0.06
    )
    assert images[-1].amax(0).sum().item() == pytest.approx(0.6 * size, rel=0.06)
    assert torch.equal(images[0], images[0].flip(0)) and images.max() == 1
    assert images[:, -size // 5 :].sum() == 0


def test_a_pen_rounds_corners_only_where_it_is_smooth():
    control = torch.zeros(2, STROKES, CONTROLS, 2)
    path = torch.tensor([[-2.0, 2], [-2, 0], [-2, -2], [0, -2], [2, -2], [2, 0]])
    control[:, 0] = path / 6
    present = torch.arange(STROKES).expand(2, -1) == 0
    smooth = torch.tensor([False, True]).unsqueeze(1).expand(2, STROKES)
    sharp, rounded = render(Strokes(control, smooth, present), torch.tensor([1.5, 1.5]), 28)
    # The corner is at 28 / 2 - 28 / 3.
    assert sharp[4:6, 4:6].max() > 200 and rounded[4:6, 4:6].max() < 20
    assert rounded[5:8, 5:8].max() > 200


def test_characters_of_another_size_are_the_same_characters():
    large = Characters(train_classes=6, held_out_classes=2, drawers=2, size=56, rotations=False)
    small = Characters(train_classes=6, held_out_classes=2, drawers=2, size=28, rotations=False)
    reduced = torch.nn.functional.avg_pool2d(large.splits["train"].images.float(), 2)
    difference = (reduced - small.splits["train"].images.float()).abs().mean() / 255
    assert difference < 0.02


@pytest.mark.parametrize(
    "options",
    [{"train_classes": 0}, {"held_out_classes": -1}, {"drawers": 0}, {"size": 4}, {"seed": -1}],
)
def test_characters_of_no_sense(options):
    with pytest.raises(UsageError, match=f"characters: {next(iter(options))} must be"):
        Characters(**options)


# Omniglot


def pictures(classes=9, drawers=3, side=28):
    return np.random.default_rng(0).integers(0, 256, (classes, drawers, side, side), dtype=np.uint8)


def arrays(path, **changes):
    """An .npz of 9 characters, with some arrays changed, or left out where they are None."""
    usual = {
        "images": pictures(),
        "char_split": np.array([0] * 6 + [1] * 3, dtype=np.uint8),
        "char_names": np.array([f"Alphabet/character{k}" for k in range(9)]),
    }
    file = path / "characters.npz"
    np.savez(file, **{k: v for k, v in {**usual, **changes}.items() if v is not None})
    return str(file)


def test_omniglot_arrays_are_shuffled_into_disjoint_halves(tmp_path):
    data = Omniglot(path=arrays(tmp_path), train_classes=6)
    train, held_out = data.splits["train"], data.splits["held-out"]
    assert len(train) == 6 and len(held_out) == 3 and data.classes("train") == 24
    names = [*train.names, *held_out.names]
    assert sorted(names) == [f"Alphabet/character{k}" for k in range(9)] != names
    images = torch.cat([train.images, held_out.images]).view(9, 3, 28, 28)
    order = [int(name[-1]) for name in names]
    assert np.array_equal(images.numpy(), pictures()[order])
    again = Omniglot(path=data.path, train_classes=6).splits["train"].names
    other = Omniglot(path=data.path, train_classes=6, seed=1).splits["train"].names
    assert again == train.names != other


def test_omniglot_original_split(tmp_path):
    data = Omniglot(path=arrays(tmp_path), split="original")
    assert [n[-1] for n in data.splits["train"].names] == list("012345")
    assert [n[-1] for n in data.splits["held-out"].names] == list("678")
    assert np.array_equal(data.splits["held-out"].images.view(3, 3, 28, 28).numpy(), pictures()[6:])
    without = Omniglot(path=arrays(tmp_path, char_split=None), split="original")
    with pytest.raises(UsageError, match="no array 'char_split'"):
        without.spec(Protocol())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "no array 'images'"),
        ({"images": pictures().astype(np.float32)}, "uint8.*got float32"),
        ({"images": pictures()[0]}, r"got uint8 \[3, 28, 28\]"),
        ({"images": pictures(side=20)}, r"must be uint8 .*28, 28\], got uint8 \[9, 3, 20, 20\]"),
        ({"images": pictures()[:, :0]}, r"got uint8 \[9, 0, 28, 28\]"),
        ({"images": np.array([None] * 3)}, "not a readable .npz.*allow_pickle"),
        ({"char_split": np.zeros(9)}, "'char_split'.*must be the integers 0"),
        ({"char_split": np.full(9, 2)}, "'char_split'.*must be the integers 0"),
        ({"char_split": np.zeros(8, dtype=int)}, "'char_split'.*one entry for each of the 9"),
        ({"char_names": np.array(["a"])}, "'char_names'.*one entry for each of the 9"),
    ],
)
def test_omniglot_arrays_that_are_wrong(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        Omniglot(path=arrays(tmp_path, **changes), train_classes=6).spec(Protocol(2, 1, 1))


def test_omniglot_files_that_are_wrong(tmp_path):
    for content in (b"", b"text", b"PK\x05\x06" + bytes(18)):
        file = tmp_path / "other.npz"
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"not a readable \.npz|no array 'images'"):
            Omniglot(path=str(file)).spec(Protocol())
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(UsageError, match="omniglot: path must be a folder"):
            Omniglot(path=path).spec(Protocol())
    with pytest.raises(UsageError, match=r"has no images_background.zip"):
        Omniglot(path=str(tmp_path)).spec(Protocol())
    with pytest.raises(UsageError, match="9 classes to learn from leave none of the 9"):
        Omniglot(path=arrays(tmp_path), train_classes=9).spec(Protocol())


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def archives(folder, background, evaluation):
    """The two archives with these files in them."""
    for name, files in zip(omniglot.ARCHIVES, (background, evaluation), strict=True):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    return str(folder)


def sheet(row):
    """A white page of 105x105 with a black bar from `row` on."""
    page = np.full((105, 105), 255, dtype=np.uint8)
    page[row : row + 15] = 0
    return png(page.astype(bool))


BACKGROUND = {
    "images_background/": b"",
    "images_background/B/character01/1_01.png": sheet(30),
    "images_background/A/character02/1_01.png": sheet(15),
    "images_background/A/character02/1_02.png": sheet(45),
    "images_background/A/readme.txt": b"no image",
    "__MACOSX/images_background/A/character02/._1_01.png": b"no image either",
}
EVALUATION = {"../../images_evaluation/C/character01/1_01.png": sheet(60)}


def test_omniglot_archives(tmp_path):
    folder = tmp_path / "omniglot"
    folder.mkdir()
    path = archives(folder, BACKGROUND, EVALUATION)
    data = Omniglot(path=path, split="original", size=21, rotations=False)
    train, held_out = data.splits["train"], data.splits["held-out"]
    assert train.names == ["A/character02", "B/character01"] and train.counts.tolist() == [2, 1]
    assert held_out.names == ["C/character01"] and held_out.counts.tolist() == [1]
    # A bar of 15 in 105 is one of 3 in 21: ink 255, paper 0, edges within Lanczos' ripple.
    for image, row in zip([*train.images, *held_out.images], (3, 9, 6, 12), strict=True):
        assert image.shape == (1, 21, 21)
        assert image[0, row + 1].min() == 255 and image[0, row : row + 3].min() > 200
        assert image[0, :row].max() < 30 and image[0, row + 3 :].max() < 30
    assert {p.name for p in tmp_path.rglob("*")} == {"omniglot", *omniglot.ARCHIVES}
    shuffled = Omniglot(path=path, train_classes=2, size=21)
    assert len(shuffled.splits["held-out"]) == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no alphabet/character/image.png"),
        ({"x/A/character01/1.png": b"rubbish"}, "cannot read an image of A/character01"),
        ({"x/A/character01/1.png": sheet(3)[:-40]}, "cannot read an image of A/character01"),
        ({"x/A/c/1.png": png(np.zeros((1, 1100), np.uint8))}, "larger than 1024 pixels"),
    ],
)
def test_omniglot_archives_that_are_wrong(tmp_path, files, words):
    with pytest.raises(UsageError, match=words):
        Omniglot(path=archives(tmp_path, files, EVALUATION)).spec(Protocol())


def test_omniglot_archives_that_are_damaged_or_a_bomb(tmp_path, monkeypatch):
    path = archives(tmp_path, BACKGROUND, EVALUATION)
    monkeypatch.setattr(omniglot, "MOST_BYTES", 2**20)
    archives(tmp_path, {**BACKGROUND, "x/A/c/2.png": bytes(2**20)}, EVALUATION)
    with pytest.raises(UsageError, match="more than 1 MiB"):
        Omniglot(path=path).spec(Protocol())
    (tmp_path / omniglot.ARCHIVES[0]).write_bytes(b"PK no archive")
    with pytest.raises(UsageError, match=r"images_background.zip' is not readable"):
        Omniglot(path=path).spec(Protocol())


# Folders of images


def save(file, pixels, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8) if mode is None else pixels)
    (image if mode is None else image.convert(mode)).save(file)


def by_class(data):
    """The first image of each class, by its name."""
    parts = data.splits.values()
    return {n: p.images[f] for p in parts for n, f in zip(p.names, p.first, strict=True)}


def folder_of(root, classes=4, samples=3, side=(6, 6)):
    """Class k has grey images of brightness 10 k + j."""
    for k in range(classes):
        for j in range(samples):
            save(root / f"class{k}" / f"{j}.png", np.full(side, 10 * k + j))
    return str(root)


def test_a_folder_of_class_folders(tmp_path):
    path = folder_of(tmp_path)
    (tmp_path / "class0" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / "class3" / "3.PNG", np.full((6, 6), 33))
    data = ImageFolder(path=path, held_out=0.5)
    assert data.spec(Protocol(2, 1, 2)).input_shape == (1, 6, 6)
    train, held_out = data.splits["train"], data.splits["held-out"]
    names = [*train.names, *held_out.names]
    assert sorted(names) == [f"class{k}" for k in range(4)] and len(train) == len(held_out) == 2
    for part in (train, held_out):
        want = [10 * int(n[-1]) + j for n in part.names for j in range(3 + (n == "class3"))]
        assert part.images.view(-1, 36)[:, 0].tolist() == want
        assert part.counts.tolist() == [3 + (n == "class3") for n in part.names]
    orders = {tuple(ImageFolder(path=path, seed=s).splits["train"].names) for s in range(8)}
    assert len(orders) > 1


@pytest.mark.parametrize("other", ["held-out", "test"])
def test_a_folder_that_says_what_is_held_out(tmp_path, other):
    folder_of(tmp_path / "train", classes=2)
    save(tmp_path / other / "x" / "1.jpg", np.full((6, 6, 3), 200))
    data = ImageFolder(path=str(tmp_path))
    assert data.splits["train"].names == ["class0", "class1"]
    assert data.splits["held-out"].names == ["x"]
    # One coloured image makes all of them images of three channels.
    assert data.splits["train"].images.shape == (6, 3, 6, 6)
    assert data.splits["train"].images[4].unique().tolist() == [11]
    save(tmp_path / other / "class1" / "1.png", np.full((6, 6), 1))
    with pytest.raises(UsageError, match=f"'class1' is in both 'train' and '{other}'"):
        ImageFolder(path=str(tmp_path)).spec(Protocol(2, 1, 1))


def test_images_are_resized_and_turned_to_grey_and_inverted(tmp_path):
    wide = np.zeros((4, 20, 3))
    wide[:, 3:17] = (255, 0, 0)  # what the filter for the middle square sees
    save(tmp_path / "a" / "1.png", wide)
    save(tmp_path / "b" / "1.png", np.full((9, 3), 255))
    save(tmp_path / "c" / "1.png", np.full((5, 5), 0))
    colour = ImageFolder(path=str(tmp_path), size=2)
    images = by_class(colour)
    assert images["a"].flatten(1).tolist() == [[255] * 4, [0] * 4, [0] * 4]
    assert images["b"].shape == (3, 2, 2) and images["b"].min() == 255
    grey = ImageFolder(path=str(tmp_path), size=2, colour="grey", invert=True)
    inverted = by_class(grey)
    assert inverted["a"].flatten().tolist() == [255 - 76] * 4  # 0.299 of red
    assert inverted["b"].max() == 0 and inverted["c"].min() == 255


def test_images_of_16_bits_and_with_holes(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(file := tmp_path / "deep.png")
    (tmp_path / "a").mkdir()
    file.rename(tmp_path / "a" / "1.png")
    hole = np.zeros((4, 4, 4))
    hole[:2, :, 3] = 255
    save(tmp_path / "b" / "1.png", hole)
    images = by_class(ImageFolder(path=str(tmp_path), held_out=0.5, colour="grey"))
    assert images["a"].unique().tolist() == [128]
    assert images["b"][0, :, 0].tolist() == [0, 0, 255, 255]


def test_folders_that_are_wrong(tmp_path):
    protocol = Protocol(2, 1, 1)
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(UsageError, match="images: path must be a folder"):
            ImageFolder(path=path).spec(protocol)
    with pytest.raises(UsageError, match="has no folders in it"):
        ImageFolder(path=str(tmp_path)).spec(protocol)
    path = folder_of(tmp_path, classes=1)
    with pytest.raises(UsageError, match="leave none of the 1 to be held out"):
        ImageFolder(path=path).spec(protocol)
    folder_of(tmp_path)
    with pytest.raises(UsageError, match="the held-out split has 1 classes"):
        ImageFolder(path=path).spec(protocol)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"the class 'empty' in .* has no images"):
        ImageFolder(path=path).spec(protocol)
    (tmp_path / "empty" / "1.png").write_bytes(b"rubbish")
    with pytest.raises(UsageError, match=r"cannot read '1\.png' of the class 'empty'"):
        ImageFolder(path=path).spec(protocol)
    save(tmp_path / "empty" / "1.png", np.zeros((6, 7)))
    with pytest.raises(UsageError, match=r"'1.png' of the class 'empty' has 7x6 .* 6x6; give a si"):
        ImageFolder(path=path).spec(protocol)
    with pytest.raises(UsageError, match=r"'empty' of the .* split has 1 images"):
        ImageFolder(path=path, held_out=0.6, size=6).spec(protocol)


def test_only_square_images_are_turned(tmp_path):
    path = folder_of(tmp_path, side=(4, 6))
    wide = ImageFolder(path=path, held_out=0.5).spec(Protocol(2, 1, 1))
    assert wide.input_shape == (1, 4, 6)
    with pytest.raises(UsageError, match="only square images can be turned, these are 4 high"):
        ImageFolder(path=path, rotations=True).spec(Protocol(2, 1, 1))


@pytest.mark.parametrize("options", [{"held_out": 0.0}, {"held_out": 1.0}, {"size": -1}])
def test_folder_options_of_no_sense(options):
    with pytest.raises(UsageError, match=f"images: {next(iter(options))} must be"):
        ImageFolder(path="x", **options)
