"""Models from anywhere: what is wrong is said in one sentence, before MuJoCo sees it."""

import contextlib
import os
import signal
import struct
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from metarl.envs.physics import CpuPhysics, load_model, model, replay
from metarl.envs.physics.dump import save_dump
from metarl.envs.physics.model import check_controllable
from metarl.errors import UsageError

BALL = '<worldbody><geom size="1"/></worldbody>'
OPENED: list[str] = []
"""files that Python has opened, while it is watched"""
WATCHED: list[bool] = []


def _note(event, arguments):
    if WATCHED and event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_note)


def stl() -> bytes:
    """A tetrahedron as a binary STL file."""
    corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    rows = [struct.pack("<12f", *[0] * 3, *np.ravel([corners[i] for i in f])) for f in faces]
    return bytes(80) + struct.pack("<I", 4) + b"".join(row + b"\0\0" for row in rows)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files into a folder; the first one is the model."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / next(iter(files))


def mjcf(*lines: str) -> str:
    """A model with the lines in it from line 2 on."""
    return "\n".join(("<mujoco>", *lines, "</mujoco>"))


def moving(*lines: str) -> str:
    """A model with a body that has a joint, and the lines in it from line 4 on."""
    return mjcf("<worldbody>", "<body>", *lines, "</body>", "</worldbody>")


@contextlib.contextmanager
def no_hang():
    """Fail rather than wait for ever."""

    def stop(*_):
        raise TimeoutError("the model is still being judged")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(path, monkeypatch=None, **options) -> str:
    """The sentence with which a model is refused; with `monkeypatch` MuJoCo must not be asked."""
    if monkeypatch is not None:
        monkeypatch.setattr(model, "_compile", lambda *_: pytest.fail("MuJoCo was asked"))
    with no_hang(), pytest.raises(UsageError) as error:
        load_model(path, **options)
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


# --- no model ------------------------------------------------------------------------------------

