"""Task families and the worlds that run them."""

if __name__ != "metarl.envs":
    raise ImportError("import metarl.envs: envs/ alone is no package")
