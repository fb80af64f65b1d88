"""The table of agents that the command line trains; nothing is imported before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class AgentEntry:
    """Where an agent is found and what it is told."""

    agent: str
    """`module:Class` of the agent, built as Class(config, spec, seed=..., device=...)"""
    config: str
    """`module:Class` of its config, a frozen dataclass"""
    summary: str
    """what it is, for the help text"""
    sees_task: bool = False
    """the task is part of its observation, as no agent that has to adapt may know it"""
    plans: bool = False
    """its policy adapts by a plan that depends on how many episodes a trial has"""
    ablation_names: str = ""
    """`module:NAME` of what `policy(ablation=...)` takes, where the agent has it"""
    deployable: str = ""
    """`module:function` that makes programs of its policy, where that can leave for a robot"""

    def agent_class(self) -> Any:
        """Import and return the class of the agent."""
        return resolve_name(self.agent)

    def config_class(self) -> Any:
        """Import and return the class of the config."""
        return resolve_name(self.config)

    def deploy(self, agent: Any) -> Any:
        """The policy of `agent` as a `metarl.agents.deployable.Deployable`."""
        return resolve_name(self.deployable)(agent)

    def ablations(self) -> tuple[str, ...]:
        """What can be taken away from the agent's memory, by name."""
        names = resolve_name(self.ablation_names) if self.ablation_names else ()
        return tuple(name for name in names if name != "none")


AGENTS: dict[str, AgentEntry] = {
    "rl2": AgentEntry(
        "metarl.agents.rl2:RL2",
        "metarl.agents.rl2:RL2Config",
        "a recurrent policy that learns to learn (RL²)",
        ablation_names="metarl.agents.rl2:ABLATIONS",
        deployable="metarl.agents.deployable:of_rl2",
    ),
    "pearl": AgentEntry(
        "metarl.agents.pearl:Pearl",
        "metarl.agents.pearl:PearlConfig",
        "inference over a latent task, with SAC on replay (PEARL)",
        deployable="metarl.agents.deployable:of_pearl",
    ),
    "pearl-paper": AgentEntry(
        "metarl.agents.pearl:Pearl",
        "metarl.agents.pearl:PearlConfig",
        "the same with the published networks, batches and SAC, for a GPU",
        deployable="metarl.agents.deployable:of_pearl",
    ),
    "varibad": AgentEntry(
        "metarl.agents.varibad:VariBAD",
        "metarl.agents.varibad:VariBADConfig",
        "a policy on its belief over tasks, which an auto-encoder infers (VariBAD)",
        ablation_names="metarl.agents.varibad:ABLATIONS",
        deployable="metarl.agents.deployable:of_varibad",
    ),
    "maml": AgentEntry(
        "metarl.agents.maml:MAML",
        "metarl.agents.maml:MAMLConfig",
        "gradient steps from a meta-learned start, found by TRPO (MAML)",
        plans=True,
        deployable="metarl.agents.deployable_gradient:of_gradient",
    ),
    "promp": AgentEntry(
        "metarl.agents.promp:ProMP",
        "metarl.agents.promp:ProMPConfig",
        "the same, found by several clipped steps on the same episodes (ProMP)",
        plans=True,
        deployable="metarl.agents.deployable_gradient:of_gradient",
    ),
    "maml-paper": AgentEntry(
        "metarl.agents.maml:MAML",
        "metarl.agents.maml:MAMLConfig",
        "MAML with the published batches and budget",
        plans=True,
        deployable="metarl.agents.deployable_gradient:of_gradient",
    ),
    "promp-paper": AgentEntry(
        "metarl.agents.promp:ProMP",
        "metarl.agents.promp:ProMPConfig",
        "ProMP with the published batches and budget",
        plans=True,
        deployable="metarl.agents.deployable_gradient:of_gradient",
    ),
    "non-adaptive": AgentEntry(
        "metarl.agents.rl2:RL2",
        "metarl.agents.rl2:NonAdaptiveConfig",
        "the same PPO without memory: what can be reached without adapting",
        deployable="metarl.agents.deployable:of_rl2",
    ),
    "oracle": AgentEntry(
        "metarl.agents.rl2:RL2",
        "metarl.agents.rl2:NonAdaptiveConfig",
        "the same PPO, told the task: what knowing it would be worth",
        sees_task=True,
        deployable="metarl.agents.deployable:of_rl2",
    ),
    "sb3-ppo": AgentEntry(
        "metarl.agents.baselines:SB3Agent",
        "metarl.agents.baselines:PPOConfig",
        "PPO of Stable-Baselines3, on all tasks, told the task, or from scratch on each",
        deployable="metarl.agents.deployable_sb3:of_sb3",
    ),
    "sb3-sac": AgentEntry(
        "metarl.agents.baselines:SB3Agent",
        "metarl.agents.baselines:SACConfig",
        "SAC of Stable-Baselines3, in the same three ways",
        deployable="metarl.agents.deployable_sb3:of_sb3",
    ),
    "sb3-td3": AgentEntry(
        "metarl.agents.baselines:SB3Agent",
        "metarl.agents.baselines:TD3Config",
        "TD3 of Stable-Baselines3, in the same three ways",
        deployable="metarl.agents.deployable_sb3:of_sb3",
    ),
}
