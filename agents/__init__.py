"""Meta-learning agents and the references they are compared with."""

if __name__ != "metarl.agents":
    raise ImportError("import metarl.agents: agents/ alone is no package")
