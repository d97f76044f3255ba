"""Run a `flsys` command that ends when its parent does: `python -m flsys_ray.commands.with_parent up ...`.

The parent holds the other end of the command's standard input and never writes. However it ends, `kill -9` included,
the system closes that end, and the command gets the signal that a service manager would send.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Run the command that the arguments name."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    runpy.run_module("flsys_ray", run_name="__main__")


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
