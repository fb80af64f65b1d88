"""The families that tests go through one by one: all, but of Meta-World's hundred a few."""

from metarl.envs.metaworld.names import PREFIX
from metarl.envs.registry import FAMILIES

METAWORLD = (
    "metaworld-ml1-reach",
    "metaworld-ml10",
    "metaworld-mt1-door-open",
    "metaworld-mt10",
)
"""one skill and several, the goal hidden and shown"""
NAMES = tuple(name for name in FAMILIES if not name.startswith(PREFIX) or name in METAWORLD)
SHORT = {name: (name, {"horizon": 40}) for name in METAWORLD}
"""their episodes end where the package's do, after 500 steps, unless shorter ones are asked for"""
