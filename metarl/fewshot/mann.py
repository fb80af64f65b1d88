"""Memory-augmented neural networks: write the support set to a memory, look queries up in it.

Santoro, Bartunov, Botvinick, Wierstra and Lillicrap 2016, "Meta-Learning with Memory-Augmented
Neural Networks", section 3.2. With keys k, memory rows M(i), cosine similarity K and decay γ:

    w_r ← softmax_i(β K(k, M(i)))          r = Σ_i w_r(i) M(i)                     (read)
    w_w = σ(α) w_r' + (1 - σ(α)) w_lu      M(i) ← M(i) + w_w(i) k                  (write)
    w_u ← γ w_u' + w_r + w_w               w_lu = the least used row by w_u'       (usage)

where ' marks the step before; the least used row is emptied before it is written. Three things
differ. Keys have a strength β (Graves et al. 2014, eq. 5): cosines alone hardly tell 128 rows
apart. Each of the heads has a least used row of its own. And a label comes together with its input,
not one step later: the delay hides the label from a learner that has to name the same input, and
here the points that are asked for are others, which come without a label. They only read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import UsageError, require_between, require_positive
from metarl.fewshot.encoding import Embedding, as_sequence, encode_labels
from metarl.fewshot.episodes import Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor
from metarl.fewshot.networks import NetworkConfig

EMPTY = 1e-6
"""what an empty memory holds: a cosine with zero has no direction"""
STRENGTH = 5.0
"""about what β starts from, so that a row like the key stands out from the start"""


@dataclass(frozen=True)
class MANNConfig(LearnerConfig):
    """Sizes of the controller and of its memory."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(norm="running"))
    """what inputs go through before the controller reads them"""
    embedding: int = 64
    """numbers that an input becomes"""
    controller: int = 200
    """units of the LSTM"""
    rows: int = 128
    """rows of the memory"""
    row_size: int = 40
    """numbers in a row"""
    heads: int = 4
    """places read, and written, at each step"""
    decay: float = 0.95
    """γ, how much of the usage is remembered"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no memory."""
        super().__post_init__()
        require_positive(self, ("embedding", "controller", "rows", "row_size", "heads"), "learner")
        require_between(self, ("decay",), "learner", 0.0, 1.0)
        if self.heads > self.rows:
            raise UsageError(f"learner: heads must be at most rows ({self.rows}), got {self.heads}")


@dataclass(frozen=True)
class Memory:
    """All that a network remembers of B tasks; N rows of W numbers, H heads."""

    rows: Tensor
    """`[B, N, W]`"""
    usage: Tensor
    """`[B, N]`, w_u"""
    read: Tensor
    """`[B, H, N]`, w_r"""
    found: Tensor
    """`[B, H * W]`, what was read"""
    hidden: Tensor
    """`[B, controller]`, the output of the LSTM"""
    cell: Tensor
    """`[B, controller]`, its cell"""


def address(keys: Tensor, strength: Tensor, rows: Tensor) -> Tensor:
    """Where to read, by content: keys `[B, H, W]`, strengths `[B, H]` to weights `[B, H, N]`."""
    cosine = F.normalize(keys, dim=-1) @ F.normalize(rows, dim=-1).mT
    return (strength.unsqueeze(-1) * cosine).softmax(-1)


def least_used(usage: Tensor, heads: int) -> Tensor:
    """One row for each head, the least used first, as one-hot weights `[B, H, N]`.

    Of rows that are used equally the first ones are taken.
    """
    order = usage.argsort(dim=-1, stable=True)[:, :heads]
    return F.one_hot(order, usage.shape[-1]).to(usage.dtype)


