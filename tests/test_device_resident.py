"""Every agent trains on a pretended GPU as it does on a CPU, and collecting waits for nothing."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import PretendGpu, Wait, pretend_gpu
from ragged import Ragged
from torch.utils._pytree import tree_leaves, tree_map

from metarl.adaptation import evaluate
from metarl.envs.registry import make_family
from metarl.errors import TrainingError
from metarl.experiments.agents import AGENTS
from metarl.experiments.loading import as_seen_by, build_agent
from metarl.optimization import gradient_step, require_finite
from metarl.rollout import run_trials
from metarl.runs import RunConfig, RunFolder
from metarl.tasks import Family
from metarl.training import TrainingConfig, _AgentInWorlds, train

PPO = {"layers": (8,), "epochs": 2, "minibatches": 2}
RL2 = {**PPO, "embedding": 8, "hidden": 8, "chunk": 5, "final_learning_rate": 2e-3}
PEARL = {
    **{"layers": (8,), "encoder_layers": (8,), "train_tasks": 4, "collect_tasks": 2},
    **{"initial_episodes": 1, "prior_episodes": 1, "posterior_episodes": 1, "updates": 3},
    **{"batch": 8, "meta_batch": 4, "context": 6, "capacity": 50, "context_capacity": 30},
}
VARIBAD = {
    **{**PPO, "embedding": 8, "hidden": 8, "latent": 3, "capacity": 9},
    **{"vae_updates": 2, "vae_batch": 4, "beliefs": 5, "decodes": 6},
}
GRADIENT = {"layers": (8, 8), "meta_batch": 2, "rollouts": 2, "baseline": "none"}
SB3 = {"layers": (8,), "iteration_steps": 5, "learning_starts": 8, "batch_size": 4}


@dataclass(frozen=True)
class Case:
    """An agent and a family, both small."""

    agent: str
    family: str | Family
    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.agent}-{getattr(self.family, 'name', self.family)}"

    def build(self, device: str, seed: int) -> tuple[Any, Any, Family]:
        """The agent, its worlds, and the family as it sees it."""
        config = AGENTS[self.agent].config_class()(**self.config)
        family = self.family
        if isinstance(family, str):
            family = make_family(family, **self.options)
        family = as_seen_by(self.agent, family, config)
        worlds = config.meta_batch * config.rollouts if AGENTS[self.agent].plans else 4
        agent = build_agent(self.agent, config, family, seed=seed, device=device)
        return agent, family.make_worlds(worlds, device=device, seed=seed), family


CASES = [
    Case("rl2", "gridnavi", RL2, {"horizon": 5, "episodes": 2}),
    Case("rl2", "bandit", {**RL2, "reward_norm": True}, {"episodes": 4}),
    Case("rl2", "tabular-mdp", RL2, {"horizon": 4, "episodes": 2}),
    Case("varibad", "gridnavi", {**VARIBAD, "reward_decoder": "heads"}, {"horizon": 5}),
    Case("varibad", "point-dense", {**VARIBAD, "encoder_gradients": True}, {"horizon": 5}),
    Case("pearl", "point-dense", PEARL, {"horizon": 5}),
    Case(
        "pearl-paper",
        "point-sparse",
        {**PEARL, "variant": "paper", "encoder": "recurrent", "independent": 0.5}
        | {"initial_actions": "repeated", "context_episodes": 2, "deterministic": 0.5},
        {"horizon": 5},
    ),
    Case("maml", "point-dense", {**GRADIENT, "baseline": "linear", "rollouts": 4}, {"horizon": 5}),
    Case("promp", "navigation-2d", {**GRADIENT, "baseline": "value"}, {"horizon": 5}),
    Case("non-adaptive", "maze", PPO, {"horizon": 5, "episodes": 2}),
    Case("oracle", "point-sparse", PPO, {"horizon": 5, "episodes": 2}),
]
OTHERS = [
    Case("sb3-ppo", "gridnavi", {"layers": (8,), "n_steps": 8, "minibatches": 2, "epochs": 1}),
    Case("sb3-sac", "point-dense", {**SB3, "buffer_size": 100}, {"horizon": 5}),
    Case("sb3-sac", "point-dense", {**SB3, "from_scratch": True}, {"horizon": 5, "episodes": 1}),
]


def home(state: Any) -> Any:
    """Copies of all tensors, on the CPU."""
    return tree_map(lambda x: x.detach().cpu() if isinstance(x, torch.Tensor) else x, state)


def saved(agent: Any, env: Any) -> tuple[Any, dict[str, bytes]]:
    """What a checkpoint holds."""
    streams = {}
    for name, buffer in agent.buffers().items():
        buffer.write(file := BytesIO())
        streams[name] = file.getvalue()
    return home(deepcopy((agent.state_dict(), env.state_dict()))), streams


def run(case: Case, device: str) -> tuple[list[dict[str, float]], Any, Any]:
    """Two iterations, an evaluation, and a third iteration, also from what was saved before."""
    agent, env, family = case.build(device, seed=1)
    figures = [agent.train_step(env, k / 3) for k in range(2)]
    tasks = family.sample_tasks(2, "held-out", torch.Generator().manual_seed(7))
    test = family.make_worlds(4, device=device, seed=2)
    curve = evaluate(agent.policy(), test, tasks, family.episodes, seed=3)
    (of_agent, of_env), streams = saved(agent, env)
    figures.append(agent.train_step(env, 2 / 3))
    again, worlds, _ = case.build(device, seed=1)
    again.load_state_dict(of_agent)
    worlds.load_state_dict(of_env)
    for name, buffer in again.buffers().items():
        buffer.read(BytesIO(streams[name]))
    assert again.train_step(worlds, 2 / 3) == figures[-1]
    return figures, curve, home(agent.state_dict())


def assert_equal(case: Case, monkeypatch: pytest.MonkeyPatch) -> PretendGpu:
    """A run on a pretended GPU gives the bits of one on the CPU; what happened on the way."""
    # Policies that adapt by gradients have a tanh of their own on a CPU.
    monkeypatch.setattr("metarl.agents.gradient_adaptation.tanh", torch.tanh)
    # On a CPU PEARL draws latents only where an episode ended: other numbers would come after.
    monkeypatch.setattr("metarl.agents.pearl_policy._may_hold", lambda flags: True)
    figures, curve, state = run(case, "cpu")
    with pretend_gpu() as gpu:
        there = run(case, "cuda")
    assert there[:2] == (figures, curve)
    pairs = list(zip(tree_leaves(there[2]), tree_leaves(state), strict=True))
    assert len(pairs) > 3
    for mine, other in pairs:
        same = torch.equal if isinstance(mine, torch.Tensor) else type(mine).__eq__
        assert same(mine, other)
    return gpu


def within(gpu: PretendGpu, *functions: str) -> list[Wait]:
    """What the host waited for, or copied to the device, within all of `functions`."""
    return [w for w in gpu.waits + gpu.uploads if {*functions} <= {*w.callers}]


def is_look(wait: Wait) -> bool:
    """Whether it is the look that is taken once per horizon."""
    return wait.where.endswith("in run_trials")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_iterations_give_the_figures_of_the_cpu_and_collecting_never_waits(case, monkeypatch):
    gpu = assert_equal(case, monkeypatch)
    training = within(gpu, "run_trials", "train_step")
    assert training
    assert [w for w in training if not is_look(w)] == []
    judging = [w for w in within(gpu, "run_trials", "evaluate") if not is_look(w)]
    if AGENTS[case.agent].plans:  # it has to know when a task may adapt
        judging = [w for w in judging if "_adapt" not in w.callers]
        assert judging
        judging = [w for w in judging if not w.where.endswith("in observe")]
    assert judging == []


EARLY = [
    Case("rl2", Ragged(), RL2),
    Case("pearl", Ragged(), PEARL),
    Case("maml", Ragged(episodes=6), {**GRADIENT, "outer": "vpg", "inner": "meta-sgd"}),
]


@pytest.mark.parametrize("case", EARLY, ids=str)
def test_episodes_that_end_early_are_collected_without_waiting_too(case, monkeypatch):
    monkeypatch.setattr("metarl.agents.gradient_adaptation.tanh", torch.tanh)
    monkeypatch.setattr("metarl.agents.pearl_policy._may_hold", lambda flags: True)
    agent, env, _ = case.build("cpu", seed=1)
    plain = agent.train_step(env, 0.0)
    with pretend_gpu() as gpu:
        agent, env, family = case.build("cuda", seed=1)
        there = agent.train_step(env, 0.0)
        tasks = family.sample_tasks(2, "train", torch.Generator().manual_seed(7))
        evaluate(agent.policy(), family.make_worlds(4, device="cuda"), tasks, family.episodes)
    assert [w for w in within(gpu, "run_trials", "train_step") if not is_look(w)] == []
    # A GPU learns only later that all trials are over; what it draws until then counts nowhere.
    assert there["return_first"] == plain["return_first"]
    assert there["steps"] == plain["steps"] or case.agent != "rl2"


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_agents_of_stable_baselines3_learn_in_worlds_on_a_gpu(case, monkeypatch):
    assert assert_equal(case, monkeypatch).waits  # numpy is what they speak


class Still:
    """A policy that does nothing."""

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        self.worlds = num_tasks * worlds_per_task

    def act(self, obs):
        return torch.zeros(self.worlds, dtype=torch.int64, device=obs.device)

    def observe(self, step) -> None:
        pass


def test_a_trial_is_looked_at_once_per_horizon():
    family = make_family("gridnavi", horizon=5, episodes=3)
    with pretend_gpu() as gpu:
        env = family.make_worlds(4, device="cuda")
        env.set_tasks(family.sample_tasks(4, "train", torch.Generator().manual_seed(0)))
        uploads = len(gpu.uploads)
        rollout = run_trials(Still(), env, 3)
        assert len(rollout.obs) == 15
        assert len(gpu.waits) == 3
        assert len(gpu.uploads) == uploads


@pytest.mark.parametrize(
    ("case", "more"),
    [
        (CASES[0], {"minibatches": 5}),
        (CASES[3], {"vae_updates": 6, "minibatches": 5}),
        (CASES[5], {"updates": 9}),
        (CASES[6], {"updates": 9}),
    ],
    ids=str,
)
def test_more_gradient_steps_wait_no_more_often(case, more):
    waits = []
    for config in (case.config, {**case.config, **more}):
        with pretend_gpu() as gpu:
            agent, env, _ = replace(case, config=config).build("cuda", seed=1)
            agent.train_step(env, 0.0)
        waits.append(sorted(w.where for w in gpu.waits))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gradient_that_is_not_finite_is_told(device):
    with pretend_gpu():
        x = torch.zeros(2, device=device, requires_grad=True)
        unseen: list[torch.Tensor] = []
        optimizer = torch.optim.Adam([x])
        gradient_step((x + 1.0).sum(), optimizer, 1.0, "who", unseen)
        require_finite(unseen, "who")
        with pytest.raises(TrainingError, match="who: the gradient is not finite"):
            gradient_step(x.sum() * float("nan"), optimizer, 1.0, "who", unseen)
            require_finite(unseen, "who")


def trained(path: Path, case: Case, device: str, *budgets: int) -> list[dict[str, Any]]:
    """What the trainer logs, where it is stopped at each budget but the last and goes on."""
    run = RunFolder.create(path, RunConfig(case.agent, {}, str(case.family), {}))
    for number, steps in enumerate(budgets):
        agent, _, family = case.build(device, seed=1)
        config = TrainingConfig(steps, num_worlds=4, evaluate_every=60, evaluation_tasks=2)
        train(agent, family, run, config, resume=number > 0, device=device)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: x for k, x in json.loads(line).items() if "time" not in k} for line in lines]


@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=str)
def test_a_run_on_a_gpu_logs_and_resumes_as_one_on_the_cpu(case, tmp_path, monkeypatch):
    monkeypatch.setattr("metarl.agents.pearl_policy._may_hold", lambda flags: True)
    # Checkpoints hold tensors of torch's own class only, which those of a GPU are.
    states = _AgentInWorlds.states
    monkeypatch.setattr(_AgentInWorlds, "states", lambda self: home(states(self)))
    plain = trained(tmp_path / "cpu", case, "cpu", 120)
    with pretend_gpu():
        there = trained(tmp_path / "cuda", case, "cuda", 60, 120)
    assert len(plain) > 3
    assert there == plain


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_agent_that_was_trained_on_a_gpu_is_opened_on_a_cpu(case):
    agent, _, _ = case.build("cpu", seed=1)
    state = agent.state_dict()
    assert "generator" in state
    # What generators of CUDA devices save: a seed and an offset.
    state["generator"] = torch.tensor([3, 4]).view(torch.uint8)
    again, _, _ = case.build("cpu", seed=2)
    again.load_state_dict(state)
    found, network = again.state_dict(), "networks" if "networks" in state else "network"
    assert all(torch.equal(p, found[network][name]) for name, p in state[network].items())
