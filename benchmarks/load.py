"""What the load benchmarks share: a program of a given size, devices, and a client that costs little itself."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARAMETERS = 210_438  # 842 kB an update
MODEL = "load"
SOURCE = """
import sys, pathlib, keras, flsys_ray
size = int(sys.argv[2])
inputs = keras.Input((4,))
wide = keras.layers.Dense((size - 2) // 7, activation="relu")(inputs)
model = keras.Model(inputs, keras.layers.Dense(2)(wide))
program = flsys_ray.compile(model, classes=["a", "b"], batch_size=8, name="load")
pathlib.Path(sys.argv[1]).write_bytes(program.data)
print(program.manifest.parameters)
"""


def program(folder: Path, parameters: int = PARAMETERS) -> tuple[bytes, int]:
    """Return a device program of about so many parameters, and how many it has. TensorFlow stays in its own process."""
    path = folder / "load.tflite"
    done = subprocess.run(
        [sys.executable, "-c", SOURCE, str(path), str(parameters)], check=True, capture_output=True, text=True
    )
    return path.read_bytes(), int(done.stdout.split()[-1])


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, ready to be sent as it is."""

    raw: bytes

    @classmethod
    def of(cls, method: str, path: str, headers: dict[str, str], body: bytes) -> "Request":
        """Return the request's bytes."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return cls("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


@dataclass(frozen=True, slots=True)
class Measured:
    """How a burst of requests went: per second, latencies in seconds (sorted), and the bodies by request."""

    per_s: float
    latencies_s: Sequence[float]
    statuses: dict[int, int]
    bodies: Sequence[bytes]

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return 1000 * self.latencies_s[min(len(self.latencies_s) - 1, int(len(self.latencies_s) * percent / 100))]


def burst(port: int, requests: Sequence[Request], connections: int) -> Measured:
    """Send all requests over so many connections that are kept alive, one at a time on each."""
    return asyncio.run(_burst(port, requests, connections))


async def _burst(port: int, requests: Sequence[Request], connections: int) -> Measured:
    waiting = list(enumerate(requests))[::-1]
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    bodies = [b""] * len(requests)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while waiting:
            index, request = waiting.pop()
            start = time.perf_counter()
            writer.write(request.raw)
            await writer.drain()
            status, bodies[index] = await _answer(reader)
            latencies.append(time.perf_counter() - start)
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    took_s = time.perf_counter() - start
    return Measured(len(requests) / took_s, sorted(latencies), statuses, bodies)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return int(lines[0].split()[1]), await _chunks(reader)
    return int(lines[0].split()[1]), await reader.readexactly(int(headers.get("content-length", "0")))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)
