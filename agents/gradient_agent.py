"""Meta-training of policies that adapt by gradient steps: all but the outer step itself."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarl.acceleration import for_acting
from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Baseline,
    Batch,
    Episodes,
    check_fit,
    no_baseline,
    prepare,
    where_finite,
)
from metarl.agents.gradient_policy import GradientPolicy
from metarl.distributions import Distribution
from metarl.errors import TrainingError, UsageError
from metarl.generators import policy_generator, restore_generator
from metarl.inner_loop import own_copies
from metarl.layers import Params
from metarl.linear_baseline import fit_predict
from metarl.optimization import load_optimizer
from metarl.policy import Step
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Spec
from metarl.value_baseline import ValueBaseline
from metarl.vector import VectorEnv

ROWS = 8192
"""steps that are computed together on a CPU, a task's at least: more no longer fit its caches"""


class NotFiniteError(Exception):
    """A meta-gradient that is not finite."""

    def __init__(self, tasks: list[int]) -> None:
        """The numbers of the tasks that cause it."""
        super().__init__(tasks)
        self.tasks = tasks


@for_acting
def choose(network: AdaptingPolicy, params: Params, obs: Tensor) -> Distribution:
    """The chances of actions for `obs` `[N, W, O]` under the parameters of each task."""
    return network.chances(params, obs)


