"""GridNavi and mazes, against the published figures and slow, obvious versions."""

from collections import deque

import pytest
import torch

from metarl.envs.gridnavi import GOALS, GridTasks
from metarl.envs.layouts import is_held_out, reachable, spanning_trees, walls_between
from metarl.envs.registry import make_family
from metarl.errors import UsageError

# --- GridNavi ------------------------------------------------------------------------------------

SWEEP = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (3, 1), (3, 2), (3, 3), (3, 4), (2, 4), (1, 4)]
SWEEP += [(0, 4), (0, 3), (1, 3), (2, 3)]
"""Tests a new goal in every step but the first: nothing can find the goal sooner on average."""
REST = [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2), (4, 3), (4, 4)]
"""The shortest way through all cells that the sweep leaves out."""
ACTION = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (0, -1): 3, (-1, 0): 4}


def straight(goal):
    """A shortest path from the start to `goal`."""
    return [(x, 0) for x in range(1, goal[0] + 1)] + [(goal[0], y) for y in range(1, goal[1] + 1)]


def follow(path, goal):
    """The 15 actions that walk along `path` and stay at `goal` once it is reached."""
    actions, here = [], (0, 0)
    for _ in range(15):
        there = here if here == goal or not path else path.pop(0)
        actions.append(ACTION[there[0] - here[0], there[1] - here[1]])
        here = there
    return actions


def play_gridnavi(episodes):
    """Returns of each episode, mean over the goals; `episodes(goal)` lists the paths to follow."""
    family = make_family("gridnavi")
    env = family.make_worlds(len(GOALS))
    env.set_tasks(GridTasks(goal=torch.tensor(GOALS)))
    env.reset()
    plans = [[follow(list(p), divmod(g, 5)) for p in episodes(divmod(g, 5))] for g in GOALS]
    returns = []
    for k in range(len(plans[0])):
        total = torch.zeros(len(GOALS), dtype=torch.float64)
        for t in range(15):
            _, reward, _, truncated, info = env.step(torch.tensor([plan[k][t] for plan in plans]))
            total += reward.double()
            assert torch.equal(info["success"], (reward == 1.0).float())
            assert bool(truncated.all()) == (t == 14)
        returns.append(float(total.mean()))
    return returns


def test_bayes_optimal_sweep_earns_the_published_optimum():
    def plan(goal):
        known = straight(goal) if goal in SWEEP else REST
        return [SWEEP, known, straight(goal), straight(goal)]

    returns = play_gridnavi(plan)
    assert returns[0] == pytest.approx(4.0, abs=1e-6)
    for later in returns[1:]:
        assert later == pytest.approx(11.0714, abs=1e-4)
    assert sum(returns) == pytest.approx(37.214, abs=1e-3)


def test_oracle_walks_straight_to_the_goal():
    assert play_gridnavi(lambda goal: [straight(goal)])[0] == pytest.approx(11.0714, abs=1e-4)


def test_gridnavi_walks_like_the_rule_book():
    family = make_family("gridnavi", observation="xy", horizon=1000)
    one_hot = make_family("gridnavi", horizon=1000)
    tasks = family.sample_tasks(8, "train", torch.Generator().manual_seed(0))
    envs = [f.make_worlds(8) for f in (family, one_hot)]
    for env in envs:
        env.set_tasks(tasks)
        env.reset()
    place = [(0, 0)] * 8
    moves = {v: k for k, v in ACTION.items()}
    for actions in torch.randint(5, (300, 8)):
        obs, reward, *_ = envs[0].step(actions)
        cells, *_ = envs[1].step(actions)
        for i, action in enumerate(actions.tolist()):
            x, y = (a + b for a, b in zip(place[i], moves[action], strict=True))
            place[i] = (min(max(x, 0), 4), min(max(y, 0), 4))
            assert tuple(obs[i].tolist()) == place[i]
            assert int(cells[i].argmax()) == 5 * place[i][0] + place[i][1]
            on_goal = divmod(int(tasks.goal[i]), 5) == place[i]
            assert float(reward[i]) == pytest.approx(1.0 if on_goal else -0.1)


