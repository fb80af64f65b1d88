"""Devices that cannot be had, and memories that are full: one sentence each, and nothing broken."""

import ast
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gymnasium as gym
import pytest
import torch
from pretend_gpu import pretend_gpu

from metarl.devices import OutOfMemory, Room, bytes_asked, find_device, is_out_of_memory
from metarl.envs.gridnavi import GridNavi, GridWorlds
from metarl.envs.physics import warp_device
from metarl.envs.physics.warp_device import require_memory, require_warp
from metarl.envs.physics.warp_model import Limits
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.experiments.loading import check_device
from metarl.gymnasium_family import GymnasiumFamily
from metarl.tasks import striped

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("metarl", "envs", "agents", "experiments")
GB = 10**9
TINY = "--num-worlds 8 --epochs 1 --minibatches 1 --hidden 4 --layers 4".split()


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.fixture
def cuda(monkeypatch):
    """A torch that is built with CUDA 13.0 and has two devices, on which nothing can be computed.

    Its memory is `cuda.total` bytes, of which `cuda.free` are free; torch keeps none unused.
    """
    machine = SimpleNamespace(total=80 * GB, free=80 * GB)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    for name, value in {
        "init": lambda: None,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "get_device_capability": lambda device: (9, 0),
        "mem_get_info": lambda device: (machine.free, machine.total),
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: torch.zeros(*size))
    return machine


def refused(capsys, *words):
    """The sentence of a command that must refuse."""
    code = main([str(word) for word in words])
    *bar, sentence = capsys.readouterr().err.splitlines()
    assert code == 2, sentence
    assert sentence.startswith("metarl: ") and all(not line or "step/s" in line for line in bar)
    return sentence


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:07", "cuda:x", "cuda0", "CUDA"])
def test_what_is_no_device_is_refused_with_those_that_are(name):
    with pytest.raises(UsageError, match=r"unknown device .*cpu, cuda or cuda:N"):
        find_device(name)


def test_the_cpu_is_there_and_apples_gpus_are_refused():
    assert find_device("cpu") == torch.device("cpu")
    for name in ("mps", "mps:0"):
        with pytest.raises(UsageError, match="no float64"):
            find_device(name)


def test_a_torch_without_cuda_is_named_with_the_way_to_one_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(UsageError, match=r"2\.13\.0\+cpu is built without CUDA.*torch==2\.13\.0$"):
        find_device("cuda")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
            "installed a driver from\nhttp://www.nvidia.com/Download/index.aspx",
            ["has no NVIDIA driver"],
        ),
        (
            "The NVIDIA driver on your system is too old (found version 12020). Please update your "
            "GPU driver",
            ["driver is made for CUDA 12.2", "2.13.0+cu130 for CUDA 13.0"],
        ),
        ("No CUDA GPUs are available", ["an NVIDIA driver, but no GPU", "CUDA_VISIBLE_DEVICES"]),
        (
            "CUDA unknown error - this may be\nlong",
            ["torch says: CUDA unknown error - this may be"],
        ),
    ],
)
def test_what_torch_says_of_a_missing_gpu_is_said_shortly(cuda, monkeypatch, said, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "init", raises(RuntimeError(said)))
    with pytest.raises(UsageError) as refusal:
        find_device("cuda")
    assert "\n" not in str(refusal.value)
    assert all(word in str(refusal.value) for word in words)


def test_devices_that_are_there_are_found(cuda):
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match=r"cuda:7 cannot be had.*cuda:0 to cuda:1"):
        find_device("cuda:7")


def test_a_gpu_that_cannot_compute_is_refused_before_training(cuda, monkeypatch):
    error = RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE")
    monkeypatch.setattr(torch, "ones", raises(error))
    with pytest.raises(
        UsageError, match=r"cannot be used: CUDA error: no kernel image is available$"
    ):
        find_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command",
    [
        "train rl2 gridnavi --run-dir {tmp}/run",
        "train oracle half-cheetah-vel --run-dir {tmp}/run",
        "train sb3-ppo gridnavi --run-dir {tmp}/run",
        "bench rollout gridnavi",
        "bench update maml",
        "bench fewshot sinusoid",
        "fewshot maml sinusoid --run-dir {tmp}/run",
        "fewshot --compare maml scratch sinusoid --run-dir {tmp}/run",
    ],
)
def test_every_command_says_what_is_missing_and_leaves_nothing(command, capsys, tmp_path):
    words = command.format(tmp=tmp_path).split()
    assert "device cuda cannot be had: " in refused(capsys, *words, "--device", "cuda")
    assert list(tmp_path.iterdir()) == []


