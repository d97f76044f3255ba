"""The actor of one model: it holds the model's host, lets calls in, and looks at the clock."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from actors.metrics import RayMeter
from flsys_ray.cloud.hosts import ModelHost
from flsys_ray.cloud.model import DurableModel
from flsys_ray.errors import FlsysError
from flsys_ray.storage.uri import open_store

LONGEST_WAIT_S = 5.0
AFTER_ERROR_S = 1.0
CALLS = ("check_in", "submit", "give_back", "evaluate", "put_plan", "put_program", "info", "rounds")
_log = logging.getLogger(__name__)


class ModelActor:
    """One model, in a process of its own. Made again by Ray whenever it dies; the store has all that it needs.

    An error of ours is returned, not raised, so that it arrives with its type and without a traceback of this process.
    """

    def __init__(self, store_uri: str, model: str) -> None:
        self._model = model
        self._host = ModelHost(open_store(store_uri), model, time.time, RayMeter())
        self._wake = threading.Event()
        threading.Thread(target=self._watch_the_clock, name="clock", daemon=True).start()

    def call(self, name: str, *args: Any) -> Any:
        """Call one method of the model by name. Returns its result, or the `FlsysError` that it raised."""
        try:
            if name not in CALLS:
                raise FlsysError(f"ModelActor has no call {name!r}")
            method: Callable[..., Any] = getattr(DurableModel, name)
            return self._host.call(lambda model: method(model, *args))
        except FlsysError as error:
            return error
        finally:
            self._wake.set()

    def act(self, action: Any) -> FlsysError | None:
        """Start, pause, resume or stop."""
        try:
            self._host.act(action)
        except FlsysError as error:
            return error
        finally:
            self._wake.set()
        return None

    def pid(self) -> int:
        """Return the process id, for those who look after processes."""
        return os.getpid()

    def _watch_the_clock(self) -> None:
        """End rounds at their deadlines, from the first moment on: after a crash no call may come for long."""
        while True:
            try:
                wait_s = self._host.call(_tick)
            except FlsysError as error:
                _log.warning("model %s: %s", self._model, error.message)
                wait_s = AFTER_ERROR_S
            except Exception:
                _log.exception("model %s: a tick failed", self._model)
                wait_s = AFTER_ERROR_S
            self._wake.wait(wait_s)
            self._wake.clear()


def _tick(model: DurableModel) -> float:
    """Tick, and return how long to wait for the next time."""
    model.tick()
    deadline = model.next_deadline()
    if deadline is None:
        return LONGEST_WAIT_S
    return min(LONGEST_WAIT_S, max(0.0, deadline - time.time()))
