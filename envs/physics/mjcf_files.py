"""The files that a model consists of, found as MuJoCo finds them but not trusted as it trusts them.

MuJoCo 4.0 opens whatever a model names, anywhere on the machine, and tries more than one place: an
include or a mesh beside the main file, then beside the file that names it; an attached `<model>` in
the current folder first. Backslashes separate folders on every system. A model that attaches itself
ends the process. So everything is followed and judged here first.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from metarl.envs.physics.mjcf_values import check_values
from metarl.envs.physics.mjcf_xml import MAX_DEPTH, Element, parse, read_text, whole_number
from metarl.errors import UsageError

MAX_FILES = 500
"""XML files read for one model, each as often as it is needed"""
MAX_NESTING = 20
"""of files within files"""
MAX_ELEMENTS = 100_000
"""of a model once everything is repeated and attached"""

_FOLDERS = {
    "mesh": ("meshdir", "assetdir"),
    "skin": ("meshdir", "assetdir"),
    "hfield": ("assetdir", "meshdir"),
    "texture": ("texturedir", "assetdir"),
}
_FOLDER_OPTIONS = ("meshdir", "texturedir", "assetdir")
_LARGER = "; if you trust the model, name a larger folder: folder=..."
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


@dataclass(frozen=True)
class _Placed:
    """An element, where it stands and how often it comes."""

    element: Element
    path: Path
    where: str
    depth: int
    copies: int


@dataclass(frozen=True)
class _Spec:
    """A model that is compiled on its own: the main one, or one that is attached."""

    base: Path
    """its folder"""
    urdf: bool
    folders: dict[str, list[str]]
    """what `meshdir` and so on are set to, the last setting first"""
    strips: bool
    """whether only the last part of a file's name counts"""


