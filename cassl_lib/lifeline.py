"""A process that ends when its parent dies, however it dies: `python -m cassl_lib.lifeline MODULE ARGUMENTS`.

A parent that is killed cannot stop its children, and they would go on alone: torchrun with all its processes, or the
runs of a table. Such a child is started through this module, which looks after its parent and ends it.

    command = [sys.executable, "-m", "cassl_lib.lifeline", "torch.distributed.run", ...]
    subprocess.Popen(command, env=lifeline.environment())
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

VARIABLE = "CASSL_LIFELINE"  # process id of the parent that started this process
SECONDS_BETWEEN = 0.5  # of looking whether the parent is alive
PATIENCE = 40.0  # seconds; torchrun itself gives its processes 30 to end


def environment() -> dict[str, str]:
    """The environment for a child of this process."""
    return os.environ | {VARIABLE: str(os.getpid())}


def follow_parent() -> None:
    """End this process, by SIGTERM, when its parent dies. The parent is known before Python has started, if it told."""
    parent = int(os.environ.get(VARIABLE) or os.getppid())
    threading.Thread(target=_end_with, args=(parent,), name="lifeline", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:  # another process adopts the children of a dead one
        time.sleep(SECONDS_BETWEEN)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes it on to its processes
    time.sleep(PATIENCE)
    os._exit(1)


def main() -> None:
    """Run a module as `python -m` does, in a process that ends with its parent."""
    follow_parent()
    os.environ[VARIABLE] = str(os.getpid())  # for this process's own children
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
