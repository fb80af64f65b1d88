"""Runs the command line in forked processes, so that twenty runs cost one import of torch.

Reads one JSON object a line: `argv`, the words after `metarl`; `log`, where the output goes; and
optionally `signal`, to be sent `delay` seconds after the file `watch` has `lines` lines. Answers
each with a line: the exit code, or minus the signal that ended the process.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from metarl.experiments.cli import main

PRELOADED = (
    "metarl.agents.pearl",
    "metarl.agents.rl2",
    "metarl.agents.varibad",
    "metarl.envs.bandits",
    "metarl.envs.gridnavi",
    "metarl.envs.half_cheetah",
    "metarl.envs.point_robots",
    "metarl.experiments.commands.fewshot",
    "metarl.experiments.commands.train",
    "metarl.experiments.fewshot_runs",
    "metarl.experiments.loading",
    "metarl.experiments.presets",
    "metarl.fewshot.maml",
    "metarl.fewshot.sinusoids",
    "metarl.training",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
)


def in_child(order):
    """Become `metarl` with the words of `order`; never returns."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = 70
    try:
        code = main(order["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def lines_in(path):
    try:
        return Path(path).read_bytes().count(b"\n")
    except OSError:
        return 0


def watch(child, order):
    """Send the signal at the moment that `order` asks for, unless the child ends before."""
    while lines_in(order["watch"]) < order["lines"]:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)
    time.sleep(order["delay"])
    os.kill(child, order["signal"])


def serve():
    """Carry out the orders on standard input, one after the other."""
    torch.set_num_threads(1)
    for name in PRELOADED:
        import_module(name)
    # The first optimiser of a process makes torch import its compiler.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            in_child(order)
        if "signal" in order:
            watch(child, order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
