"""The actor of one model: it holds the model's host, lets calls in, looks at the clock, and leaves when it is idle."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.gate import Gate
from actors.metrics import RayMeter
from flsys_ray.cloud.hosts import CHECK_IN_WAIT_S, ModelHost
from flsys_ray.cloud.model import DurableModel
from flsys_ray.errors import FlsysError, NotFound
from flsys_ray.storage.uri import open_store

IDLE_S = 300.0
LONGEST_WAIT_S = 5.0
AFTER_ERROR_S = 1.0
LEAVING_S = 30.0
CALLS = (
    "check_in_many",
    "submit_many",
    "give_back",
    "evaluate",
    "put_plan",
    "put_program",
    "put_shared",
    "promote",
    "rollback",
    "info",
    "rounds",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Passivated:
    """The answer of an actor that is leaving: nothing was done, call the next one."""


class ModelActor:
    """One model, in a process of its own. Made again by Ray whenever it dies; the store has all that it needs.

    After `idle_s` without a call, and with no round that has a cohort, it ends for good: the next call makes another.

    An error of ours is returned, not raised, so that it arrives with its type and without a traceback of this process.
    """

    def __init__(self, store_uri: str, model: str, idle_s: float = IDLE_S) -> None:
        self._model = model
        self._host = ModelHost(open_store(store_uri), model, time.time, RayMeter())
        self._gate = Gate(idle_s)
        self._wake = threading.Event()
        threading.Thread(target=self._watch_the_clock, name="clock", daemon=True).start()

    def call(self, name: str, *args: Any) -> Any:
        """Call one method of the model by name. Returns its result, its `FlsysError`, or `Passivated`."""
        return self._enter(lambda: self._call(name, *args))

    def act(self, action: Any) -> Any:
        """Start, pause, resume, stop or archive."""
        return self._enter(lambda: self._host.act(action))

    def pid(self) -> int:
        """Return the process id, for those who look after processes."""
        return os.getpid()

    def _call(self, name: str, *args: Any) -> Any:
        if name not in CALLS:
            raise FlsysError(f"ModelActor has no call {name!r}")
        method: Callable[..., Any] = getattr(DurableModel, name)
        return self._host.call(lambda model: method(model, *args), CHECK_IN_WAIT_S if name == "check_in_many" else -1.0)

    def _enter(self, use: Callable[[], Any]) -> Any:
        if not self._gate.enter():
            return Passivated()
        try:
            return use()
        except FlsysError as error:
            return error
        finally:
            self._gate.leave()
            self._wake.set()

    def _watch_the_clock(self) -> None:
        """End rounds at their deadlines, from the first moment on: after a crash no call may come for long."""
        while True:
            wait_s, at_rest = self._tick()
            if at_rest and self._gate.close_if_idle():
                self._leave()
            self._wake.wait(min(wait_s, max(0.1, self._gate.idle_in_s())) if at_rest else wait_s)
            self._wake.clear()

    def _tick(self) -> tuple[float, bool]:
        """Tick. Returns how long to wait for the next time, and whether the model needs nobody meanwhile."""
        try:
            found = self._host.tick(_tick)
            return (LONGEST_WAIT_S, True) if found is None else found
        except NotFound:
            return LONGEST_WAIT_S, True
        except FlsysError as error:
            _log.warning("model %s: %s", self._model, error.message)
        except Exception:
            _log.exception("model %s: a tick failed", self._model)
        return AFTER_ERROR_S, False

    def _leave(self) -> None:
        """End this process for good: Ray frees the name, and makes no actor again that was killed on purpose."""
        try:
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
            time.sleep(LEAVING_S)
        except Exception:
            _log.exception("model %s: cannot leave", self._model)
        os._exit(1)  # still here: Ray makes the actor again, with an open gate


def _tick(model: DurableModel) -> tuple[float, bool]:
    model.tick()
    deadline = model.next_deadline()
    wait_s = LONGEST_WAIT_S if deadline is None else min(LONGEST_WAIT_S, max(0.0, deadline - time.time()))
    return wait_s, model.at_rest
