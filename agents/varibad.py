"""VariBAD: act on the observation and a belief over tasks (Zintgraf et al. 2020).

A variational auto-encoder (`metarl.agents.task_inference`) learns, from whole trials in a buffer,
to hold a belief q_t over the task after every step. The policy sees the observation and that
belief, [s_t, μ_t, log σ_t], and PPO (`metarl.ppo`) maximises the return of the trial: so it can
learn to act in order to know, which is what a Bayes-optimal agent does. The policy's gradients stop
at the belief, as published, unless `encoder_gradients` lets them through.

Shapes: `T` steps of a trial, `B` worlds, `M` trials of a gradient step, `Z` latent, `F` task
features, `X` input and `H` state of the encoder's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.acceleration import for_acting
from metarl.agents.task_inference import InferenceConfig, TaskVAE, Trials, elbo
from metarl.distributions import Distribution, Gaussian
from metarl.errors import require_between, require_positive
from metarl.generators import policy_generator, restore_generator
from metarl.networks import CategoricalHead, RunningNorm
from metarl.optimization import gradient_step, load_optimizer, require_finite, set_learning_rate
from metarl.policy import Step
from metarl.ppo import PPO, ActorCritic, Batch, PPOConfig
from metarl.replay import MultiTaskReplay
from metarl.rollout import Rollout, run_trials
from metarl.states import Stream
from metarl.tasks import Spec, TaskBatch
from metarl.vector import VectorEnv

Ablation = Literal["none", "belief-fixed", "belief-reset-every-episode"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


@dataclass(frozen=True)
class VariBADConfig(PPOConfig, InferenceConfig):
    """Settings of VariBAD; the defaults are those of the MuJoCo robots."""

    name: ClassVar[str] = "varibad"
    vae_updates: int = 4
    """gradient steps of the auto-encoder after each batch of trials"""
    vae_batch: int = 64
    """trials of such a step"""
    vae_learning_rate: float = 2e-3
    """Adam's step size there at the start"""
    vae_final_learning_rate: float = 2e-4
    """and at the end of the budget; linear in between"""
    vae_max_grad_norm: float = 0.0
    """the gradients of its sums are cut to this norm; 0 leaves them as they are"""
    capacity: int = 1000
    """trials in the buffer, before the oldest are overwritten"""
    encoder_gradients: bool = False
    """let the policy's gradients through the belief into the encoder"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        PPOConfig.__post_init__(self)
        InferenceConfig.__post_init__(self)
        require_between(self, ("vae_updates", "vae_batch", "capacity"), self.name, 1)
        require_positive(self, ("vae_learning_rate",), self.name)
        require_between(self, ("vae_final_learning_rate", "vae_max_grad_norm"), self.name, 0)


class VariBADNetwork(nn.Module):
    """The auto-encoder, and the policy and critic that see its belief."""

    def __init__(self, spec: Spec, config: VariBADConfig) -> None:
        """Build the networks for the spaces of `spec`."""
        super().__init__()
        self.spec = spec
        self.vae = TaskVAE(spec, config)
        self.belief_norm = RunningNorm(2 * config.latent)
        self.actor_critic = ActorCritic(spec, config, 2 * config.latent)

    def known(self, belief: Gaussian) -> Tensor:
        """What the policy is told of a belief: [μ, log σ], normalised, `[..., 2 Z]`."""
        return cast(Tensor, self.belief_norm(torch.cat([belief.mean, belief.log_std], -1)))

    def inputs(self, next_obs: Tensor, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        """What a step brought, as input of the encoder: [s', a, r, d] `[..., X]`."""
        after = self.actor_critic.feedback(action, reward, done)
        return torch.cat([self.actor_critic.obs_norm(next_obs), after], -1)

    def trials(self, steps: Mapping[str, Tensor]) -> Trials:
        """Trials for the auto-encoder, of fields `[T, M, ...]` as a rollout has them.

        `features` `[M, F]` are those of the tasks; `sound` is a rollout's `valid`.
        """
        obs, final_obs, action = steps["obs"], steps["final_obs"], steps["action"]
        task, done = steps["features"], steps["terminated"] | steps["truncated"]
        x = self.inputs(final_obs, action, steps["reward"], done)
        before = self.actor_critic.obs_norm(obs)
        after, taken = x[..., : self.spec.obs_dim], x[..., self.spec.obs_dim : -2]
        site = torch.zeros_like(steps["active"], dtype=torch.int64)
        if self.spec.reward_site == "next-obs":
            site = final_obs.argmax(-1)
        elif self.spec.reward_site == "action":
            site = action
        if self.spec.task_kind != "one-hot":
            task = self.actor_critic.task_norm(task)
        return Trials(
            x=x,
            step=torch.cat([before, taken, after], -1),
            reward=steps["reward"],
            site=site,
            task=task,
            active=steps["active"],
            valid=steps["sound"],
        )


@for_acting
def choose(network: VariBADNetwork, obs: Tensor, belief: Gaussian) -> Distribution:
    """The chances of actions for `obs` `[B, O]`, as the worlds show it, and beliefs `[B, Z]`."""
    actor_critic = network.actor_critic
    return actor_critic.distribution(actor_critic.obs_norm(obs), network.known(belief))


@for_acting
def absorb(network: VariBADNetwork, step: Step, action: Tensor, state: Tensor) -> Tensor:
    """The state of the encoder's memory, `[B, H]`, after what `action` brought."""
    done = step.terminated | step.truncated
    x = network.inputs(step.next_obs, action, step.reward, done)
    state = network.vae.memory(x.unsqueeze(0), state)[1]
    return state


class VariBADPolicy:
    """The adaptive policy: a belief that every step updates."""

    belief: Gaussian
    """over the latents of the worlds' tasks, `[B, Z]`"""

    def __init__(
        self,
        network: VariBADNetwork,
        deterministic: bool,
        generator: torch.Generator,
        ablation: Ablation = "none",
    ) -> None:
        """Act with `network`; an `ablation` keeps the belief from what it would learn."""
        self.network, self.deterministic, self.generator = network, deterministic, generator
        self.ablation = ablation

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: the belief is the learned prior q_0."""
        self.state = self.network.vae.memory.start(num_tasks * worlds_per_task)
        self._believe()

    @torch.no_grad()
    def _believe(self) -> None:
        self.belief = self.network.vae.belief(self.state)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Choose actions for `obs` `[B, O]` and the present belief."""
        chances = choose(self.network, obs, self.belief)
        self.action = chances.mode() if self.deterministic else chances.sample(self.generator)
        return self.action

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Update the belief by what the action brought."""
        if self.ablation == "belief-fixed":
            return
        self.state = absorb(self.network, step, self.action, self.state)
        if self.ablation == "belief-reset-every-episode":
            done = step.terminated | step.truncated
            self.state = self.state * ~done.unsqueeze(-1)
        self._believe()


class VariBAD:
    """Meta-trains the auto-encoder on a buffer of trials, and the policy by PPO on new ones."""

    def __init__(
        self,
        config: VariBADConfig,
        spec: Spec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build networks with weights drawn from `seed`.

        Raises:
            UsageError: if the decoders do not fit the tasks and trials of `spec`.
        """
        config.check(spec)
        self.config, self.spec = config, spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = VariBADNetwork(spec, config).to(device)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        vae, actor_critic = self.network.vae, self.network.actor_critic
        parameters = list(actor_critic.parameters())
        if config.encoder_gradients:
            parameters += [*vae.memory.parameters(), *vae.head.parameters()]
        self.ppo = PPO(config, spec, actor_critic, parameters, self.generator)
        self.vae_optimizer = torch.optim.Adam(
            vae.parameters(), config.vae_learning_rate, fused=True
        )
        self.trials = self._buffer(device)

    def _buffer(self, device: torch.device | str) -> MultiTaskReplay:
        """Room for whole trials, each of which is one entry."""
        spec, steps = self.spec, self.spec.episodes * self.spec.horizon
        discrete = isinstance(self.network.actor_critic.head, CategoricalHead)
        action = () if discrete else (self.network.actor_critic.feedback_dim - 2,)
        number, flag = torch.float32, torch.bool
        fields = {
            "obs": ((steps, spec.obs_dim), number),
            "final_obs": ((steps, spec.obs_dim), number),
            "action": ((steps, *action), torch.int64 if discrete else number),
            "reward": ((steps,), number),
            **{name: ((steps,), flag) for name in ("terminated", "truncated", "active", "sound")},
            "features": ((spec.task_dim,), number),
        }
        return MultiTaskReplay(1, self.config.capacity, fields, device=device)

    def policy(self, deterministic: bool = True, ablation: Ablation = "none") -> VariBADPolicy:
        """The present policy; an `ablation` keeps its belief from what it would learn."""
        generator = policy_generator(self.generator.device)
        return VariBADPolicy(self.network, deterministic, generator, ablation)

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """One trial in a new task in every world of `env`, PPO on them, then the auto-encoder."""
        network = self.network
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.task_generator))
        explorer = VariBADPolicy(network, False, self.generator)
        rollout = run_trials(explorer, env, self.spec.episodes)
        features = cast(TaskBatch, env.tasks).features()
        network.actor_critic.task_norm.update(features)
        batch, belief = self.prepare(rollout, features)
        figures = self.update(batch, min(progress, 1.0))
        valid = rollout.valid.flatten(1, 2)
        network.actor_critic.update_norm(rollout)
        network.belief_norm.update(torch.cat([belief.mean, belief.log_std], -1)[valid])
        self.remember(rollout, features)
        figures |= self.infer(min(progress, 1.0))
        returns = rollout.per_episode(rollout.reward, self.spec.episodes).mean((0, 1)).tolist()
        ends = {"return_first": returns[0], "return_last": returns[-1]}
        return {"steps": rollout.steps, **ends, **figures}

    @torch.no_grad()
    def prepare(self, rollout: Rollout, features: Tensor) -> tuple[Batch, Gaussian]:
        """What PPO learns from, and the beliefs `[T, B, Z]` before each step."""
        network, flat = self.network, rollout.flat()
        done = flat["terminated"] | flat["truncated"]
        x = network.inputs(flat["final_obs"], flat["action"], flat["reward"], done)
        hidden = network.vae.states(x)[:-1]
        belief = network.vae.belief(hidden)
        if not self.config.encoder_gradients:
            x, hidden = x[..., :0], hidden[..., :0]
        return self.ppo.prepare(rollout, features, x, hidden, network.known(belief)), belief

    def recall(self, part: Batch) -> Tensor:
        """What the policy knew in chunks `[L, C]`, through the encoder if gradients go there."""
        if not self.config.encoder_gradients:
            return part.known
        vae, start = self.network.vae, part.hidden[0]
        later = vae.memory(part.x[:-1], start)[0]
        return self.network.known(vae.belief(torch.cat([start.unsqueeze(0), later])))

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        """PPO; steps stand alone unless gradients pass through the encoder; see `PPO.update`."""
        length = self.config.chunk if self.config.encoder_gradients else 1
        return self.ppo.update(batch, self.recall, length, progress)

    def remember(self, rollout: Rollout, features: Tensor) -> None:
        """Put trials into the buffer; the newest, if there are more than fit."""
        flat, kept = rollout.flat(), slice(-self.config.capacity, None)
        flat["sound"] = flat.pop("valid")
        missing = self.spec.episodes * self.spec.horizon - len(flat["obs"])
        entries = {"features": features.repeat_interleave(rollout.obs.shape[2], 0)[kept]}
        for name in self.trials.fields.keys() - entries.keys():
            trials = flat[name].transpose(0, 1)[kept]
            entries[name] = F.pad(trials, (0, 0) * (trials.dim() - 2) + (0, missing))
        tasks = torch.zeros(len(entries["features"]), dtype=torch.int64)
        self.trials.add(tasks, **{name: x.unsqueeze(0) for name, x in entries.items()})

    def sample(self) -> Trials:
        """Trials out of the buffer, `[T, M]`."""
        count = self.config.vae_batch
        task = torch.zeros(1, dtype=torch.int64, device=self.trials.device)
        drawn = self.trials.sample(task, count, self.generator)
        features = drawn.pop("features")[0]
        steps = {name: x[0].transpose(0, 1) for name, x in drawn.items()}
        return self.network.trials({**steps, "features": features})

    def infer(self, progress: float = 0.0) -> dict[str, float]:
        """Gradient steps of the auto-encoder on trials out of the buffer.

        The step size is annealed by `progress`, in [0, 1].

        Raises:
            TrainingError: if a gradient is not finite.
        """
        config, values, unseen = self.config, list[Tensor](), list[Tensor]()
        rates = config.vae_learning_rate, config.vae_final_learning_rate
        set_learning_rate(self.vae_optimizer, *rates, progress)
        most = config.vae_max_grad_norm or float("inf")
        for _ in range(config.vae_updates):
            terms = elbo(self.network.vae, self.sample(), config, self.generator)
            loss = -terms["total"].mean()
            gradient_step(loss, self.vae_optimizer, most, config.name, unseen)
            values.append(torch.stack([x.detach().mean() for x in terms.values()]))
        columns = zip(*torch.stack(values).tolist(), strict=True)
        require_finite(unseen, config.name)
        return {f"elbo/{name}": fmean(column) for name, column in zip(terms, columns, strict=True)}

    def buffers(self) -> dict[str, Stream]:
        """The trials that the auto-encoder learns from."""
        return {"trials": self.trials}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, normalisers and random state."""
        return {
            "network": self.network.state_dict(),
            **self.ppo.state_dict(),
            "vae_optimizer": self.vae_optimizer.state_dict(),
            "task_generator": self.task_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.network.load_state_dict(state["network"])
        self.ppo.load_state_dict(state)
        load_optimizer(self.vae_optimizer, state["vae_optimizer"])
        self.task_generator.set_state(state["task_generator"].cpu())
        restore_generator(self.generator, state["generator"])