@dataclass
class ModelFiles:
    """Follows all that a model refers to; `texts` is then what MuJoCo may read as XML."""

    main: Path
    """absolute, as the caller wrote it: links are followed only to judge where they lead"""
    name: str
    """what messages call the model"""
    text: str | None = None
    """instead of the main file's, if that is not to be read"""
    folder: Path | None = None
    """absolute; inside which everything must lie: the main file's unless said"""
    texts: dict[Path, str] = field(default_factory=dict)
    visits: int = 0

    def check(self) -> dict[Path, str]:
        """Judge the model and all its files.

        Returns:
            The text of every XML file by its path.

        Raises:
            UsageError: naming the file and the line.
        """
        self.root = self.main.parent if self.folder is None else self.folder
        self.real_root = self.root.resolve()
        self._spec(self.main, self.where(self.main), ())
        return self.texts

    def where(self, path: Path, line: int | None = None) -> str:
        """What a message about a line begins with."""
        inner = "" if path == self.main else f": {os.path.relpath(path, self.root)}"
        return f"model file {self.name}{inner}" + ("" if line is None else f", line {line}")

    # --- models within models --------------------------------------------------------------

    def _spec(self, path: Path, where: str, outer: tuple[Path, ...]) -> int:
        """Judge one model; returns how many elements it comes to."""
        elements = self._elements(path, where, 0, 1, outer, set())
        root = elements[0].element
        if root.tag not in ("mujoco", "robot"):
            raise UsageError(
                f"{self.where(path, root.line)}: it is neither MJCF nor URDF: "
                f"it begins with <{root.tag}>, not with <mujoco> or <robot>"
            )
        spec = self._settings(path.parent, root.tag == "robot", elements)
        attached: dict[str, int] = {}
        total = 0
        for placed in elements:
            element = placed.element
            check_values(element, placed.where)
            self._check_files(placed, spec)
            total += placed.copies * (1 + _generated(element))
            if element.tag == "model" and element.attributes.get("file"):
                child = self._model(placed, spec, (*outer, path.resolve()))
                attached[element.attributes.get("name", "")] = child
                total += child
            if element.tag == "attach":
                # One without a name is called after its own; the largest is large enough.
                largest = max(attached.values(), default=0)
                total += placed.copies * attached.get(element.attributes.get("model", ""), largest)
            if total > MAX_ELEMENTS:
                raise UsageError(
                    f"{placed.where}: with all that is repeated up to here the model has "
                    f"{total} elements, at most {MAX_ELEMENTS} are allowed"
                )
        return total

    def _model(self, placed: _Placed, spec: _Spec, outer: tuple[Path, ...]) -> int:
        """Judge a model that is there to be attached."""
        value = placed.element.attributes["file"]
        folders = (Path.cwd(), spec.base, placed.path.parent)
        path = self._find(placed, value, folders, spec.base)
        if path.suffix.lower() in (".mjb", ".mjz", ".zip"):
            raise UsageError(f"{placed.where}: model file {value!r} must be XML, not an archive")
        if path.resolve() in outer:
            raise UsageError(f"{placed.where}: model file {value!r} attaches itself")
        return self._spec(path, self.where(path), outer)

    def _elements(
        self,
        path: Path,
        where: str,
        depth: int,
        copies: int,
        outer: tuple[Path, ...],
        included: set[Path],
        base: Path | None = None,
    ) -> list[_Placed]:
        """The elements of a file with those of the files that it includes, in order."""
        self.visits += 1
        if self.visits > MAX_FILES or len(outer) > MAX_NESTING:
            raise UsageError(
                f"{where}: a model may consist of at most {MAX_FILES} files, "
                f"at most {MAX_NESTING} of them one within the other"
            )
        base = path.parent if base is None else base
        included.add(path.resolve())
        found: list[_Placed] = []
        for element in parse(self._read(path, where), where):
            placed = _Placed(
                element,
                path,
                self.where(path, element.line),
                depth + element.depth,
                copies * element.copies,
            )
            if placed.depth >= MAX_DEPTH:
                raise UsageError(f"{placed.where}: elements are nested deeper than {MAX_DEPTH}")
            found.append(placed)
            if element.tag == "include" and element.attributes.get("file"):
                found += self._include(placed, outer, included, base)
        return found

    def _include(
        self, placed: _Placed, outer: tuple[Path, ...], included: set[Path], base: Path
    ) -> list[_Placed]:
        value = placed.element.attributes["file"]
        path = self._find(placed, value, (base, placed.path.parent), base)
        if path.resolve() in included:
            raise UsageError(f"{placed.where}: file {value!r} is included a second time")
        inner = (*outer, placed.path.resolve())
        return self._elements(
            path, self.where(path), placed.depth, placed.copies, inner, included, base
        )

    def _read(self, path: Path, where: str) -> str:
        if path not in self.texts:
            given = self.text if path == self.main else None
            self.texts[path] = read_text(path, where) if given is None else given
        return self.texts[path]

    # --- where files are -------------------------------------------------------------------

    def _settings(self, base: Path, urdf: bool, elements: Iterable[_Placed]) -> _Spec:
        """Read and judge what `<compiler>` says of folders."""
        folders: dict[str, list[str]] = {name: [] for name in _FOLDER_OPTIONS}
        strips = False
        for placed in elements:
            if placed.element.tag != "compiler":
                continue
            attributes = placed.element.attributes
            strips = attributes.get("strippath", str(strips)).lower() == "true"
            for name in _FOLDER_OPTIONS:
                value = attributes.get(name)
                if value:
                    value = self._plain(placed, value)
                    for folder in (base, placed.path.parent):
                        self._require_inside(placed, value, _join(folder, value))
                    folders[name].insert(0, value)
        return _Spec(base, urdf, folders, strips)

    def _check_files(self, placed: _Placed, spec: _Spec) -> None:
        """Judge the assets that an element names."""
        element = placed.element
        if element.tag in ("include", "model"):
            return  # these are followed, not only judged
        for name, value in element.attributes.items():
            if not value or not name.startswith("file"):
                continue
            if spec.strips:
                value = value.replace("\\", "/").rsplit("/", 1)[-1]
            used = [d for n in _FOLDERS.get(element.tag, ()) for d in spec.folders[n]]
            rest = [d for values in spec.folders.values() for d in values]
            bases = (spec.base, placed.path.parent)
            folders = [_join(base, d) for d in (*used, "", *rest) for base in bases]
            # Of a URDF MuJoCo leaves out what is only to be looked at, whether it is there or not.
            self._find(placed, value, folders, folders[0], optional=spec.urdf)

    def _find(
        self,
        placed: _Placed,
        value: str,
        folders: Iterable[Path],
        usual: Path,
        optional: bool = False,
    ) -> Path:
        """The file that MuJoCo would read, which must be inside the model's folder.

        Args:
            placed: the element that names it.
            value: its name.
            folders: where MuJoCo looks, in this order.
            usual: where it is said to be missing from.
            optional: whether it may be missing.
        """
        value = self._plain(placed, value)
        expected = _join(usual, value)
        found = [path for path in (_join(folder, value) for folder in folders) if path.exists()]
        for path in found or [expected]:
            self._require_inside(placed, value, path)
        if not found and not optional:
            raise UsageError(
                f"{placed.where}: {placed.element.tag} file {value!r} is not there: "
                f"looked for {expected}"
            )
        if found and not found[0].is_file():
            raise UsageError(f"{placed.where}: {found[0]} is not a file")
        return found[0] if found else expected

    def _plain(self, placed: _Placed, value: str) -> str:
        """A path with slashes; a URI is refused."""
        if _URI.match(value):
            raise UsageError(
                f"{placed.where}: {value!r} is a URI; only paths inside {self.root} are allowed"
            )
        return value.replace("\\", "/")

    def _require_inside(self, placed: _Placed, value: str, path: Path) -> None:
        lexically = path.is_relative_to(self.root) or path.is_relative_to(self.real_root)
        if not lexically or not path.resolve().is_relative_to(self.real_root):
            raise UsageError(
                f"{placed.where}: {placed.element.tag} refers to {value!r}, which leads outside "
                f"the model's folder {self.root}" + ("" if self.folder else _LARGER)
            )


def _join(folder: Path, value: str) -> Path:
    """A path as MuJoCo forms it: `a/link/../b` is `a/b` wherever the link leads."""
    return Path(os.path.normpath(folder / value))


def _generated(element: Element) -> int:
    """How many elements a generator makes."""
    if element.tag not in ("flexcomp", "composite"):
        return 0
    return math.prod(max(whole_number(word), 1) for word in _words(element, "count"))


def _words(element: Element, name: str) -> Iterator[str]:
    yield from element.attributes.get(name, "").split()
