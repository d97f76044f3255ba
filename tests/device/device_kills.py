"""Lives of a phone in a process of their own, which may be killed at any line of `flsys_ray.device`.

The phone runs in a forked child and reaches the cloud in the parent through a pair of sockets. A kill is `os._exit` in
the middle of the line: no `finally`, no `except`, no flush runs, exactly as after SIGKILL.
"""

import os
import pickle
import shutil
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

import httpx2
from device_fakes import FakeCloud, SoftmaxProgram, live, open_phone

import flsys_ray.device
from flsys_ray.device.clock import VirtualClock

DEVICE_FOLDER = str(Path(flsys_ray.device.__file__).parent)
KILLED = 9


def send(channel: socket.socket, value: object) -> None:
    body = pickle.dumps(value)
    channel.sendall(struct.pack("!I", len(body)) + body)


def receive(channel: socket.socket) -> object | None:
    head = channel.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("!I", head)
    body = channel.recv(length, socket.MSG_WAITALL) if length else b""
    return pickle.loads(body) if len(body) == length else None


class LineCounter:
    """Calls `at_line(number, where)` before each line of the phone's code."""

    def __init__(self, at_line: Callable[[int, str], None]) -> None:
        self.number = 0
        self._at_line = at_line

    def __call__(self, frame: FrameType, event: str, _: object) -> Callable | None:
        return self._line if frame.f_code.co_filename.startswith(DEVICE_FOLDER) else None

    def _line(self, frame: FrameType, event: str, _: object) -> Callable:
        if event == "line":
            self.number += 1
            self._at_line(self.number, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return self._line


def live_in_child(
    folder: Path,
    cloud: FakeCloud,
    *,
    kill_at: int | None = None,
    trace: bool = False,
    load_program: Callable[[Path], SoftmaxProgram] = SoftmaxProgram,
) -> tuple[int, object]:
    """Let a phone live on `folder` in a child; return its exit status and what it reported at its end."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        _child(folder, there, cloud.clock.now(), kill_at, trace, load_program)
    there.close()
    report = None
    while (message := receive(here)) is not None:
        if isinstance(message, tuple):
            now, method, url, headers, body = message
            cloud.clock.wait(now - cloud.clock.now())
            response = cloud.handle(httpx2.Request(method, url, headers=headers, content=body))
            send(here, (response.status_code, response.headers.raw, response.content))
        else:
            report = message
    here.close()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), report


def lines_of_a_life(filled: Path, folder: Path, cloud: FakeCloud) -> list[str]:
    """Let a phone live on a copy of `filled`, undisturbed; return each line that it runs through, in order."""
    shutil.copytree(filled, folder)
    status, lines = live_in_child(folder, cloud, trace=True)
    assert status == 0
    assert isinstance(lines, list)
    return lines


def places_in(lines: list[str], *files: str) -> list[int]:
    """Return the numbers of the lines of these files."""
    return [number for number, at in enumerate(lines, 1) if at.split(":")[0] in files]


def lives_after_kills(
    filled: Path, folder: Path, lines: list[str], numbers: Iterable[int], make: Callable[[], FakeCloud]
) -> Iterator[tuple[FakeCloud, str]]:
    """Kill a phone at each of these lines and let it live again; yield what its cloud saw, and where it was killed."""
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(filled, folder)
        cloud, where = make(), f"killed at {lines[number - 1]}, line event {number}"
        assert live_in_child(folder, cloud, kill_at=number)[0] == KILLED, where
        assert live_in_child(folder, cloud)[0] == 0, where
        yield cloud, where


def _child(
    folder: Path,
    channel: socket.socket,
    now: float,
    kill_at: int | None,
    trace: bool,
    load_program: Callable[[Path], SoftmaxProgram],
) -> None:
    try:
        clock = VirtualClock(now)
        lines: list[str] = []

        def forward(request: httpx2.Request) -> httpx2.Response:
            send(channel, (clock.now(), request.method, str(request.url), request.headers.raw, request.read()))
            status, headers, body = receive(channel)
            return httpx2.Response(status, headers=headers, content=body)

        def at_line(number: int, where: str) -> None:
            if trace:
                lines.append(where)
            if number == kill_at:
                os._exit(KILLED)

        cloud = FakeCloud(clock)
        cloud.transport = httpx2.MockTransport(forward)
        if trace or kill_at is not None:
            sys.settrace(LineCounter(at_line))
        phone = open_phone(folder, cloud, load_program=load_program)
        live(phone, cloud, 300.0)
        sys.settrace(None)
        send(channel, lines if trace else phone.status())
        phone.close()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