NOT_XML = {
    "mismatched": (mjcf("<worldbody>", "</asset>"), "line 3 does not parse: mismatched tag"),
    "unclosed": ("<mujoco>\n<worldbody>", "line 2"),
    "no-quotes": (mjcf("<option timestep=1/>"), "line 2 does not parse"),
    "twice": (mjcf('<option timestep="1" timestep="1"/>'), "line 2 does not parse: duplicate"),
    "two-roots": ("<mujoco/>\n<mujoco/>", "line 2 does not parse: junk"),
    "entity": (mjcf("<option timestep='&one;'/>"), "line 2 does not parse: undefined entity"),
    "control": (mjcf("<option timestep='\x01'/>"), "line 2 does not parse"),
    "less": (mjcf("<option timestep='<'/>"), "line 2 does not parse"),
    "open-comment": ("<mujoco>\n<!-- " + "<!-- " * 200_000, "does not parse"),
    "open-quotes": ("<mujoco>\n" + "<a b='" * 200_000, "does not parse"),
    "empty": ("", "it is empty"),
    "blank": ("\ufeff \n\n", "it is empty"),
    "json": ('{"mujoco": 1}', "line 1 does not parse"),
    "text": ("Not found", "line 1 does not parse"),
    "html": ("<html><body>404</body></html>", "line 1: it is neither MJCF nor URDF"),
    "html-doctype": ("<!DOCTYPE html>\n<html><br></html>", "line 1: it is an HTML page"),
    "svg": ("<svg/>", "it begins with <svg>"),
    "sdf": ("<sdf version='1.6'/>", "it begins with <sdf>"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it is not UTF-8"),
    "stl": (stl(), "it is not UTF-8"),
    "zeros": (bytes(99), "line 1 does not parse"),
    "utf-16": ("<mujoco/>".encode("utf-16"), "it is not UTF-8"),
    "latin-1": ("<mujoco model='Käfer'/>".encode("latin-1"), "it is not UTF-8"),
}


@pytest.mark.parametrize("case", NOT_XML)
def test_what_is_no_model(tmp_path, monkeypatch, case):
    text, words = NOT_XML[case]
    assert words in refusal(write(tmp_path, {"robot.xml": text}), monkeypatch)


def test_what_is_no_file(tmp_path, monkeypatch):
    assert "it is a folder" in refusal(tmp_path, monkeypatch)
    assert "No such file" in refusal(tmp_path / "absent.xml", monkeypatch)
    os.mkfifo(tmp_path / "pipe.xml")
    assert "no regular file" in refusal(tmp_path / "pipe.xml", monkeypatch)
    assert "no regular file" in refusal(Path("/dev/zero"), monkeypatch)
    with (tmp_path / "large.xml").open("wb") as file:
        file.truncate(10**9)
    assert "too large" in refusal(tmp_path / "large.xml", monkeypatch)


# --- files that are missing or outside -----------------------------------------------------------

REFERENCES = {
    "include": '<include file="{}"/>',
    "mesh": '<asset><mesh name="m" file="{}"/></asset>',
    "texture": '<asset><texture name="t" type="2d" file="{}"/></asset>',
    "cube": '<asset><texture name="t" type="cube" fileleft="{}"/></asset>',
    "hfield": '<asset><hfield name="h" file="{}" size="1 1 1 1"/></asset>',
    "skin": '<asset><skin name="s" file="{}"/></asset>',
    "model": '<asset><model name="c" file="{}"/></asset>',
    "flexcomp": '<worldbody><flexcomp name="f" type="mesh" file="{}"/></worldbody>',
}
LEAVING = {
    "parent": "../outside/a.xml",
    "detour": "inside/../../outside/a.xml",
    "backslash": "..\\outside\\a.xml",
    "absolute": "{tmp}/outside/a.xml",
    "nowhere": "../../absent/a.xml",
    "link": "link.xml",
    "link-folder": "linked/a.xml",
}


@pytest.fixture
def robot(tmp_path):
    """A folder for a model, with links that lead out of it, and one beside it."""
    write(tmp_path, {"outside/a.xml": "<mujoco/>", "robot/inside/b.xml": "<mujoco/>"})
    (tmp_path / "robot/link.xml").symlink_to(tmp_path / "outside/a.xml")
    (tmp_path / "robot/linked").symlink_to("../outside")
    return tmp_path / "robot"


@pytest.mark.parametrize("way", LEAVING)
@pytest.mark.parametrize("kind", REFERENCES)
def test_files_outside_the_folder_are_not_read(robot, monkeypatch, kind, way):
    name = LEAVING[way].format(tmp=robot.parent)
    path = write(robot, {"robot.xml": mjcf("", REFERENCES[kind].format(name))})
    OPENED.clear()
    WATCHED.append(True)
    try:
        sentence = refusal(path, monkeypatch)
    finally:
        WATCHED.clear()
    assert "line 3" in sentence
    assert f"leads outside the model's folder {robot}" in sentence
    assert str(path) in OPENED
    assert not any("a.xml" in name for name in OPENED)


@pytest.mark.parametrize("kind", REFERENCES)
def test_missing_files(robot, monkeypatch, kind):
    text = mjcf("", REFERENCES[kind].format("parts/absent.xyz"))
    path = write(robot, {"robot.xml": text})
    sentence = refusal(path, monkeypatch)
    assert "line 3" in sentence
    assert f"'parts/absent.xyz' is not there: looked for {robot}/parts/absent.xyz" in sentence
    for uri in ("http://example.org/a.xml", "file:///etc/passwd", "package://a/b.stl"):
        path = write(robot, {"robot.xml": mjcf("", REFERENCES[kind].format(uri))})
        assert f"line 3: '{uri}' is a URI" in refusal(path, monkeypatch)


def test_missing_files_are_named_where_they_are_looked_for(robot, monkeypatch):
    compiler = '<compiler meshdir="m" texturedir="t" assetdir="a"/>'
    for kind, folder in {"mesh": "m", "texture": "t", "skin": "m", "hfield": "a"}.items():
        text = mjcf(REFERENCES[kind].format("x.png"), compiler)
        sentence = refusal(write(robot, {"robot.xml": text}), monkeypatch)
        assert f"looked for {robot}/{folder}/x.png" in sentence


@pytest.mark.parametrize("option", ["meshdir", "texturedir", "assetdir"])
@pytest.mark.parametrize("folder", ["..", "{tmp}/outside", "linked", "inside/../.."])
def test_folders_outside_the_folder(robot, monkeypatch, option, folder):
    folder = folder.format(tmp=robot.parent)
    path = write(robot, {"robot.xml": mjcf(f'<compiler {option}="{folder}"/>')})
    assert f"line 2: compiler refers to '{folder}', which leads" in refusal(path, monkeypatch)


def test_what_an_included_or_attached_file_refers_to(robot, monkeypatch):
    inner = mjcf("", REFERENCES["mesh"].format("../../outside/a.xml"))
    for kind in ("include", "model"):
        outer = mjcf(REFERENCES[kind].format("inside/part.xml"))
        path = write(robot, {"robot.xml": outer, "inside/part.xml": inner})
        sentence = refusal(path, monkeypatch)
        assert f"{path}: inside/part.xml, line 3" in sentence
        assert "leads outside" in sentence


def test_a_model_is_not_attached_from_the_current_folder(robot, monkeypatch):
    write(robot.parent, {"here/inside/b.xml": "<mujoco/>"})
    monkeypatch.chdir(robot.parent / "here")
    path = write(robot, {"robot.xml": mjcf(REFERENCES["model"].format("inside/b.xml"))})
    # MuJoCo would take the one in the current folder.
    assert "leads outside" in refusal(path, monkeypatch)
    monkeypatch.chdir(robot.parent)
    monkeypatch.undo()
    assert load_model(path).compiled.nbody == 1


def test_a_pipe_or_a_folder_is_no_mesh(robot, monkeypatch):
    os.mkfifo(robot / "pipe.stl")
    for name in ("pipe.stl", "inside"):
        path = write(robot, {"robot.xml": mjcf(REFERENCES["mesh"].format(name))})
        assert "is not a file" in refusal(path, monkeypatch)


def test_urdf_files_outside(robot, monkeypatch):
    shape = '<geometry><mesh filename="../outside/a.xml"/></geometry>'
    text = f"<robot name='r'>\n<link name='l'><collision>{shape}</collision></link></robot>"
    assert "line 2: mesh refers to" in refusal(write(robot, {"robot.urdf": text}), monkeypatch)


def test_an_archive_is_not_attached(robot, monkeypatch):
    text = mjcf(REFERENCES["model"].format("child.mjz"))
    path = write(robot, {"robot.xml": text, "child.mjz": b"PK"})
    assert "must be XML, not an archive" in refusal(path, monkeypatch)


# --- cycles and bombs ----------------------------------------------------------------------------


def include(name: str) -> str:
    return mjcf(REFERENCES["include"].format(name))


def attach(name: str) -> str:
    return mjcf(REFERENCES["model"].format(name))


CYCLES = {
    "itself": {"robot.xml": include("robot.xml")},
    "itself-spelt-otherwise": {"robot.xml": include("./x/../robot.xml")},
    "two": {"robot.xml": include("b.xml"), "b.xml": include("robot.xml")},
    "three": {"robot.xml": include("b.xml"), "b.xml": include("c.xml"), "c.xml": include("b.xml")},
    "again": {"robot.xml": mjcf(*['<include file="b.xml"/>'] * 2), "b.xml": "<mujoco/>"},
    "attached-to-itself": {"robot.xml": attach("robot.xml")},
    "attached-in-turn": {"robot.xml": attach("b.xml"), "b.xml": attach("robot.xml")},
    "attached-by-include": {"robot.xml": attach("b.xml"), "b.xml": include("robot.xml")},
}


@pytest.mark.parametrize("case", CYCLES)
def test_cycles_end(tmp_path, monkeypatch, case):
    sentence = refusal(write(tmp_path, CYCLES[case]), monkeypatch)
    assert "is included a second time" in sentence or "attaches itself" in sentence
    assert ", line " in sentence


LAUGHS = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10 if i else 'ha'}'>\n" for i in range(10))
REPLICATE = '<replicate count="1000">'
CHAIN = {
    f"{'robot' if i == 0 else f'm{i}'}.xml": mjcf(
        f'<asset><model name="c" file="m{i + 1}.xml"/></asset>'
        '<worldbody><body name="b">'
        + "".join(f'<attach model="c" body="b" prefix="p{k}"/>' for k in range(10))
        + "</body></worldbody>"
        if i < 9
        else '<worldbody><body name="b"><geom size="1"/></body></worldbody>'
    )
    for i in range(10)
}
FAN = {
    f"{'robot' if i == 0 else f'm{i}'}.xml": mjcf(
        *[f'<asset><model name="c{k}" file="m{i + 1}.xml"/></asset>' for k in range(4) if i < 9]
    )
    for i in range(10)
}
NESTED = {f"{'robot' if i == 0 else f'm{i}'}.xml": include(f"m{i + 1}.xml") for i in range(30)} | {
    "m30.xml": "<mujoco/>"
}
SIZED = '<asset>{}</asset><worldbody><geom size="1"/></worldbody>'
BOMBS = {
    "billion-laughs": (f"<!DOCTYPE mujoco [{LAUGHS}]>\n<mujoco model='&l9;'/>", "DOCTYPE"),
    "billion-laughs-text": (f"<!DOCTYPE mujoco [{LAUGHS}]>\n<mujoco>&l9;</mujoco>", "DOCTYPE"),
    "external": ("<!DOCTYPE m [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><m>&x;</m>", "DOCTYPE"),
    "external-dtd": ("<!DOCTYPE mujoco SYSTEM 'http://example.org/a.dtd'><mujoco/>", "DOCTYPE"),
    "parameter": ("<!DOCTYPE m [<!ENTITY % x SYSTEM '/dev/zero'> %x;]><mujoco/>", "DOCTYPE"),
    "depth": ("<mujoco>" + "<body>" * 100_000, "nested deeper than 400"),
    "depth-by-include": (
        {
            "robot.xml": mjcf(
                "<worldbody>"
                + "<body>" * 300
                + '<include file="b.xml"/>'
                + "</body>" * 300
                + "</worldbody>"
            ),
            "b.xml": "<a>" + "<body>" * 300 + "</body>" * 300 + "</a>",
        },
        "nested deeper than 400",
    ),
    "replicate": (
        mjcf(
            "<worldbody>", REPLICATE * 5 + '<geom size="1"/>' + "</replicate>" * 5, "</worldbody>"
        ),
        "line 3: with all that is repeated",
    ),
    "attach": (CHAIN, "elements, at most 100000"),
    "fan": (FAN, "at most 500 files"),
    "nested": (NESTED, "at most 20 of them one within the other"),
    "flexcomp": (mjcf('<worldbody><flexcomp name="f" count="999 999 999"/></worldbody>'), "100000"),
    "composite": (mjcf('<worldbody><composite count="999999 1 1"/></worldbody>'), "100000"),
    "texture": (mjcf(SIZED.format('<texture width="60000" height="60000"/>')), "cells"),
    "texture-width": (mjcf(SIZED.format('<texture width="2000000000"/>')), "at most 1000000"),
    "hfield": (mjcf(SIZED.format('<hfield nrow="100000" ncol="100000"/>')), "cells"),
    "mesh": (mjcf(SIZED.format('<mesh builtin="supersphere" params="9999 1 1"/>')), "at most 200"),
    "userdata": (mjcf('<size nuserdata="2000000000"/>'), "at most 1000000"),
    "keys": (mjcf('<size nkey="2000000000"/>'), "at most 1000000"),
    "samples": (mjcf('<sensor><clock nsample="2000000000"/></sensor>'), "at most 1000000"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_not_set_off(tmp_path, monkeypatch, case):
    content, words = BOMBS[case]
    files = content if isinstance(content, dict) else {"robot.xml": content}
    assert words in refusal(write(tmp_path, files), monkeypatch)


# --- numbers -------------------------------------------------------------------------------------

JOINT = "<joint/>"
INERTIAL = '<inertial pos="0 0 0" mass="{}" diaginertia="{}"/>'
NUMBERS = {
    "mass-nan": (moving(JOINT, INERTIAL.format("nan", "1 1 1")), "line 5: inertial has mass='nan'"),
    "mass-inf": (moving(JOINT, '<geom size="1" mass="inf"/>'), "line 5: geom has mass='inf'"),
    "mass-huge": (moving(JOINT, '<geom size="1" mass="1e999"/>'), "mass='1e999', which must be"),
    "mass-negative": (moving(JOINT, INERTIAL.format("-1", "1 1 1")), "mass='-1', which must not"),
    "density": (moving(JOINT, '<geom size="1" density="-1"/>'), "density='-1'"),
    "inertia-nan": (moving(JOINT, INERTIAL.format("1", "1 NaN 1")), "diaginertia='1 NaN 1'"),
    "inertia-negative": (moving(JOINT, INERTIAL.format("1", "1 -1 1")), "must not be negative"),
    "size-nan": (moving(JOINT, '<geom size="nan"/>'), "size='nan'"),
    "size-inf": (moving(JOINT, '<geom type="box" size="1 inf 1"/>'), "size='1 inf 1'"),
    "size-negative": (moving(JOINT, '<geom size="-1"/>'), "size='-1'"),
    "position": (moving(JOINT, '<geom size="1" pos="0 0 nan"/>'), "pos='0 0 nan'"),
    "quaternion": (moving(JOINT, '<geom size="1" quat="inf 0 0 0"/>'), "quat='inf 0 0 0'"),
    "armature": (moving('<joint armature="-9"/>', '<geom size="1"/>'), "line 4: joint has"),
    "damping": (moving('<joint damping="-9"/>', '<geom size="1"/>'), "damping='-9'"),
    "range": (moving('<joint range="nan 1"/>', '<geom size="1"/>'), "must not be NaN"),
    "gear": (mjcf("<actuator>", '<motor gear="nan" joint="j"/>', "</actuator>"), "line 3: motor"),
    "step-zero": (mjcf('<option timestep="0"/>'), "which must be above 0"),
    "step-negative": (mjcf('<option timestep="-0.01"/>'), "which must be above 0"),
    "gravity": (mjcf('<option gravity="0 0 nan"/>'), "gravity='0 0 nan'"),
    "key": (moving(JOINT, '<geom size="1"/>').replace("</mujoco>",
            '<keyframe><key qpos="nan"/></keyframe></mujoco>'), "qpos='nan'"),
    "urdf-mass": ('<robot name="r">\n<link name="l"><inertial><mass value="-1"/></inertial></link>'
                  "</robot>", "line 2: mass has value='-1'"),
    "urdf-inertia": ('<robot name="r">\n<link name="l"><inertial><inertia ixx="nan"/></inertial>'
                     "</link></robot>", "line 2: inertia has ixx='nan'"),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_cannot_be(tmp_path, monkeypatch, case):
    text, words = NUMBERS[case]
    assert words in refusal(write(tmp_path, {"robot.xml": text}), monkeypatch)


MUJOCO_SAYS = {
    "word": (moving(JOINT, '<geom size="one"/>'), "line 5 does not parse: bad format in attribute"),
    "unknown": (mjcf("<worldbody>", "<bdy/>", "</worldbody>"), "line 3 does not parse: Schema"),
    "no-mass": (moving(JOINT), "mass and inertia of moving bodies must be larger"),
    "triangle": (moving(JOINT, INERTIAL.format("1", "1 1 9")), "inertia must satisfy A + B >= C"),
    "twice": (mjcf("<worldbody>", '<site name="s"/>' * 2, "</worldbody>"), "repeated name 's'"),
    "joint": (mjcf('<actuator><motor joint="j"/></actuator>'), "'j'"),
    "broken-mesh": (mjcf(SIZED.format('<mesh file="broken.stl"/>')), "broken"),
    "plugin": (mjcf('<extension><plugin plugin="mine"/></extension>'), "plugin mine not found"),
    "library": (
        mjcf('<extension><plugin plugin="{folder}/evil.so"/></extension>'),
        "evil.so not found",
    ),
    "unstable": (
        moving("<freejoint/>", '<geom size="1"/>').replace(
            "<mujoco>", '<mujoco><option gravity="0 0 1e20"/>'
        ),
        "is unstable",
    ),
}


@pytest.mark.parametrize("case", MUJOCO_SAYS)
def test_what_mujoco_says_becomes_one_sentence(tmp_path, case):
    text, words = MUJOCO_SAYS[case]
    files = {
        "robot.xml": text.replace("{folder}", str(tmp_path)),
        "broken.stl": b"solid\n\0\0",
        "evil.so": b"\x7fELF",
    }
    sentence = refusal(write(tmp_path, files))
    assert words in sentence
    assert "XML Error" not in sentence and "Element name" not in sentence


def test_without_an_actuator_a_model_can_be_seen_but_not_controlled(tmp_path):
    still = load_model(write(tmp_path, {"robot.xml": mjcf(BALL)}))
    with pytest.raises(UsageError, match=r"robot\.xml has no actuator: add an <actuator>"):
        check_controllable(still)
    assets = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
    check_controllable(load_model(assets / "ant.xml"))


def test_there_are_a_hundred_of_them():
    count = len(NOT_XML) + len(REFERENCES) * len(LEAVING) + len(CYCLES) + len(BOMBS)
    assert count + len(NUMBERS) + len(MUJOCO_SAYS) >= 100


# --- what must work ------------------------------------------------------------------------------

MESH = (
    '<asset><mesh name="m" file="{}"/></asset><worldbody><geom type="mesh" mesh="m"/></worldbody>'
)
SOUND = {
    "beside": {"robot.xml": mjcf(MESH.format("m.stl")), "m.stl": stl()},
    "below": {"robot.xml": mjcf(MESH.format("a/b/m.stl")), "a/b/m.stl": stl()},
    "detour": {"robot.xml": mjcf(MESH.format("a/../m.stl")), "m.stl": stl()},
    "backslashes": {"robot.xml": mjcf(MESH.format("a\\m.stl")), "a/m.stl": stl()},
    "meshdir": {
        "robot.xml": mjcf(MESH.format("m.stl"), '<compiler meshdir="a"/>'),
        "a/m.stl": stl(),
    },
    "meshdir-absolute": {
        "robot.xml": mjcf('<compiler meshdir="{folder}/a"/>', MESH.format("m.stl")),
        "a/m.stl": stl(),
    },
    "strippath": {
        "robot.xml": mjcf('<compiler strippath="true"/>', MESH.format("../../x/m.stl")),
        "m.stl": stl(),
    },
    "include": {
        "robot.xml": include("a/b.xml"),
        "a/b.xml": include("c.xml"),
        "a/c.xml": mjcf(MESH.format("m.stl")),
        "a/m.stl": stl(),
    },
    "include-same-name": {
        "robot.xml": mjcf('<include file="a/part.xml"/>', '<include file="b/part.xml"/>'),
        "a/part.xml": mjcf("<worldbody/>"),
        "b/part.xml": mjcf(BALL),
    },
    "include-called-the-same": {
        "robot.xml": include("a/robot.xml"),
        "a/robot.xml": mjcf(BALL),
    },
    "include-upwards": {
        "robot.xml": include("a/b.xml"),
        "a/b.xml": include("../c.xml"),
        "c.xml": mjcf(BALL),
    },
    "attach": {
        "robot.xml": mjcf(
            '<asset><model name="c" file="a/child.xml"/></asset>',
            '<worldbody><attach model="c" body="b" prefix="p"/></worldbody>',
        ),
        "a/child.xml": mjcf(
            '<compiler meshdir="meshes"/><asset><mesh name="m" file="m.stl"/></asset>',
            '<worldbody><body name="b"><geom type="mesh" mesh="m"/></body></worldbody>',
        ),
        "a/meshes/m.stl": stl(),
    },
    "comments": {"robot.xml": mjcf("<!-- ---- a -- b <include file='../x'/> -->", BALL)},
    "byte-order-mark": {"robot.xml": "\ufeff" + mjcf(BALL)},
    "late-declaration": {"robot.xml": "\n<?xml version='1.0'?>\n" + mjcf(BALL)},
    "infinite-range": {
        "robot.xml": moving('<joint range="-1 inf" limited="true"/>', '<geom size="1"/>')
    },
    "bundled-plugin": {
        "robot.xml": mjcf(
            '<extension><plugin plugin="mujoco.pid"><instance name="p"/></plugin></extension>',
            '<worldbody><body><joint name="j"/><geom size="1"/></body></worldbody>',
            '<actuator><plugin joint="j" plugin="mujoco.pid" instance="p"/></actuator>',
        )
    },
    "urdf": {
        "robot.urdf": '<robot name="r"><link name="l"><visual><geometry><mesh filename="absent.dae"'
        "/></geometry></visual><collision><geometry>"
        '<mesh filename="a/m.stl"/></geometry></collision></link></robot>',
        "a/m.stl": stl(),
    },
}


@pytest.mark.parametrize("case", SOUND)
def test_models_that_are_sound(tmp_path, monkeypatch, case):
    files = {
        name: x.replace("{folder}", str(tmp_path)) if isinstance(x, str) else x
        for name, x in SOUND[case].items()
    }
    path = write(tmp_path, files)
    assert load_model(path).compiled.ngeom == 1
    monkeypatch.chdir(tmp_path)
    assert load_model(path.name).compiled.ngeom == 1
    # The files that MuJoCo itself would read are the ones that were judged.
    read = {Path(name).resolve() for name in mujoco.mju_getXMLDependencies(str(path))}
    own = model.ModelFiles(path, "robot")
    assert {p for p in read if p.suffix == ".xml"} == {
        p.resolve() for p in own.check() if p.suffix == ".xml"
    }


def test_gymnasiums_robots_are_as_mujoco_compiles_them():
    assets = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
    robots = sorted(assets.glob("*.xml"))
    assert len(robots) >= 10
    for path in robots:
        ours, plain = load_model(path).compiled, mujoco.MjModel.from_xml_path(str(path))
        for name in ("body_mass", "geom_size", "actuator_gear", "key_qpos", "dof_damping"):
            assert np.array_equal(getattr(ours, name), getattr(plain, name))


def test_a_link_to_a_model_and_links_inside_its_folder(tmp_path):
    path = write(tmp_path, {"robot.xml": mjcf(MESH.format("link.stl")), "a/m.stl": stl()})
    (tmp_path / "link.stl").symlink_to("a/m.stl")
    assert load_model(path).compiled.nmesh == 1
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert load_model(tmp_path / "elsewhere/robot.xml").compiled.nmesh == 1


def test_a_larger_folder_can_be_allowed(robot):
    path = write(
        robot,
        {"robot.xml": mjcf('<compiler meshdir="../meshes"/>', MESH.format("m.stl"))},
    )
    write(robot.parent, {"meshes/m.stl": stl()})
    assert "name a larger folder: folder=..." in refusal(path)
    assert load_model(path, folder=robot.parent).compiled.nmesh == 1
    sentence = refusal(path, folder=robot)
    assert f"outside the model's folder {robot}" in sentence


def test_a_model_given_as_text(tmp_path, monkeypatch):
    path = write(tmp_path, {"robot.xml": "not XML", "m.stl": stl()})
    text = mjcf(MESH.format("m.stl"))
    assert load_model(path, xml=text).xml == text
    monkeypatch.chdir(tmp_path)
    assert load_model("<a robot>", xml=text).compiled.nmesh == 1
    text = mjcf("", MESH.format("../m.stl"))
    assert "<a robot>, line 3: mesh refers to '../m.stl'" in refusal("<a robot>", xml=text)


def test_a_dump_of_a_model_with_meshes_is_replayed(tmp_path):
    text = moving("<freejoint/>", '<geom type="mesh" mesh="m"/>').replace(
        "</mujoco>", '<asset><mesh name="m" file="m.stl"/></asset></mujoco>'
    )
    path = write(tmp_path, {"robot.xml": text, "m.stl": stl()})
    loaded = load_model(path)
    physics = CpuPhysics(loaded, 1)
    physics.field("qvel")[:] = 1e12
    assert physics.step(torch.zeros(1, 0), 1).all()
    dump = tmp_path / "dumps/a.npz"
    save_dump(dump, loaded, physics.snapshot(0), world=0, step=3, task=np.zeros(1))
    assert replay(dump).unstable
    path.write_text(mjcf(BALL))  # the text in the dump counts, not what the file says now
    assert replay(dump).unstable
