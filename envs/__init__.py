"""Task families and the worlds that run them."""

if __name__ != "metarl.envs":
    raise ImportError("import metarl.envs: the folder envs/ of a checkout is not a package by itself")
