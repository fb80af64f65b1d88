"""Meta-learning agents and the references they are compared with."""

if __name__ != "metarl.agents":
    raise ImportError("import metarl.agents: the folder agents/ of a checkout is not a package by itself")
