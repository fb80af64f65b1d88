"""The verbs of the command line, one module each with a function `main(args) -> exit code`."""
