"""The tritonserver of the nvidia-pytriton wheel, on loopback."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from tests.support.ports import free_ports

__all__ = ["TritonServer", "Wheel", "running"]

_PATIENCE = 60.0
"""Seconds after which a test fails instead of waiting on."""
_ABOUT = """
import json, os, site, sys, sysconfig
print(json.dumps({
    "site": sysconfig.get_path("purelib"),
    "version": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR"),
}))
"""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """An environment with the wheel.

    Attributes:
        python: its Python.
        site: its directory of packages.
        version: the version of Python, such as 3.11.
        libraries: the directory of Python's own library.
    """

    python: str
    site: Path
    version: str
    libraries: str

    @classmethod
    def of(cls, python: str) -> Wheel:
        """The environment of a Python."""
        found = json.loads(subprocess.check_output([python, "-c", _ABOUT]))
        return cls(python, Path(found["site"]), found["version"], found["libraries"])

    def backends(self, folder: Path) -> Path:
        """A directory of backends with the program for this version of Python."""
        triton = self.site / "pytriton" / "tritonserver"
        shutil.copytree(triton / "backends" / "python", folder / "python")
        stub = folder / "python" / "triton_python_backend_stub"
        shutil.copy(triton / "python_backend_stubs" / self.version / stub.name, stub)
        stub.chmod(0o755)
        return folder

    @property
    def server(self) -> Path:
        """The server, made executable."""
        path = self.site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        path.chmod(0o755)
        return path


@dataclasses.dataclass(frozen=True)
class TritonServer:
    """A running server.

    Attributes:
        http_port: its port for HTTP.
        grpc_port: its port for gRPC.
        log: its log.
    """

    http_port: int
    grpc_port: int
    log: Path

    @contextlib.contextmanager
    def asking(
        self, model: str, audio: Union[bytes, None], *, stream: bool = True, **parameters: Any
    ) -> Iterator[http.client.HTTPResponse]:
        """A response whose body is still to be read; the connection is closed at the end."""
        given = {**parameters, "stream": stream}
        if audio is not None:
            given["audio_base64"] = base64.b64encode(audio).decode()
        how = "generate_stream" if stream else "generate"
        link = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=_PATIENCE)
        with contextlib.closing(link):
            link.request("POST", f"/v2/models/{model}/{how}", json.dumps(given))
            with link.getresponse() as response:
                yield response

    def events(self, model: str, audio: Union[bytes, None], **given: Any) -> list[dict[str, Any]]:
        """All responses to a request."""
        with self.asking(model, audio, **given) as response:
            lines = response.read().decode().splitlines()
        return [json.loads(line[len("data: ") :]) for line in lines if line]


@contextlib.contextmanager
def running(wheel: Wheel, repository: Path, folder: Path) -> Iterator[TritonServer]:
    """A server of a model repository, ready; it is ended at the end."""
    http_port, grpc_port = free_ports(2)
    server = TritonServer(http_port, grpc_port, folder / "log")
    libraries = str(wheel.site / "nvidia_pytriton.libs"), wheel.libraries
    paths = [*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    command = [
        str(wheel.server), f"--model-repository={repository}",
        f"--backend-directory={wheel.backends(folder / 'backends')}",
        f"--http-port={http_port}", f"--grpc-port={grpc_port}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false",
    ]  # fmt: skip
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)},
        )
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait_until_ready(server: TritonServer, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        log = server.log.read_text("utf-8", "replace")
        assert process.poll() is None, log[-6000:]
        assert time.monotonic() < until, log[-6000:]
        assert "error while loading shared libraries" not in log, log[-6000:]
        if "Started HTTPService" in log:
            return
        time.sleep(0.05)
