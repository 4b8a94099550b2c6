"""A process that must not outlive its parent: the kernel kills it as soon as the parent is gone."""

import ctypes
import os
import signal
import sys
import threading
import time

# From Linux' sys/prctl.h.
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0
ORPHANED = 70


def die_with_parent(parent: int) -> None:
    """End this process within seconds of the death of `parent`, the process id that started it.

    A parent that was killed may be started again at once: an orphan must not write beside its successor.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()
    # It may have died before the kernel was asked.
    if os.getppid() != parent:
        os._exit(ORPHANED)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(ORPHANED)
