"""PEARL: off-policy meta-RL by inference over a latent task (Rakelly et al. 2019).

An encoder turns context, transitions (s, a, r) of a task in any order, into a belief q(z | c).
SAC learns on replay with z as a part of the state. To adapt is to infer: the policy draws z from
the prior, acts for an episode as if z were the truth, and draws anew from what the belief has
become, so that exploring is trying hypotheses out.

The encoder learns from the Bellman loss and the KL to the prior alone; policy, value and
temperature see z detached. Rewards are scaled in the Bellman target only, never in the context. A
time limit is no terminal state.

Shapes: `M` tasks of an update, `B` transitions of a task, `C` transitions of a context, `O`
observation, `A` action, `Z` latent, `E` = 2 critics; `T`, `N`, `W` as in rollouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from metarl.acceleration import for_learning
from metarl.agents.pearl_policy import PearlPolicy
from metarl.agents.sac import SACConfig, SoftActorCritic, actor_losses, bellman, next_value
from metarl.context import ENCODERS, Encoder, first, join
from metarl.errors import UsageError, require_between, require_widths
from metarl.exploration import RepeatedActions
from metarl.generators import policy_generator, restore_generator
from metarl.optimization import gradient_step, load_optimizer, require_finite, set_learning_rate
from metarl.policy import AdaptivePolicy
from metarl.replay import MultiTaskReplay
from metarl.rollout import Rollout, run_trials
from metarl.storage import Field
from metarl.tasks import Spec, TaskBatch
from metarl.vector import VectorEnv


@dataclass(frozen=True)
class PearlConfig(SACConfig):
    """Settings of PEARL."""

    name: ClassVar[str] = "pearl"
    encoder: Literal["product", "likelihood", "recurrent"] = "product"
    """product of Gaussians, likelihoods that weigh the prior, or a GRU over the context"""
    latent: int = 5
    """dimensions of z"""
    encoder_layers: tuple[int, ...] = (64, 64, 64)
    """hidden layers of the encoder"""
    next_obs_in_context: bool = False
    """show the encoder the next observation too, for tasks that differ in their dynamics"""
    train_tasks: int = 100
    """training tasks, drawn once; each has its own replay"""
    collect_tasks: int = 5
    """training tasks visited per iteration, each in an equal share of the worlds"""
    initial_actions: Literal["policy", "repeated"] = "policy"
    """before the first update act by the untrained policy, or repeat one action for an episode"""
    initial_episodes: int = 10
    """episodes in every world of every training task before the first update"""
    prior_episodes: int = 2
    """episodes of a trial with z from the prior; from then on it is from the belief"""
    posterior_episodes: int = 3
    """further episodes of a trial while collecting"""
    deterministic: float = 0.0
    """share of the worlds that act by the mean while collecting, as they do when adapting"""
    posterior_in_context: bool = False
    """learn to infer from the further episodes too, not only from those with z from the prior"""
    context: int = 100
    """transitions of a context, drawn independently"""
    independent: float = 1.0
    """share of the contexts that are drawn independently, as published"""
    context_episodes: int = 4
    """the others are the first 1 to this many episodes of a trial, as they come when adapting"""
    context_capacity: int = 10_000
    """most recent transitions of a task that contexts are drawn from"""
    meta_batch: int = 16
    """tasks of a gradient step"""
    kl_weight: float = 0.1
    """weight of the KL to the prior, summed over tasks and latent dimensions"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        counts = "latent train_tasks initial_episodes prior_episodes meta_batch"
        contexts = "context context_episodes context_capacity"
        require_between(self, [*counts.split(), *contexts.split()], self.name, 1)
        require_between(self, ("posterior_episodes", "kl_weight"), self.name, 0)
        require_between(self, ("independent", "deterministic"), self.name, 0, 1)
        require_between(self, ("collect_tasks",), self.name, 1, self.train_tasks)
        require_widths(self, ("encoder_layers",), self.name)


