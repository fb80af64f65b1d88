"""Policies from archives of Stable-Baselines3 (`model.save`), trained here or elsewhere.

Such an archive holds its settings as pickled objects, and to unpickle is to execute whatever the
file says. So nothing is unpickled unless the user says that the file can be trusted. The weights
are plain tensors and can be read without; the layers follow from their shapes, and the rest from
the readable notes that the library puts beside every pickled object. That covers the `MlpPolicy` of
PPO, A2C, SAC, TD3 and DDPG; whatever else there is, is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from metarl.adapters import LARGEST, Bridge
from metarl.agents.sb3_models import FixedPolicy
from metarl.errors import UsageError
from metarl.tasks import Spec
from metarl.vector import box

Weights = dict[str, Tensor]

_TRUST = (
    "; --trust loads it with the library itself, which executes code from the file: only for files "
    "whose maker you trust"
)
_KINDS: dict[str, Any] = {
    "action_net.weight": PPO,
    "actor.latent_pi.0.weight": SAC,
    "actor.mu.0.weight": TD3,
}
"""what tells the algorithms apart, and what loads them; A2C is as PPO, DDPG as TD3"""
_POLICIES = ("common.policies", "sac.policies", "td3.policies")
_ACTIVATIONS = {
    kind.__name__: kind for kind in (nn.Tanh, nn.ReLU, nn.ELU, nn.SiLU, nn.GELU, nn.LeakyReLU)
}
_MOST_CRITICS = 10
_HARMLESS = {
    *("net_arch", "activation_fn", "n_critics", "ortho_init", "log_std_init"),
    *("optimizer_class", "optimizer_kwargs", ":type:", ":serialized:"),
}
"""settings of a policy that the weights tell too, or that matter only for learning"""


class _Unreadable(Exception):
    """What the file holds cannot be understood without unpickling; the message says what."""


@dataclass(frozen=True)
class Archive:
    """A policy from an archive, and what is known of its training."""

    path: Path
    """the file"""
    policy: BasePolicy
    """ready to act"""
    steps: int
    """environment steps that it was trained for, as the file says"""

    def policy_on(
        self, spec: Spec, family: str, *, deterministic: bool, device: torch.device | str = "cpu"
    ) -> FixedPolicy:
        """The policy on worlds of `spec`.

        Raises:
            UsageError: if it takes other observations or gives other actions.
        """
        found, wanted = self.policy.observation_space, spec.obs_dim
        size = None if found.shape is None else int(np.prod(found.shape))
        if not isinstance(found, gym.spaces.Box) or size != wanted:
            told = size == wanted + spec.task_dim
            raise UsageError(
                f"{self.path}: the model takes observations of {size} numbers, {family} shows "
                f"{wanted}" + ("; if it was told the task, add --sees-task" if told else "")
            )
        bridge = self._bridge(spec, family)
        return FixedPolicy(self.policy, bridge, deterministic, device)

    def _bridge(self, spec: Spec, family: str) -> Bridge:
        """What carries the policy's actions to the worlds."""
        mine, theirs = self.policy.action_space, spec.action_space
        usual = Bridge(spec.observation_space, theirs)
        if mine == usual.action_space:
            return usual
        if mine == theirs and isinstance(theirs, gym.spaces.Box):
            # Actions in the family's own units pass as they are.
            return Bridge(spec.observation_space, box(-1.0, 1.0, int(theirs.low.size)))
        raise UsageError(
            f"{self.path}: the model acts in {mine}, {family} takes {theirs}"
            + (f" or {usual.action_space}" if theirs != usual.action_space else "")
        )