def test_every_21_goals_are_all_of_them():
    family = make_family("gridnavi")
    for split in family.splits:
        goal = family.sample_tasks(2 * 21, split, torch.Generator().manual_seed(1)).goal.tolist()
        assert sorted(goal[:21]) == sorted(goal[21:]) == sorted(GOALS)
        assert goal[:21] != goal[21:]
    assert not {0, 1, 5, 6} & set(GOALS)


def test_bad_gridnavi_options_are_refused():
    with pytest.raises(UsageError, match="observation must be one of xy, one-hot, got 'pixels'"):
        make_family("gridnavi", observation="pixels")


# --- mazes ---------------------------------------------------------------------------------------

MAZES = [{}, {"openness": 0.0}, {"openness": 0.9}, {"size": 7}, {"variant": "key-door"}]
MAZES += [{"variant": "key-door", "size": 7, "openness": 0.9}, {"size": 21}]
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


def mazes(n, split="train", seed=0, **options):
    return make_family("maze", **options).sample_tasks(
        n, split, torch.Generator().manual_seed(seed)
    )


def distances(walls, start):
    """Steps from `start` to every cell that can be reached, by breadth-first search."""
    found, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for dy, dx in STEPS:
            there = (here[0] + dy, here[1] + dx)
            if not walls[there[0]][there[1]] and there not in found:
                found[there] = found[here] + 1
                queue.append(there)
    return found


def places(tasks, i):
    return tuple(
        tuple(getattr(tasks, name)[i].tolist()) for name in ("start", "goal", "key", "door")
    )


@pytest.mark.parametrize("options", MAZES)
def test_every_maze_can_be_solved(options):
    for split in ("train", "held-out"):
        tasks = mazes(150, split, **options)
        size = tasks.walls.shape[-1]
        for i in range(len(tasks)):
            walls = tasks.walls[i].tolist()
            start, goal, key, door = places(tasks, i)
            assert all(walls[0]) and all(walls[-1])
            assert all(row[0] and row[-1] for row in walls)
            reached = distances(walls, start)
            assert len(reached) == size * size - sum(map(sum, walls))
            assert start != goal and goal in reached
            if options.get("variant") == "key-door":
                assert len({start, goal, key, door}) == 4
                walls[door[0]][door[1]] = True
                closed = distances(walls, start)
                assert key in closed and goal not in closed
            else:
                assert key == door == (0, 0)


def test_openness_sets_how_many_walls_fall():
    rooms, doors = 25, 40
    floor = {p: (~mazes(400, openness=p).walls).sum((1, 2)).double() for p in (0.0, 0.3, 0.9)}
    assert (floor[0.0] == rooms + rooms - 1).all()
    spare = doors - (rooms - 1)
    for p in (0.3, 0.9):
        expected = rooms + rooms - 1 + p * spare
        assert float(floor[p].mean()) == pytest.approx(expected, abs=0.4)


def test_start_and_goal_can_be_any_room():
    tasks = mazes(3000)
    for place in (tasks.start, tasks.goal):
        assert (place % 2 == 1).all()
        rooms, counts = torch.unique(place, dim=0, return_counts=True)
        assert len(rooms) == 25
        assert counts.min() > 3000 / 25 * 0.6


def test_no_layout_is_in_both_splits():
    """Small mazes have so few layouts that chance alone would share many."""
    options = {"size": 7, "openness": 0.0}
    layouts = {
        split: set(map(tuple, mazes(5000, split, **options).walls.flatten(1).tolist()))
        for split in ("train", "held-out")
    }
    # 192 spanning trees of a 3x3 lattice: every one is drawn, and each is in one split.
    assert len(layouts["train"]) + len(layouts["held-out"]) == 192
    assert not layouts["train"] & layouts["held-out"]
    assert 25 <= len(layouts["held-out"]) <= 55


def test_a_fifth_of_large_layouts_is_held_out():
    ends = walls_between(5)
    trees = spanning_trees(torch.rand(5000, len(ends)), ends)
    assert float(is_held_out(trees).double().mean()) == pytest.approx(0.2, abs=0.02)


def test_trees_join_all_rooms_without_loops():
    for side in (2, 3, 5):
        ends = walls_between(side)
        assert len(ends) == 2 * side * (side - 1)
        trees = spanning_trees(torch.rand(50, len(ends)), ends)
        assert (trees.sum(-1) == side * side - 1).all()
        for start in range(side * side):
            assert reachable(trees, ends, torch.full((50,), start)).all()


