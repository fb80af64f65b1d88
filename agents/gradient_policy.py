"""The adaptive policy of MAML, ProMP and their relatives: it stores episodes and steps on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Baseline,
    Episodes,
    prepare,
    where_finite,
)
from metarl.inner_loop import own_copies
from metarl.layers import Params
from metarl.policy import Step
from metarl.tasks import Spec


class GradientPolicy:
    """Acts by parameters `[N, ...]` of each task, and takes a gradient step when it may.

    All worlds of a task share its parameters. Once each of them has finished its share of the
    configured number of episodes, the task takes a gradient step on these; episodes that are under
    way then go on as they began, and only later ones are learned from.

    A step whose result is not finite is not taken.

    Whether a task is ready to take one has to be known at every step of its worlds: on a GPU that
    is one look a step, which waits for the device, until the last gradient step is taken.

    It learns from actions that it draws. Only after the last gradient step of a trial, from whose
    actions nothing will be learned, may it take the most likely ones.
    """

    def __init__(
        self,
        network: AdaptingPolicy,
        spec: Spec,
        baseline: Baseline,
        deterministic: bool,
        generator: torch.Generator,
    ) -> None:
        """Adapt `network`; `deterministic` takes the most likely actions after the last step."""
        self.network, self.spec, self.baseline = network, spec, baseline
        self.config: AdaptationConfig = network.config
        self.deterministic, self.generator = deterministic, generator

    @torch.no_grad()
    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: all tasks have the meta-learned parameters, and no episodes."""
        worlds, device = num_tasks * worlds_per_task, self.generator.device
        self.shape = num_tasks, worlds_per_task
        self.episodes = math.ceil(self.config.rollouts / worlds_per_task)
        self.last_step = (self.spec.episodes - 1) // self.episodes
        own = own_copies(self.network.start(), num_tasks)
        self.params: Params = {name: p.detach().clone() for name, p in own.items()}
        self.before = {name: p.clone() for name, p in self.params.items()}
        self.steps = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        self.finished = torch.zeros(worlds, dtype=torch.int64, device=device)
        self.elapsed, self.stored = torch.zeros_like(self.finished), torch.zeros_like(self.finished)
        self.stale = torch.zeros(worlds, dtype=torch.bool, device=device)
        self.mixed, self.over = False, self.last_step == 0
        self.memory: dict[str, Tensor] = {}

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Choose actions for `obs` `[B, O]`, each by the parameters that its episode began with."""
        self.obs, split = obs, obs.unflatten(0, self.shape)
        action = self._choose(self.params, split)
        if self.mixed:
            other = self._choose(self.before, split)
            stale = self.stale.view(-1, *[1] * (action.dim() - 1))
            action = torch.where(stale, other, action)
        self.action = action
        return action

    def _choose(self, params: Params, obs: Tensor) -> Tensor:
        """Actions `[B, ...]` for observations `[N, W, O]`."""
        chances = self.network.chances(params, obs)
        action = chances.sample(self.generator)
        if self.deterministic:
            over = (self.steps >= self.last_step).view(-1, *[1] * (action.dim() - 1))
            action = torch.where(over, chances.mode(), action)
        return action.flatten(0, 1)

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Store what the action brought; take a gradient step in tasks that have seen enough."""
        done = step.terminated | step.truncated
        wanted = (self.steps < self.last_step).repeat_interleave(self.shape[1])
        recording = wanted & ~self.stale & (self.finished < self.episodes)
        if not self.over:
            self._store(recording, reward=step.reward, done=done)
        self.finished += recording & done
        self.stale &= ~done
        self.elapsed = (self.elapsed + 1) * ~done
        ready = (self.finished >= self.episodes).view(self.shape).all(1)
        if self.mixed or not self.over:
            self.mixed, adapts = torch.stack([self.stale.any(), ready.any()]).tolist()
            if adapts:
                self._adapt(ready.nonzero().squeeze(1))

    def _store(self, recording: Tensor, **brought: Tensor) -> None:
        """Append a step to the memories of the worlds that are `recording`."""
        parts = {"obs": self.obs, "action": self.action, "elapsed": self.elapsed, **brought}
        if not self.memory:
            limit = self.episodes * self.spec.horizon
            self.memory = {name: x.new_zeros(limit, *x.shape) for name, x in parts.items()}
        # Worlds that record nothing write back what is in their first row: nothing looks at which.
        row = self.stored * recording
        world = torch.arange(len(row), device=row.device)
        for name, x in parts.items():
            there = self.memory[name][row, world]
            wanted = recording.view(-1, *[1] * (x.dim() - 1))
            self.memory[name][row, world] = torch.where(wanted, x, there)
        self.stored += recording

    def _adapt(self, tasks: Tensor) -> None:
        """Take a gradient step in each of `tasks` `[n]`, and begin to collect anew there."""
        worlds = torch.arange(len(self.stored), device=tasks.device).view(self.shape)[tasks]
        longest = int(self.stored[worlds].max())
        kept = {name: x[:longest, worlds] for name, x in self.memory.items()}
        time = torch.arange(longest, device=tasks.device).view(-1, 1, 1)
        episodes = Episodes(**kept, valid=time < self.stored[worlds])
        mine = {name: p[tasks] for name, p in self.params.items()}
        batch = prepare(
            episodes, lambda obs: self.network.chances(mine, obs), self.config, self.baseline
        )
        adapted = self.network.adapted([batch], second_order=False, params=mine)
        for name, p in where_finite(adapted, mine).items():
            self.before[name][tasks] = mine[name]
            self.params[name][tasks] = p
        self.steps[tasks] += 1
        self.over = bool((self.steps >= self.last_step).all())
        flat = worlds.flatten()
        self.stale[flat] = self.elapsed[flat] > 0
        self.mixed = bool(self.stale.any())
        self.finished[flat] = 0
        self.stored[flat] = 0