class PearlNetworks(nn.Module):
    """The encoder, and SAC on states [s, z]."""

    def __init__(self, spec: Spec, config: PearlConfig) -> None:
        """Build the networks for the spaces of `spec`."""
        super().__init__()
        states = spec.obs_dim + config.latent
        self.sac = SoftActorCritic(states, spec.action_space, config.layers, config.variant)
        shown = spec.obs_dim * (1 + config.next_obs_in_context)
        self.context_dim = shown + len(self.sac.low) + 1
        encoder = ENCODERS[config.encoder]
        self.encoder: Encoder = encoder(self.context_dim, config.encoder_layers, config.latent)

    def transition(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> Tensor:
        """What the encoder sees of a transition: [s, a, r] or [s, a, r, s'], `[..., X]`."""
        parts = [obs, self.sac.from_env(action), reward.unsqueeze(-1), next_obs]
        return torch.cat(parts, -1)[..., : self.context_dim]


@dataclass(frozen=True)
class Batch:
    """Transitions of M tasks `[M, B, ...]`, actions in [-1, 1], and contexts `[M, C, X]`."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    context: Tensor
    mask: Tensor | None
    """bool `[M, C]`: which transitions of the context there are; None for all"""


def losses(
    networks: PearlNetworks, batch: Batch, config: PearlConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """The losses of one update; their gradients are those of updating each network by its own."""
    tasks, actions = len(batch.action), batch.action.shape
    shapes = [(tasks, config.latent), *[actions] * (2 if config.variant == "modern" else 1)]
    device = batch.obs.device
    noise = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    return losses_of(networks, batch, config, noise[0], noise[1], noise[-1])


@for_learning
def losses_of(
    networks: PearlNetworks,
    batch: Batch,
    config: PearlConfig,
    latent: Tensor,
    following: Tensor,
    acting: Tensor,
) -> dict[str, Tensor]:
    """The losses with noise for z `[M, Z]`, for next actions and for actions `[M, B, A]`."""
    sac = networks.sac
    belief = networks.encoder(batch.context, batch.mask)
    z = belief.sample(latent).unsqueeze(1).expand(-1, batch.obs.shape[1], -1)
    state, next_state = (torch.cat([obs, z], -1) for obs in (batch.obs, batch.next_obs))
    value = next_value(sac, next_state, following)
    target = config.reward_scale * batch.reward + config.gamma * ~batch.terminated * value
    return {
        "bellman": bellman(sac, state, batch.action, target),
        "kl": config.kl_weight * belief.kl_to_prior().sum(),
        **actor_losses(sac, state.detach(), acting),
    }


class Pearl:
    """Meta-trains `PearlNetworks` on the replay of a fixed set of training tasks."""

    def __init__(
        self, config: PearlConfig, spec: Spec, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Build networks with weights drawn from `seed`, and empty replay."""
        self.config, self.spec, self.device = config, spec, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = PearlNetworks(spec, config).to(device)
        trained = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        self.train_tasks: TaskBatch | None = None
        obs, actions = (spec.obs_dim,), tuple(self.networks.sac.low.shape)
        shapes = {"obs": obs, "action": actions, "reward": (), "next_obs": obs}
        fields: dict[str, Field] = {name: (s, torch.float32) for name, s in shapes.items()}
        fields["terminated"] = ((), torch.bool)
        x: dict[str, Field] = {"x": ((self.networks.context_dim,), torch.float32)}
        folder = Path(config.replay_folder) if config.replay_folder else None
        n, room = config.train_tasks, config.context_capacity
        self.replay = MultiTaskReplay(n, config.capacity, fields, device=device, folder=folder)
        self.contexts = MultiTaskReplay(n, room, x, device=device)

    @property
    def refuses(self) -> dict[str, str]:
        """What of `metarl.acceleration` it cannot be trained with, and why."""
        if self.config.encoder != "recurrent":
            return {}
        return {
            "compile": "pearl: compile is not for encoder recurrent, whose memory would be "
            "unrolled; choose encoder product or likelihood"
        }

    def policy(self, deterministic: bool = True) -> PearlPolicy:
        """The present policy; its latents are drawn, also when its actions are not."""
        own = policy_generator(self.device)
        return PearlPolicy(self.networks, self.config.prior_episodes, deterministic, own)

    def buffers(self) -> dict[str, MultiTaskReplay]:
        """The replay and the contexts."""
        return {"replay": self.replay, "contexts": self.contexts}

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """Visit some training tasks, then update on the replay of all of them."""
        config, generator = self.config, self.task_generator
        if env.num_envs % config.collect_tasks:
            raise UsageError(
                f"pearl: the number of worlds must be a multiple of collect_tasks "
                f"({config.collect_tasks}), got {env.num_envs}"
            )
        if self.train_tasks is None:
            # Drawn from the seed alone, so that a resumed run draws the same.
            drawn = torch.Generator().manual_seed(generator.initial_seed())
            self.train_tasks = env.family.sample_tasks(config.train_tasks, "train", drawn)
        rates = config.learning_rate, config.final_learning_rate
        set_learning_rate(self.optimizer, *rates, progress)
        steps = 0 if bool(self.replay.size.any()) else self.begin(env)
        ids = torch.randperm(config.train_tasks, generator=generator)[: config.collect_tasks]
        prior, share = config.prior_episodes, config.deterministic
        explorer = PearlPolicy(self.networks, prior, share, self.generator)
        episodes = prior + config.posterior_episodes
        rollout = self.collect(env, ids, explorer, episodes, every=config.posterior_in_context)
        steps += rollout.steps
        returns = rollout.per_episode(rollout.reward, episodes).mean((0, 1)).tolist()
        ends = {"return_first": returns[0], "return_last": returns[-1]}
        return {"steps": steps, **ends, **self.learn()}

    def begin(self, env: VectorEnv) -> int:
        """Visit every training task for the first time; the number of steps taken."""
        config, sac, steps = self.config, self.networks.sac, 0
        explorer: AdaptivePolicy = RepeatedActions(sac.low, sac.high, self.generator)
        if config.initial_actions == "policy":
            explorer = PearlPolicy(self.networks, config.initial_episodes, 0.0, self.generator)
        for begin in range(0, config.train_tasks, config.collect_tasks):
            # The last group is filled up: the number of worlds is what it is.
            ids = torch.arange(begin, begin + config.collect_tasks) % config.train_tasks
            steps += self.collect(env, ids, explorer, config.initial_episodes, every=True).steps
        return steps

    def collect(
        self, env: VectorEnv, ids: Tensor, explorer: AdaptivePolicy, episodes: int, every: bool
    ) -> Rollout:
        """Run a trial in every world of the tasks `ids`; their contexts begin anew with it.

        Contexts are drawn from `every` episode, or from those with z from the prior.
        """
        env.set_tasks(cast(TaskBatch, self.train_tasks)[ids])
        rollout = run_trials(explorer, env, episodes)
        flat = rollout.flat()
        tasks = ids.to(self.device).repeat_interleave(rollout.obs.shape[2])
        obs, action, next_obs, valid = (flat[k] for k in ("obs", "action", "final_obs", "valid"))
        self.replay.add(
            tasks,
            valid,
            obs=obs,
            action=self.networks.sac.from_env(action),
            reward=flat["dense_reward"],
            next_obs=next_obs,
            terminated=flat["terminated"],
        )
        shown = valid & ((flat["episode"] < self.config.prior_episodes) | every)
        x = self.networks.transition(obs, action, flat["reward"], next_obs)
        self.contexts.clear(ids.to(self.device))
        self.contexts.add(tasks, shown, x=x)
        return rollout

    def learn(self) -> dict[str, float]:
        """One iteration's updates; the mean of their losses."""
        unseen: list[Tensor] = []
        records = [self.update(self.sample(), unseen) for _ in range(self.config.updates)]
        means = [torch.stack([r[name] for r in records]).mean() for name in records[0]]
        values = torch.stack(means).tolist()  # one look at all: it waits for a GPU
        require_finite(unseen, "pearl")
        return {f"loss/{name}": x for name, x in zip(records[0], values, strict=True)}

    def _integers(self, low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=self.generator, device=self.device)

    def sample(self) -> Batch:
        """Tasks, transitions and contexts of an update."""
        config = self.config
        tasks = self._integers(0, config.train_tasks, config.meta_batch)
        context, mask = self.sample_context(tasks)
        rows = self.replay.sample(tasks, config.batch, self.generator)
        return Batch(context=context, mask=mask, **rows)

    def sample_context(self, tasks: Tensor) -> tuple[Tensor, Tensor | None]:
        """Contexts `[M, C, X]` of `tasks` and which of their transitions there are."""
        config, generator, horizon = self.config, self.generator, self.spec.horizon
        alone, trials = tasks.tensor_split([round(config.independent * len(tasks))])
        if len(trials) == 0:
            return self.contexts.sample(tasks, config.context, generator)["x"], None
        x = self.contexts.sample(alone, config.context, generator)["x"]
        length = horizon * config.context_episodes
        begun = self.contexts.sample_sequences(trials, 1, length, generator)
        episodes = self._integers(1, config.context_episodes + 1, len(trials))
        return join(x, begun["x"][:, 0], first(begun["mask"][:, 0], horizon * episodes))

    def update(self, batch: Batch, unseen: list[Tensor] | None = None) -> dict[str, Tensor]:
        """One gradient step of all networks, then the targets follow; `unseen`: `gradient_step`.

        Raises:
            TrainingError: if a gradient is not finite.
        """
        networks, config = self.networks, self.config
        terms = losses(networks, batch, config, self.generator)
        total = torch.stack(list(terms.values())).sum()
        gradient_step(total, self.optimizer, math.inf, "pearl", unseen)
        networks.sac.follow(config.tau)
        return {name: x.detach() for name, x in terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and random state; the replay is in `buffers`."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task_generator": self.task_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.networks.load_state_dict(state["networks"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.task_generator.set_state(state["task_generator"].cpu())
        restore_generator(self.generator, state["generator"])
