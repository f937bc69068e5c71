"""A server in its own process, and clients of its OpenAI endpoint; standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

__all__ = ["Load", "closed_loop", "cpu_seconds", "free_port", "request_body", "resident", "running"]

_PATIENCE = 300.0
"""Seconds after which a server or a response is given up."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, path: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from the moment at which it answers ``GET path`` with 200 to its end."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(env or {})}
        )
        try:
            end = time.monotonic() + _PATIENCE
            while not _answers(port, path):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not serve; see {log}")
                time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, path: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as link:
        try:
            link.request("GET", path)
            return link.getresponse().status == 200
        except OSError:
            return False


def request_body(file: bytes, fields: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """A multipart form with the file last, and its headers."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Disposition: form-data; "
    parts = [f'{head}name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts.append(f'{head}name="file"; filename="a.wav"\r\n\r\n'.encode() + file + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={boundary}"}


@dataclasses.dataclass(frozen=True)
class Load:
    """What clients in a closed loop measured.

    Attributes:
        seconds: duration.
        cpu: CPU seconds of the server.
        latencies: seconds of every response, in order.
        wrong: responses with another status than 200 or another text.
        text: what every response was to be; None if all were wrong and it was not known.
    """

    seconds: float
    cpu: float
    latencies: list[float]
    wrong: int
    text: str | None = None

    def summary(self) -> dict[str, Any]:
        """Figures of a table."""
        ordered, n = sorted(self.latencies), len(self.latencies)
        at = {f"p{q}_s": ordered[min(n - 1, n * q // 100)] if n else None for q in (50, 95)}
        return {
            "requests": n,
            "requests_per_s": round(n / self.seconds, 3),
            "cpu_s_per_request": round(self.cpu / max(1, n), 4),
            **{name: None if value is None else round(value, 4) for name, value in at.items()},
            "wrong": self.wrong,
        }


def closed_loop(
    port: int,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    clients: int,
    stop: Callable[[int, float], bool],
    pid: int,
    text: str | None = None,
) -> Load:
    """Clients that send the next request when the last one was answered.

    Args:
        port: of the server.
        path: of the endpoint.
        body: of every request.
        headers: of every request.
        clients: how many send at once.
        stop: with requests begun and seconds, whether no more are begun.
        pid: process of the server.
        text: what every response must be; default: what the first one is.
    """
    latencies: list[float] = []
    wrong, begun = 0, 0
    expected = text
    lock, start, cpu = threading.Lock(), time.monotonic(), cpu_seconds(pid)

    def client() -> None:
        nonlocal begun, wrong, expected
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        with contextlib.closing(link):
            while True:
                with lock:
                    if stop(begun, time.monotonic() - start):
                        return
                    begun += 1
                since = time.monotonic()
                found = _text(link, path, body, headers)
                took = time.monotonic() - since
                with lock:
                    expected = found if expected is None else expected
                    latencies.append(took)
                    wrong += found is None or found != expected

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(time.monotonic() - start, cpu_seconds(pid) - cpu, latencies, wrong, expected)


def _text(
    link: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> str | None:
    """The text of a response; None if it is none."""
    try:
        link.request("POST", path, body, dict(headers))
        response = link.getresponse()
        data = response.read()
        return str(json.loads(data)["text"]).strip() if response.status == 200 else None
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        link.close()
        return None


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> dict[str, float]:
    """Memory of a process in MB: resident, and the part that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    kilobytes = {name: int(value) for name, value in fields.items()}
    return {
        "resident_mb": round(sum(kilobytes.values()) / 1024, 1),
        "anonymous_mb": round(kilobytes["RssAnon"] / 1024, 1),
    }
