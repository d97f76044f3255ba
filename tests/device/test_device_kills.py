import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import START, FakeCloud, FakeModel, SoftmaxProgram, fill, open_phone
from device_kills import KILLED, lines_of_a_life, live_in_child

from flsys_ray.device.clock import SystemClock, VirtualClock

MOST_KILLS = 110


def fresh_cloud() -> FakeCloud:
    return FakeCloud(VirtualClock(START + 10_000), FakeModel("har-wild", rounds=1))


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A phone's folder with examples and consent, which has not met the cloud yet."""
    folder = tmp_path_factory.mktemp("kills") / "filled"
    with open_phone(folder, fresh_cloud()) as phone:
        fill(phone, count=60)
    return folder


@pytest.fixture(scope="module")
def lines(filled, tmp_path_factory) -> list[str]:
    """Each line that an undisturbed life runs through, in order."""
    cloud = fresh_cloud()
    found = lines_of_a_life(filled, tmp_path_factory.mktemp("lines") / "phone", cloud)
    assert cloud.models["har-wild"].outcomes() == ["counted"]
    return found


def check_served(cloud: FakeCloud, folder: Path, where: str) -> None:
    """The assignment was counted once, whatever happened; every repeat of its upload had the same bytes."""
    model = cloud.models["har-wild"]
    assert model.outcomes() == ["counted"], where
    assert len(model.versions) == 2, where
    for entry in model.assignments.values():
        assert len(set(entry.bodies)) == 1, where
        assert entry.metrics is not None, where
    assert len(cloud.devices) == 1, where
    with open_phone(folder, cloud) as phone:
        status = phone.status().models[0]
        assert status.work is None, where
        assert status.examples.training + status.examples.held_out == 60, where


def places(lines: list[str]) -> list[int]:
    """Choose where to kill: the first and the last passage of each line, thinned out evenly to `MOST_KILLS`."""
    first, last = {}, {}
    for number, where in enumerate(lines, start=1):
        first.setdefault(where, number)
        last[where] = number
    chosen = sorted({*first.values(), *last.values()})
    return [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(MOST_KILLS, len(chosen))).astype(int)]


def test_killed_at_any_line_the_phone_goes_on(filled, lines, tmp_path):
    kills = places(lines)
    assert len(kills) > 100
    for number in kills:
        where, folder, cloud = f"killed at {lines[number - 1]}, line event {number}", tmp_path / "phone", fresh_cloud()
        shutil.copytree(filled, folder)
        status, _ = live_in_child(folder, cloud, kill_at=number)
        assert status == KILLED, where
        status, report = live_in_child(folder, cloud)
        assert status == 0, where
        assert report is not None, where
        check_served(cloud, folder, where)
        shutil.rmtree(folder)


def test_killed_again_and_again_the_phone_goes_on_or_gives_back(filled, lines, tmp_path):
    rng = np.random.default_rng(11)
    for attempt in range(6):
        folder, cloud = tmp_path / f"phone-{attempt}", fresh_cloud()
        shutil.copytree(filled, folder)
        for _ in range(5):
            live_in_child(folder, cloud, kill_at=int(rng.integers(1, len(lines))))
        assert live_in_child(folder, cloud)[0] == 0
        model = cloud.models["har-wild"]
        assert model.outcomes() in (["counted"], ["given-back"])
        assert all(len(set(entry.bodies)) <= 1 for entry in model.assignments.values())


def test_a_program_that_kills_the_phone_is_given_back_in_the_end(filled, tmp_path):
    folder, cloud = tmp_path / "phone", fresh_cloud()
    shutil.copytree(filled, folder)

    def deadly(path: Path) -> SoftmaxProgram:
        return SoftmaxProgram(path, on_step=lambda: os._exit(KILLED))

    for _ in range(3):
        assert live_in_child(folder, cloud, load_program=deadly)[0] == KILLED
        assert cloud.models["har-wild"].outcomes() == ["pending"]
    assert live_in_child(folder, cloud, load_program=deadly)[0] == 0
    assert cloud.models["har-wild"].outcomes() == ["given-back"]
    assert b'"restarted"' in cloud.calls(r"DELETE /v1/assignments/.*")[0].content


SERVED_BY_SIGKILL = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[3])
    from pathlib import Path
    from device_fakes import SoftmaxProgram, config
    from flsys_ray.device.conditions import FixedConditions
    from flsys_ray.device.configuration import Shared
    from flsys_ray.device.phone import Phone
    from flsys_ray.device.trainer import Programs
    import threading

    def slow(path):
        def step():
            print("step", flush=True)
            time.sleep(float(sys.argv[4]))
        return SoftmaxProgram(path, step)

    phone = Phone(Path(sys.argv[1]), config(url=sys.argv[2]), conditions=FixedConditions(),
                  shared=Shared(programs=Programs(slow)))
    stop = threading.Event()
    phone.run(stop, lambda outcome: print(outcome.kind, flush=True) or (outcome.kind == "uploaded" and stop.set()))
""")


def serve(cloud: FakeCloud) -> ThreadingHTTPServer:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx2.Request(self.command, f"http://x{self.path}", headers=dict(self.headers), content=body)
            with lock:
                response = cloud.handle(request)
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    return server


def test_sigkill_during_training_over_real_http(filled, tmp_path):
    folder = tmp_path / "phone"
    shutil.copytree(filled, folder)
    cloud = FakeCloud(SystemClock(), FakeModel("har-wild", rounds=1))
    server = serve(cloud)
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        command = [sys.executable, "-c", SERVED_BY_SIGKILL, str(folder), url, str(Path(__file__).parent)]
        with subprocess.Popen([*command, "0.2"], stdout=subprocess.PIPE, text=True) as first:
            seen = next(line for line in first.stdout if line == "step\n")
            os.kill(first.pid, signal.SIGKILL)
        assert (seen, first.returncode) == ("step\n", -signal.SIGKILL)
        assert cloud.models["har-wild"].outcomes() == ["pending"]
        second = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=60, check=True)
        kinds = second.stdout.split()
        assert "checked-in" not in kinds  # it went on with what it had
        assert kinds[-3:] == ["trained", "evaluated", "uploaded"]
    finally:
        server.shutdown()
        server.server_close()
    assert cloud.models["har-wild"].outcomes() == ["counted"]
