"""Meta-reinforcement learning in PyTorch: tasks, worlds, rollouts and policies that adapt.

Nothing heavy is imported here, so that the command line answers at once; import what you need from
the modules, for example ``from metarl.adaptation import evaluate``.
"""

import os

__version__ = "0.1.0"

# In a checkout, envs/, agents/ and experiments/ lie beside this folder and not in it. Python is
# told where to look, so that `python -m metarl.experiments...` works there after any install.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_checkout, "pyproject.toml")):
    __path__.append(_checkout)