class MemoryNetwork(nn.Module):
    """A controller LSTM with an external memory, and what goes in and out of it."""

    def __init__(self, spec: TaskSpec, config: MANNConfig) -> None:
        """Build it for the tasks of `spec`."""
        super().__init__()
        self.config, self.outputs = config, spec.outputs
        self.embedding = Embedding(spec.input_shape, config.network, config.embedding)
        found = config.heads * config.row_size
        inputs = config.embedding + spec.outputs + found
        self.controller = nn.LSTMCell(inputs, config.controller)
        # For each head: a key, its strength β and the gate α of what is written where.
        self.interface = nn.Linear(config.controller, config.heads * (config.row_size + 2))
        self.output = nn.Linear(config.controller + found, spec.outputs)

    def empty(self, like: Tensor) -> Memory:
        """The memory before anything was seen, of B tasks, on the device of `like` `[B, ...]`."""
        c, tasks = self.config, len(like)
        read = like.new_zeros(tasks, c.heads, c.rows)
        read[..., 0] = 1.0
        return Memory(
            rows=like.new_full((tasks, c.rows, c.row_size), EMPTY),
            usage=like.new_zeros(tasks, c.rows),
            read=read,
            found=like.new_zeros(tasks, c.heads * c.row_size),
            hidden=like.new_zeros(tasks, c.controller),
            cell=like.new_zeros(tasks, c.controller),
        )

    def control(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, ...]:
        """Step the LSTM: hidden and cell `[B, C]`, keys `[B, H, W]`, β and σ(α) `[B, H]`."""
        read = torch.cat([inputs, memory.found], -1)
        hidden, cell = self.controller(read, (memory.hidden, memory.cell))
        emitted = self.interface(hidden).unflatten(-1, (self.config.heads, -1))
        keys, strength, gate = emitted.split([self.config.row_size, 1, 1], -1)
        strength = 1.0 + F.softplus(strength.squeeze(-1) + STRENGTH)
        return hidden, cell, keys.tanh(), strength, gate.squeeze(-1).sigmoid()

    def store(self, inputs: Tensor, memory: Memory) -> Memory:
        """Write one labelled input `[B, I]` of each task."""
        hidden, cell, keys, strength, gate = self.control(inputs, memory)
        free = least_used(memory.usage, self.config.heads)
        write = gate.unsqueeze(-1) * memory.read + (1.0 - gate).unsqueeze(-1) * free
        kept = memory.rows * (1.0 - free.sum(1)).unsqueeze(-1)
        rows = kept + write.mT @ keys
        read = address(keys, strength, rows)
        usage = self.config.decay * memory.usage + (read + write).sum(1)
        return Memory(rows, usage, read, (read @ rows).flatten(1), hidden, cell)

    def look_up(self, inputs: Tensor, memory: Memory) -> Tensor:
        """Outputs `[B, Q, D]` for inputs `[B, Q, I]`, each as if it alone came next."""
        tasks, queries = inputs.shape[:2]

        def each(of_task: Tensor) -> Tensor:
            return of_task.repeat_interleave(queries, 0)

        found, hidden, cell = map(each, (memory.found, memory.hidden, memory.cell))
        state = replace(memory, found=found, hidden=hidden, cell=cell)
        hidden, _, keys, strength, _ = self.control(inputs.flatten(0, 1), state)
        keys = keys.view(tasks, -1, self.config.row_size)
        read = address(keys, strength.view(tasks, -1), memory.rows)
        found = (read @ memory.rows).view(tasks * queries, -1)
        y: Tensor = self.output(torch.cat([hidden, found], -1))
        return y.view(tasks, queries, -1)


class MANN(Learner):
    """Reads the support set point after point into a memory."""

    config: MANNConfig
    network: MemoryNetwork

    def build(self) -> nn.Module:
        """The controller and its embedding."""
        return MemoryNetwork(self.spec, self.config)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Store the support set in a random order; there are no steps."""
        network = self.network
        support = as_sequence(support, self.generator if network.training else None)
        features = network.embedding(support.x)
        labels = encode_labels(support.y, self.spec).to(features.dtype)
        memory = network.empty(features)
        for point in torch.cat([features, labels], -1).unbind(1):
            memory = network.store(point, memory)

        def predict(x: Tensor) -> Prediction:
            features = network.embedding(x)
            unknown = features.new_zeros(*features.shape[:2], network.outputs)
            return Prediction(network.look_up(torch.cat([features, unknown], -1), memory))

        return predict