def read_archive(path: Path, *, trust: bool = False, device: torch.device | str = "cpu") -> Archive:
    """Read the policy of an archive.

    Args:
        path: what `model.save` wrote.
        trust: let the library load it, which executes code from the file.
        device: where the policy shall live.

    Raises:
        UsageError: if there is no such file, it is no such archive, or its policy cannot be built
            without unpickling.
    """
    weights, notes = _read(path)
    steps = notes.get("num_timesteps")
    kind = next((kind for name, kind in _KINDS.items() if name in weights), None)
    if kind is None:
        raise UsageError(f"{path}: the model is none of PPO, A2C, SAC, TD3 and DDPG")
    try:
        policy = _load(path, kind, device) if trust else _build(weights, notes).to(device)
    except _Unreadable as error:
        raise UsageError(f"{path}: {error}" + ("" if trust else _TRUST)) from error
    policy.set_training_mode(False)
    return Archive(path, policy, steps if type(steps) is int else 0)


def _read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights and the readable notes in the file at `path`; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as file:
            _require_no_bomb(file, path.stat().st_size)
            weights = _weights(file.read("policy.pth"))
            notes = json.loads(file.read("data"))
        if not isinstance(notes, dict):
            raise ValueError("data is not an object")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{path} is not a zip archive, as Stable-Baselines3 saves models"
        ) from error
    except KeyError as error:
        raise UsageError(
            f"{path} is not an archive of Stable-Baselines3: it lacks policy.pth or data"
        ) from error
    except Exception as error:  # a crafted file can make the readers raise anything
        raise UsageError(f"{path}: its policy.pth or data is damaged or unsafe") from error
    return weights, notes


