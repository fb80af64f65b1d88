"""A value network as a baseline: returns predicted from observation and time, over a whole run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarl.networks import RunningNorm, mlp, orthogonal
from metarl.optimization import gradient_step, require_finite


class ValueBaseline(nn.Module):
    """V(o, t), one network for all tasks, which keeps learning from the returns that it is shown.

    Unlike a baseline that is fitted to every task anew it is of use after a few short episodes. It
    is not told the task: what it predicts is the mean over those that look alike.
    """

    def __init__(self, obs_dim: int, horizon: int, layers: tuple[int, ...] = (64, 64)) -> None:
        """Build it for observations `[obs_dim]` of episodes of `horizon` steps."""
        super().__init__()
        self.horizon = horizon
        self.obs_norm, self.return_norm = RunningNorm(obs_dim), RunningNorm(1)
        self.network = mlp([obs_dim + 1, *layers])
        self.network.append(orthogonal(nn.Linear(layers[-1], 1), 1.0))

    def forward(self, obs: Tensor, elapsed: Tensor) -> Tensor:
        """Returns in units of their spread, `[...]`, of `obs` `[..., O]` and steps `[...]`."""
        time = (elapsed / self.horizon).to(obs.dtype).unsqueeze(-1)
        out: Tensor = self.network(torch.cat([self.obs_norm(obs), time], -1))
        return out.squeeze(-1)

    @torch.no_grad()
    def predict(self, obs: Tensor, elapsed: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
        """Predicted returns `[N, M]`; the true `returns` and `weight` are not looked at."""
        spread = (self.return_norm.var + 1e-8).sqrt().to(obs.dtype)
        units: Tensor = self(obs, elapsed)
        return units * spread + self.return_norm.mean.to(obs.dtype)

    def fit(
        self,
        optimizer: torch.optim.Optimizer,
        obs: Tensor,
        elapsed: Tensor,
        returns: Tensor,
        generator: torch.Generator,
        epochs: int = 5,
        rows: int = 4096,
    ) -> float:
        """Learn from the returns `[R]` of observations `[R, O]`; gives the last pass's mean loss.

        Raises:
            TrainingError: if a gradient is not finite.
        """
        self.obs_norm.update(obs)
        self.return_norm.update(returns.unsqueeze(-1))
        spread = (self.return_norm.var + 1e-8).sqrt().to(obs.dtype)
        target = (returns - self.return_norm.mean.to(obs.dtype)) / spread
        losses, unseen = list[Tensor](), list[Tensor]()
        for _ in range(epochs):
            order = torch.randperm(len(obs), generator=generator, device=obs.device)
            losses = []
            for part in order.split(rows):
                loss = (self(obs[part], elapsed[part]) - target[part]).square().mean()
                gradient_step(loss, optimizer, 1.0, "value baseline", unseen)
                losses.append(loss.detach())
        require_finite(unseen, "value baseline")
        return float(torch.stack(losses).mean())
