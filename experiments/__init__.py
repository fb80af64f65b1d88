"""Published settings, the command line, benchmarks and studies."""

if __name__ != "metarl.experiments":
    raise ImportError("import metarl.experiments: the folder experiments/ of a checkout is not a package by itself")
