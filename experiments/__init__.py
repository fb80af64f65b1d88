"""Published settings, the command line, benchmarks and studies."""

if __name__ != "metarl.experiments":
    raise ImportError("import metarl.experiments: experiments/ alone is no package")