def _require_no_bomb(file: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError if `file` unpacks to more than its `size`; the library never compresses."""
    if sum(entry.file_size for entry in file.infolist()) > size:
        raise ValueError("unpacks to more than its size")


def _weights(raw: bytes) -> Weights:
    """Plain tensors from `policy.pth`, none larger than the bytes that hold it."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        _require_no_bomb(file, len(raw))
    weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    if not all(isinstance(x, Tensor) for x in weights.values()):
        raise ValueError("more than tensors")
    if sum(x.numel() * x.element_size() for x in weights.values()) > len(raw):
        raise ValueError("tensors larger than the file")
    return dict(weights)


def _load(path: Path, kind: Any, device: torch.device | str) -> BasePolicy:
    """The policy as the library loads it, executing what the file says."""
    # Settings of training, which often hold code of another version of Python.
    unneeded = {"learning_rate": 0.0, "lr_schedule": 0.0, "clip_range": 0.0, "buffer_size": 1}
    try:
        policy: BasePolicy = kind.load(path, device=device, custom_objects=unneeded).policy
    except Exception as error:  # the code in the file can raise anything
        reason = " ".join(str(error).split())
        raise _Unreadable(f"Stable-Baselines3 cannot load it: {reason}") from error
    return policy


def _build(weights: Weights, notes: dict[str, Any]) -> BasePolicy:
    """An `MlpPolicy` with layers as wide as the weights say."""
    settings, actions = _settings(notes), _action_space(notes)
    dim = int(actions.n if isinstance(actions, gym.spaces.Discrete) else actions.low.size)
    on_policy = "action_net.weight" in weights
    shared: dict[str, Any] = {
        "action_space": actions,
        "lr_schedule": lambda _: 0.0,
        "activation_fn": _activation(settings, nn.Tanh if on_policy else nn.ReLU),
    }
    policy: BasePolicy
    try:
        if on_policy:
            policy = _actor_critic(weights, dim, shared)
        else:
            policy = _actor_and_critics(weights, dim, shared)
        policy.load_state_dict(weights)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise _Unreadable("the model is not an MlpPolicy of PPO, A2C, SAC, TD3 or DDPG") from error
    return policy


# Before anything is built its size is compared with the weights: they fit into the memory already.


def _actor_critic(weights: Weights, dim: int, shared: dict[str, Any]) -> BasePolicy:
    """The policy of PPO and A2C for `dim` actions."""
    head = weights["action_net.weight"]
    actor, value = (_widths(weights, f"mlp_extractor.{x}_net") for x in ("policy", "value"))
    size = [*actor, *value, int(head.shape[1])][0]
    _require(actor[:1] in ([], [size]) and value[:1] in ([], [size]))
    _require(head.shape == ([size, *actor][-1], dim)[::-1])
    arch = {"pi": actor[1:], "vf": value[1:]}
    return ActorCriticPolicy(_vectors(size), net_arch=arch, **shared)


def _actor_and_critics(weights: Weights, dim: int, shared: dict[str, Any]) -> BasePolicy:
    """The policy of SAC, TD3 and DDPG for `dim` actions."""
    soft = "actor.latent_pi.0.weight" in weights
    if soft:
        actor = [*_widths(weights, "actor.latent_pi"), int(weights["actor.mu.weight"].shape[0])]
    else:
        actor = _widths(weights, "actor.mu")
    critic = _widths(weights, "critic.qf0")
    critics = {name.split(".")[1] for name in weights if name.startswith("critic.qf")}
    _require(actor[-1] == dim and critic[0] == actor[0] + dim and len(critics) <= _MOST_CRITICS)
    arch = {"pi": actor[1:-1], "qf": critic[1:-1]}
    kind = SACPolicy if soft else TD3Policy
    return kind(_vectors(actor[0]), net_arch=arch, n_critics=len(critics), **shared)


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("layers do not fit each other")


def _widths(weights: Weights, name: str) -> list[int]:
    """Input width and outputs of the linear layers of the network `name`; empty without layers."""
    pattern = re.compile(re.escape(name) + r"\.(\d+)\.weight")
    found = {int(m[1]): weights[m[0]] for m in map(pattern.fullmatch, weights) if m}
    layers = [found[index] for index in sorted(found)]
    _require(all(layer.dim() == 2 for layer in layers))
    _require(all(b.shape[1] == a.shape[0] for a, b in pairwise(layers)))
    return [int(layers[0].shape[1]), *(int(layer.shape[0]) for layer in layers)] if layers else []


def _vectors(size: int) -> gym.spaces.Box:
    return box(-LARGEST, LARGEST, size)


def _settings(notes: dict[str, Any]) -> dict[str, Any]:
    """The readable settings of the policy, if they are those of a plain `MlpPolicy`."""
    kind, settings = notes.get("policy_class"), notes.get("policy_kwargs")
    module = kind.get("__module__") if isinstance(kind, dict) else None
    if module not in [f"stable_baselines3.{name}" for name in _POLICIES]:
        raise _Unreadable(f"its policy is of {module}, not one of the library's")
    if not isinstance(settings, dict):
        raise _Unreadable("the settings of its policy are not readable")
    for name, value in settings.items():
        if name not in _HARMLESS and not (name == "use_sde" and str(value) == "False"):
            raise _Unreadable(f"its policy was built with {name} = {value}")
    return settings


def _activation(settings: dict[str, Any], usual: type[nn.Module]) -> type[nn.Module]:
    if "activation_fn" not in settings:
        return usual
    name = str(settings["activation_fn"]).rstrip("'>").rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise _Unreadable(f"its activation function is {settings['activation_fn']}")
    return _ACTIVATIONS[name]


def _action_space(notes: dict[str, Any]) -> gym.spaces.Box | gym.spaces.Discrete:
    """The model's own actions, from what is noted beside the pickled space."""
    try:
        noted, seen = notes["action_space"], notes["observation_space"][":type:"]
        if "spaces.box.Box" not in seen:
            raise ValueError("observations are no vectors of numbers")
        if "spaces.discrete.Discrete" in noted[":type:"] and int(noted["start"]) == 0:
            return gym.spaces.Discrete(int(noted["n"]))
        if "spaces.box.Box" not in noted[":type:"]:
            raise ValueError("actions are neither numbers nor one of several")
        low, high = (
            np.array([float(x) for x in noted[name].strip("[]").split()], dtype=np.float32)
            for name in ("low", "high")
        )
        return box(low, high)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise _Unreadable("its spaces are not readable") from error