# --- what MuJoCo Warp needs besides --------------------------------------------------------------


@pytest.fixture
def warp(cuda, monkeypatch):
    """A Warp built for CUDA 13.4, on a machine whose driver is as new."""
    fake = SimpleNamespace(
        __version__="1.19.0",
        LOG_ERROR=3,
        config=SimpleNamespace(log_level=2),
        init=lambda: None,
        get_cuda_toolkit_version=lambda: (13, 4),
        get_cuda_driver_version=lambda: (13, 0),
        device_from_torch=lambda device: device,
        is_mempool_supported=lambda device: True,
    )
    monkeypatch.setattr(warp_device, "import_warp", lambda: (fake, None))
    return fake


def test_a_gpu_for_warp_gets_its_number(warp):
    assert require_warp("cuda") == torch.device("cuda", 0)
    assert require_warp("cuda:1") == torch.device("cuda", 1)
    assert require_warp("cpu") == torch.device("cpu")
    assert warp.config.log_level == 2


@pytest.mark.parametrize(
    ("toolkit", "driver", "words"),
    [
        (None, None, ["built without CUDA"]),
        ((12, 3), (13, 0), ["built for CUDA 12.3", "12.4 or newer"]),
        ((12, 8), (12, 2), ["a driver for CUDA 12.2", "needs one for CUDA 12.4 or newer"]),
        ((13, 4), (12, 8), ["a driver for CUDA 12.8", "needs one for CUDA 13.0 or newer"]),
        ((13, 4), None, ["finds no driver"]),
    ],
)
def test_a_driver_that_is_too_old_for_warp_is_named(warp, toolkit, driver, words):
    warp.get_cuda_toolkit_version = lambda: toolkit
    warp.get_cuda_driver_version = lambda: driver
    with pytest.raises(UsageError) as refusal:
        require_warp("cuda")
    assert all(word in str(refusal.value) for word in words)


