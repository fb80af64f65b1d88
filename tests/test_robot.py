"""What all robots share: trials that are over rest, and actions fill the range of the actuators."""

from dataclasses import replace

import pytest
import torch

from metarl.envs.physics import CpuPhysics
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.registry import make_family
from metarl.envs.robot_worlds import RobotWorlds
from metarl.rollout import run_trials

WORLDS = 8
SEEN = ("obs", "action", "reward", "final_obs", "terminated", "truncated", "episode", "elapsed")


class RandomPolicy:
    """Uniform actions, the same in every trial."""

    def __init__(self, actions):
        self.actions = actions

    def begin(self, num_tasks, worlds_per_task):
        self.generator = torch.Generator().manual_seed(0)

    def act(self, obs):
        return 2 * torch.rand(len(obs), self.actions, generator=self.generator) - 1

    def observe(self, step):
        pass


def started(family, **options):
    env = RobotWorlds(family, CpuPhysics(family.model(), WORLDS), **options)
    env.set_tasks(family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(3)))
    return env


@pytest.mark.parametrize("name", ["ant-dir", "walker2d-rand-params", "hopper-rand-params"])
def test_resting_worlds_change_nothing_that_counts(name, monkeypatch):
    family = make_family(name)
    policy = RandomPolicy(*family.action_space.shape)
    steps, trials = [], []
    for rests in (True, False):
        env = started(family)
        if not rests:
            env.rest = lambda worlds: None
        stepped = []
        step = env.physics.step

        def counted(ctrl, n, worlds=None, step=step, stepped=stepped):
            stepped.append(WORLDS if worlds is None else int(worlds.sum()))
            return step(ctrl, n, worlds)

        monkeypatch.setattr(env.physics, "step", counted)
        trials.append(run_trials(policy, env, 2))
        steps.append(sum(stepped))
    lazy, busy = trials
    assert torch.equal(lazy.active, busy.active)
    for field in SEEN:
        mine, theirs = (getattr(trial, field)[lazy.active] for trial in trials)
        assert torch.equal(mine, theirs), field
    assert steps[0] == lazy.steps < steps[1]


def test_worlds_wake_up_with_the_next_reset():
    env = started(make_family("half-cheetah-vel"))
    env.reset()
    env.rest(torch.arange(WORLDS) < 4)
    before = env.physics.field("qpos").clone()
    env.step(torch.ones(WORLDS, 6))
    moved = (env.physics.field("qpos") != before).any(1)
    assert moved.tolist() == [False] * 4 + [True] * 4
    env.reset()
    before = env.physics.field("qpos").clone()
    env.step(torch.ones(WORLDS, 6))
    assert (env.physics.field("qpos") != before).any(1).all()


def test_actions_fill_the_range_of_the_actuators():
    env = started(make_family("humanoid-dir"))
    low, high = env.physics.model.compiled.actuator_ctrlrange.T
    for action, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2), (7.0, high)):
        command = env.commands(torch.full((WORLDS, len(low)), action))
        torch.testing.assert_close(command[0].double(), torch.from_numpy(expected.copy()))


def test_hidden_dynamics_act_and_are_not_told():
    family = make_family("half-cheetah-rand-params")
    hidden = Randomization((Vary("density", 2.0, 2.0), Vary("action_delay", 1.0, 1.0)))
    plain, other = started(family), started(family, hidden=hidden)
    assert torch.equal(plain.tasks.features(), other.tasks.features())
    mass = other.physics.state_dict()["model.body_mass"]
    torch.testing.assert_close(mass, 2 * plain.physics.state_dict()["model.body_mass"])
    delays = [env._disturbances.settings.action_delay for env in (plain, other)]
    assert torch.equal(delays[0] + 1, delays[1])


def test_nominal_robots_move_as_those_that_are_not_randomised():
    """Through the first episode and into the next, bit for bit."""
    varied = make_family("half-cheetah-rand-params")
    plain = replace(varied, randomize=Randomization())
    records = []
    for family, split in ((varied, "nominal"), (plain, "train")):
        env = RobotWorlds(family, CpuPhysics(family.model(), WORLDS))
        env.set_tasks(family.sample_tasks(WORLDS, split, torch.Generator()))
        records.append(run_trials(RandomPolicy(6), env, 2))
    assert torch.equal(records[0].obs, records[1].obs)
    assert torch.equal(records[0].reward, records[1].reward)