class Sampler:
    """Draws actions by parameters that stay as they are, one set for each task."""

    def __init__(self, network: AdaptingPolicy, params: Params, generator: torch.Generator) -> None:
        """Act by `params` `[N, ...]`."""
        self.network, self.params, self.generator = network, params, generator

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Note how the worlds are shared."""
        self.shape = num_tasks, worlds_per_task

    def act(self, obs: Tensor) -> Tensor:
        """Draw actions for observations `[N * W, O]`."""
        chances = choose(self.network, self.params, obs.unflatten(0, self.shape))
        return chances.sample(self.generator).flatten(0, 1)

    def observe(self, step: Step) -> None:
        """Nothing is learned."""


class GradientAgent(ABC):
    """Collects rounds of episodes, before the first gradient step and after each, and learns."""

    name: ClassVar[str]

    def __init__(
        self,
        config: AdaptationConfig,
        spec: Spec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the policy with weights drawn from `seed`.

        Raises:
            UsageError: if the episodes are too short for the baseline.
        """
        check_fit(config, spec)
        self.config, self.spec = config, spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = AdaptingPolicy(spec, config).to(device)
            self.value = ValueBaseline(spec.obs_dim, spec.horizon).to(device)
        self.meta_parameters = self.network.meta_parameters()
        self.optimizer = self.make_optimizer()
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=1e-3)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        self.skipped = 0

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """What steps the meta-parameters, where that is by an optimiser."""

    @abstractmethod
    def meta_loss(self, rounds: Sequence[Batch]) -> tuple[Tensor, Distribution]:
        """The loss of each task after adaptation, `[N]`, and what acts then on the last round."""

    @abstractmethod
    def learn(self, rounds: Sequence[Batch], progress: float) -> dict[str, float]:
        """The outer step, after a share `progress` of the training.

        Raises:
            NotFiniteError: if the meta-gradient is not finite; nothing has changed.
        """

    @property
    def refuses(self) -> dict[str, str]:
        """What of `metarl.acceleration` it cannot be trained with, and why."""
        return {
            "bfloat16": f"{self.name}: precision bfloat16 is not for policies that adapt by "
            "gradient steps, which would not come out as those of the policies that acted; choose "
            "float32 or tf32"
        }

    @property
    def worlds_per_task(self) -> int:
        """In how many worlds a task is tried at once when it is judged."""
        return self.config.worlds_per_task or self.config.rollouts

    def policy(self, deterministic: bool = True) -> GradientPolicy:
        """The present policy, which adapts; `deterministic` counts after its last step."""
        generator = policy_generator(self.generator.device)
        return GradientPolicy(self.network, self.spec, self.baseline, deterministic, generator)

    @property
    def baseline(self) -> Baseline:
        """What predicts returns."""
        of = {"linear": fit_predict, "value": self.value.predict, "none": no_baseline}
        return of[self.config.baseline]

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """Collect a round before each gradient step and one after the last; then step θ.

        Raises:
            UsageError: if the tasks cannot share the worlds.
            TrainingError: if too many iterations were skipped.
        """
        tasks = env.family.sample_tasks(self.config.meta_batch, "train", self.task_generator)
        episodes = self._episodes(env.num_envs)
        env.set_tasks(tasks)
        rounds, returns, steps = self.collect(env, episodes)
        figures = {"steps": float(steps), "return_first": returns[0], "return_last": returns[-1]}
        try:
            figures |= self.learn(rounds, progress)
            if self.config.baseline == "value":
                figures["loss/value"] = self._fit_value(rounds)
            if self.config.normalize:
                seen = [batch.obs[batch.weight > 0] for batch in rounds]
                self.network.obs_norm.update(torch.cat(seen))
        except NotFiniteError as error:
            self._skip(error.tasks, tasks.features())
        return {**figures, "skipped": float(self.skipped)}

    def _episodes(self, worlds: int) -> int:
        """Episodes of each world in a round."""
        tasks, rollouts = self.config.meta_batch, self.config.rollouts
        if worlds % tasks or rollouts % (worlds // tasks):
            raise UsageError(
                f"{self.name}: {worlds} worlds cannot be shared evenly by a meta-batch of {tasks} "
                f"tasks with {rollouts} rollouts each; take num_worlds = meta_batch * rollouts = "
                f"{tasks * rollouts}, or a part of it that meta_batch divides"
            )
        return rollouts // (worlds // tasks)

    def collect(self, env: VectorEnv, episodes: int) -> tuple[list[Batch], list[float], int]:
        """Rounds of `episodes` episodes in every world.

        Returns:
            The rounds, their mean returns of an episode, and the steps taken.
        """
        with torch.no_grad():
            own = own_copies(self.network.start(), env.num_tasks)
            params = {name: p.detach() for name, p in own.items()}
        rounds: list[Batch] = []
        returns, steps = [], 0
        for index in range(self.config.inner_steps + 1):
            if index:
                with torch.no_grad():
                    last = {"params": params, "second_order": False}
                    # A task whose step failed plays on by its old parameters; `learn` will tell.
                    params = where_finite(self.network.adapted(rounds[-1:], **last), params)
            rollout = run_trials(Sampler(self.network, params, self.generator), env, episodes)
            rounds.append(self.batch(rollout, params, final=index == self.config.inner_steps))
            returns.append(float(rollout.per_episode(rollout.reward, episodes).mean()))
            steps += rollout.steps
        return rounds, returns, steps

    def batch(self, rollout: Rollout, params: Params, final: bool) -> Batch:
        """A round made ready; only the last, which nobody adapts to, may use a denser reward."""
        episodes = Episodes.of(rollout, dense=final)
        return prepare(
            episodes, lambda obs: self.network.chances(params, obs), self.config, self.baseline
        )

    def parts(self, rounds: Sequence[Batch]) -> Iterator[list[Batch]]:
        """The rounds of a few tasks at a time: on a CPU as many as its caches hold."""
        tasks, steps = rounds[0].weight.shape
        on_cpu = rounds[0].weight.device.type == "cpu"
        size = max(1, ROWS // steps) if on_cpu else tasks
        for start in range(0, tasks, size):
            yield [batch[start : start + size] for batch in rounds]

    def meta_gradient(
        self, rounds: Sequence[Batch], kept: list[Distribution] | None = None
    ) -> float:
        """Leave the gradient of the mean loss in `.grad`; gives that loss.

        Args:
            rounds: of all tasks.
            kept: gets the distributions after adaptation, part by part, and keeps their graphs.

        Raises:
            NotFiniteError: if the gradient is not finite.
        """
        for p in self.meta_parameters:
            p.grad = torch.zeros_like(p)
        total = torch.zeros((), device=rounds[0].weight.device)
        for part in self.parts(rounds):
            losses, chances = self.meta_loss(part)
            loss = losses.sum() / len(rounds[0])
            loss.backward(retain_graph=kept is not None)
            total += loss.detach()
            if kept is not None:
                kept.append(chances)
        finite = self._finite(total).to(total.dtype)
        value, sound = torch.stack([total, finite]).tolist()  # one look at both
        if not sound:
            raise NotFiniteError(self._culprits(rounds))
        return float(value)

    def _finite(self, loss: Tensor) -> Tensor:
        grads = [p.grad for p in self.meta_parameters if p.grad is not None]
        return torch.stack([x.isfinite().all() for x in [loss, *grads]]).all()

    def _culprits(self, rounds: Sequence[Batch]) -> list[int]:
        """The tasks whose own meta-gradient is not finite."""
        found = []
        for task in range(len(rounds[0])):
            loss = self.meta_loss([batch[task : task + 1] for batch in rounds])[0].sum()
            grads = torch.autograd.grad(loss, self.meta_parameters, allow_unused=True)
            if not all(x is None or bool(x.isfinite().all()) for x in (loss, *grads)):
                found.append(task)
        return found

    def _skip(self, tasks: list[int], features: Tensor) -> None:
        """Count an iteration that changes nothing.

        Raises:
            TrainingError: if there were too many.
        """
        self.skipped += 1
        described = ", ".join(
            f"{task} ({', '.join(f'{x:.4g}' for x in features[task].tolist())})"
            for task in tasks[:5]
        )
        cause = f"caused by task {described}" if tasks else "only in the sum over tasks"
        message = f"{self.name}: the meta-gradient is not finite, {cause}"
        if self.skipped > self.config.max_skipped:
            raise TrainingError(f"{message}; it is iteration {self.skipped} of this kind")
        warnings.warn(
            f"{message}; the iteration is skipped, {self.skipped} of at most "
            f"{self.config.max_skipped} in a run",
            RuntimeWarning,
            stacklevel=3,
        )

    def _fit_value(self, rounds: Sequence[Batch]) -> float:
        """Let the value network learn from all rounds."""
        keep = torch.cat([batch.weight.flatten() for batch in rounds]) > 0
        obs, elapsed, returns = (
            torch.cat([getattr(batch, name).flatten(0, 1) for batch in rounds])[keep]
            for name in ("obs", "elapsed", "returns")
        )
        return self.value.fit(self.value_optimizer, obs, elapsed, returns, self.generator)

    def buffers(self) -> dict[str, Any]:
        """None: every batch is new."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, random state and counters."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "value": self.value.state_dict(),
            "value_optimizer": self.value_optimizer.state_dict(),
            "task_generator": self.task_generator.get_state(),
            "generator": self.generator.get_state(),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.value.load_state_dict(state["value"])
        load_optimizer(self.value_optimizer, state["value_optimizer"])
        self.task_generator.set_state(state["task_generator"].cpu())
        restore_generator(self.generator, state["generator"])
        self.skipped = state["skipped"]