def test_an_older_build_of_warp_takes_older_drivers_and_gpus(warp, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(UsageError, match=r"compute capability 7\.0.*needs 7\.5"):
        require_warp("cuda")
    warp.get_cuda_toolkit_version = lambda: (12, 8)
    warp.get_cuda_driver_version = lambda: (12, 4)
    assert require_warp("cuda") == torch.device("cuda", 0)


def test_a_driver_without_memory_pools_is_refused(warp):
    warp.is_mempool_supported = lambda device: False
    with pytest.raises(UsageError, match="memory pools"):
        require_warp("cuda")


def test_only_robots_need_warp(cuda, monkeypatch):
    said = UsageError("MuJoCo Warp is not installed")
    monkeypatch.setattr(warp_device, "import_warp", raises(said))
    for name in ("gridnavi", "metaworld-ml1-reach"):
        assert check_device("cuda", make_family(name)) == torch.device("cuda")
    cheetah = make_family("half-cheetah-vel")
    assert check_device("cpu", cheetah) == torch.device("cpu")
    with pytest.raises(UsageError, match="not installed"):
        check_device("cuda", cheetah)
    on_the_cpu = make_family("half-cheetah-vel", backend="mujoco")
    assert check_device("cuda", on_the_cpu) == torch.device("cuda")


def test_a_robot_is_refused_before_there_is_a_run_folder(cuda, monkeypatch, capsys, tmp_path):
    said = UsageError("MuJoCo Warp is not installed")
    monkeypatch.setattr(warp_device, "import_warp", raises(said))
    for agent in ("rl2", "oracle"):
        words = f"train {agent} half-cheetah-vel --device cuda --run-dir {tmp_path}/run".split()
        assert "not installed" in refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_no_module_imports_warp_when_it_is_imported_itself():
    files = [file for name in FOLDERS for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 200
    for file in files:
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"warp", "mujoco_warp"}, file


# --- memory that is full -------------------------------------------------------------------------

MODEL = make_family("half-cheetah-vel").model()


@pytest.fixture
def kilobytes(monkeypatch):
    """The arrays of a world take 1 MB, so that it takes 1.4 MB, and all together 1 GB."""
    monkeypatch.setattr(warp_device, "bytes_per_world", lambda *args: (10**6, GB))


def test_worlds_that_fit_are_allowed(cuda, kilobytes):
    # Nine tenths of 80 GB, less 1 GB for all.
    require_memory(MODEL, 50_714, Limits(), torch.device("cuda", 0))


def test_worlds_that_do_not_fit_are_refused_with_how_many_would(cuda, kilobytes):
    with pytest.raises(OutOfMemory) as refusal:
        require_memory(MODEL, 100_000, Limits(), torch.device("cuda", 0))
    sentence = str(refusal.value)
    assert "half_cheetah.xml take 141.00 GB" in sentence
    assert "80.00 GB free: at most 50714 fit" in sentence
    cuda.free = GB
    with pytest.raises(OutOfMemory, match="at most 0 fit"):
        require_memory(MODEL, 1, Limits(), torch.device("cuda", 0))


FULL = {
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has"): 2**34,
    RuntimeError("Failed to allocate 123456 bytes on device 'cuda:0'"): 123456,
    RuntimeError("CUDA error: out of memory"): 0,
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."): 8,
    MemoryError("Unable to allocate 7.50 MiB for an array"): 7.5 * 2**20,
}


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:20])
def test_a_full_memory_is_known_by_what_is_said_of_it(error):
    assert is_out_of_memory(error)
    assert bytes_asked(error) == FULL[error]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_pass(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), Room("cpu", 8, 1, "--tasks").watched():
        raise error


def watched(room, error):
    with pytest.raises(OutOfMemory) as refusal, room.watched():
        raise error
    return str(refusal.value)


def test_what_fits_is_in_proportion_to_what_was_taken(cuda):
    room = Room("cuda:0", 1000, 1, "--num-worlds")
    cuda.free = 20 * GB  # so 60 GB are taken, and 40 GB more are asked for
    sentence = watched(room, RuntimeError(f"Failed to allocate {40 * GB} bytes on device 'cuda:0'"))
    assert "1000 worlds took 60.00 of the 80.00 GB" in sentence
    assert "needed 40.00 GB more" in sentence
    # Of 100 GB for 1000 worlds, nine tenths of 80 GB are there.
    assert sentence.endswith("--num-worlds 720 would fit")


def test_memory_of_others_does_not_count(cuda):
    cuda.free = 40 * GB
    room = Room("cuda:0", 30, 20, "--tasks")
    cuda.free = 10 * GB
    sentence = watched(room, torch.OutOfMemoryError(f"Tried to allocate {30 * GB} bytes"))
    assert "30 tasks x 20 worlds took 30.00 of the 40.00 GB" in sentence
    assert sentence.endswith("--tasks 18 would fit")


def test_fewer_are_advised_even_where_little_was_taken(cuda):
    room = Room("cuda:0", 10, 1, "--num-worlds")
    assert watched(room, RuntimeError("CUDA error: out of memory")).endswith("9 would fit")
    room = Room("cuda:0", 1, 1, "--num-worlds")
    assert watched(room, RuntimeError("CUDA error: out of memory")).endswith(
        "not a single one would fit"
    )


def test_on_a_cpu_nobody_knows_what_is_free():
    sentence = watched(Room("cpu", 8, 1, "--num-worlds"), MemoryError())
    assert sentence == "the memory is full: 8 worlds are too many; lower --num-worlds"


def fill_memory(monkeypatch, step):
    """Let the `step`-th step of gridnavi's worlds find no memory."""
    advance, steps = GridWorlds._advance, iter(range(1, 10**9))

    def full(self, actions):
        if next(steps) == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return advance(self, actions)

    monkeypatch.setattr(GridWorlds, "_advance", full)


