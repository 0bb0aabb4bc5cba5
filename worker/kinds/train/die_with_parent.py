"""`python -m forebay.worker.kinds.train.die_with_parent PARENT MODULE …`: run a module in a process that dies with its parent.

The kernel sends SIGKILL when the parent is gone, however it went, so no trainer goes on without the worker that holds its job's
lease. Linux only: elsewhere the module just runs. Knows nothing of training.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

OWN_PID = "{pid}"  # in an argument: this process, as the parent of those that it starts in its turn
PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; exit at once when it is gone already."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


def main() -> None:
    """Run the module in this process."""
    die_with(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = [module, *(arg.replace(OWN_PID, str(os.getpid())) for arg in sys.argv[3:])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