def test_reachable_stops_at_closed_passages():
    ends = walls_between(2)  # rooms 0 1 / 2 3; passages 0-1, 2-3, 0-2, 1-3
    passages = torch.tensor([[True, False, False, False], [False, True, True, False]])
    expected = [[True, True, False, False], [True, False, True, True]]
    assert reachable(passages, ends, torch.tensor([0, 3])).tolist() == expected


class SlowMaze:
    """One maze in plain Python."""

    def __init__(self, tasks, i, key_door):
        self.walls, self.key_door = tasks.walls[i].tolist(), key_door
        self.start, self.goal, self.key, self.door = places(tasks, i)
        self.reset()

    def reset(self):
        self.here, self.has_key = self.start, False

    def wall(self, y, x):
        inside = 0 <= y < len(self.walls) and 0 <= x < len(self.walls)
        return not inside or self.walls[y][x]

    def step(self, action):
        there = tuple(a + b for a, b in zip(self.here, STEPS[action], strict=True))
        locked = self.key_door and there == self.door and not self.has_key
        if not self.wall(*there) and not locked:
            self.here = there
        if self.key_door and self.here == self.key:
            self.has_key = True
        return (1.0, True) if self.here == self.goal else (-0.01, False)

    def see(self):
        y, x = self.here
        window = [(y + i, x + j) for i in range(-2, 3) for j in range(-2, 3)]
        obs = [self.wall(*c) for c in window] + [c == self.goal for c in window] + [y, x]
        if self.key_door:
            obs += [c == self.key and not self.has_key for c in window]
            obs += [c == self.door for c in window] + [self.has_key]
        return [float(v) for v in obs]


@pytest.mark.parametrize("variant", ["goal", "key-door"])
def test_mazes_walk_like_the_slow_version(variant):
    family = make_family("maze", size=7, variant=variant, openness=0.2)
    tasks = family.sample_tasks(12, "train", torch.Generator().manual_seed(4))
    env = family.make_worlds(12)
    env.set_tasks(tasks)
    obs, _ = env.reset()
    slow = [SlowMaze(tasks, i, variant == "key-door") for i in range(12)]
    assert obs.tolist() == [maze.see() for maze in slow]
    found = keys = 0
    for actions in torch.randint(4, (600, 12)):
        obs, reward, terminated, truncated, info = env.step(actions)
        for i, maze in enumerate(slow):
            expected, at_goal = maze.step(int(actions[i]))
            assert float(reward[i]) == pytest.approx(expected)
            assert bool(terminated[i]) == at_goal == bool(info["success"][i])
            assert info["final_obs"][i].tolist() == maze.see()
            keys += maze.has_key
            if at_goal or truncated[i]:
                found += at_goal
                maze.reset()
            assert obs[i].tolist() == maze.see()
    assert found > 3
    assert variant == "goal" or keys > 10


def test_the_shortest_way_ends_at_the_goal():
    family = make_family("maze")
    tasks = family.sample_tasks(50, "held-out", torch.Generator().manual_seed(5))
    env = family.make_worlds(50)
    env.set_tasks(tasks)
    obs, _ = env.reset()
    maps = [distances(tasks.walls[i].tolist(), places(tasks, i)[1]) for i in range(50)]
    length = torch.tensor([maps[i][places(tasks, i)[0]] for i in range(50)])
    for t in range(1, int(length.max()) + 1):
        actions = []
        for i, (y, x) in enumerate(obs[:, 50:52].long().tolist()):
            around = [maps[i].get((y + dy, x + dx), 999) for dy, dx in STEPS]
            actions.append(around.index(min(around)))
        obs, reward, terminated, _, _ = env.step(torch.tensor(actions))
        first = t <= length
        assert torch.equal(terminated[first], (length == t)[first])
        assert (reward[terminated] == 1.0).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 5}, "size must be a whole number of at least 7"),
        ({"size": 10}, "size must be odd, 7 to 41, got 10"),
        ({"size": 43}, "size must be odd, 7 to 41, got 43"),
        ({"variant": "lava"}, "variant must be one of goal, key-door, got 'lava'"),
        ({"openness": 0.91}, "openness must lie in 0..0.9, got 0.91"),
        ({"openness": float("nan")}, "openness must lie in 0..0.9, got nan"),
    ],
)
def test_bad_maze_options_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        make_family("maze", **options)