def test_training_that_fills_the_memory_can_be_gone_on_with(monkeypatch, capsys, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "run"
    command = ["train", "rl2", "gridnavi", "--total-steps", "900", *TINY, "--run-dir"]
    assert main([*command, str(whole)]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        fill_memory(patch, 100)  # in the second iteration of two
        sentence = refused(capsys, *command, path, "--json")
    assert "8 worlds are too many; lower --num-worlds" in sentence
    assert "--resume goes on from" in sentence and str(path) in sentence
    assert main([*command, str(path), "--resume"]) == 0
    ends = [(folder / "metrics.jsonl").read_text() for folder in (whole, path)]
    assert ends[0] == ends[1] and len(ends[0].splitlines()) == 3  # and an evaluation


def test_training_that_never_fits_leaves_no_run_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(GridNavi, "make_worlds", raises(MemoryError()))
    command = ["train", "rl2", "gridnavi", *TINY, "--run-dir", tmp_path / "run"]
    assert "nothing was saved yet" in refused(capsys, *command)
    assert list(tmp_path.iterdir()) == []


def test_evaluations_that_fill_the_memory_name_their_tasks(monkeypatch, capsys, tmp_path):
    command = ["train", "rl2", "gridnavi", "--total-steps", 1, *TINY, "--run-dir", tmp_path / "run"]
    assert main([str(word) for word in command]) == 0
    capsys.readouterr()
    fill_memory(monkeypatch, 1)
    sentence = refused(capsys, "evaluate", tmp_path / "run", "--tasks", 12)
    assert "12 worlds are too many; lower --tasks" in sentence


def test_a_memory_that_fills_anywhere_else_gets_a_sentence_too(monkeypatch, capsys):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr("metarl.experiments.bench_fewshot.bench_fewshot", raises(error))
    assert "where 2.15 GB more are needed" in refused(capsys, "bench", "fewshot", "sinusoid")
    monkeypatch.setattr("metarl.experiments.bench_fewshot.bench_fewshot", raises(RuntimeError("x")))
    with pytest.raises(RuntimeError, match="x"):
        main(["bench", "fewshot", "sinusoid"])


# --- worlds that stay on the CPU, and agents on a GPU ---------------------------------------------


def seen(family, device):
    """What four worlds on a device show in some steps, with a reset in between."""
    env = family.make_worlds(4, device=device, seed=3)
    generator = torch.Generator().manual_seed(1)
    env.set_tasks(family.sample_tasks(4, "train", generator))
    shown = [env.reset()[0]]
    for _ in range(3):
        low, high = family.action_space.low, family.action_space.high
        u = torch.rand(4, len(low), generator=generator)
        action = torch.from_numpy(low) + u * torch.from_numpy(high - low)
        *step, info = env.step(action.to(device))
        shown += [*step, info["final_obs"]]
    assert {x.device.type for x in shown} == {device}
    saved = env.state_dict()
    env.load_state_dict(saved)
    env.close()
    return [x.cpu() for x in shown]


@dataclass(frozen=True)
class Pendulums(GymnasiumFamily):
    name: ClassVar[str] = "pendulums"
    episodes: int = 2
    horizon: int = 2

    def sample(self, n, split, generator):
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        return {"gravity": 1.0 + striped(u, split)}

    def make(self, task):
        return gym.make("Pendulum-v1", g=task["gravity"])


ON_THE_CPU = [
    make_family("metaworld-ml1-reach", horizon=2),
    make_family("metaworld-ml1-reach", horizon=2, backend="python"),
    make_family("metaworld-mt10", horizon=2),
    make_family("half-cheetah-vel", backend="mujoco"),
    Pendulums(),
]


@pytest.mark.parametrize("family", ON_THE_CPU, ids=lambda family: family.name)
def test_worlds_that_are_simulated_on_the_cpu_hand_their_tensors_over(family):
    plain = seen(family, "cpu")
    with pretend_gpu():
        copied = seen(family, "cuda")
    # Not to the bit: what torch composes of other functions is taken apart when it is watched.
    torch.testing.assert_close(copied, plain)
