"""A real Redis or Valkey server for tests and benchmarks: on a free port, in a folder that outlives a kill."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

BINARY = shutil.which("valkey-server") or shutil.which("redis-server")
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """A server over `folder`; `kill` is kill -9, and `start` again finds what the append-only file holds."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options, self.port = folder, options or DURABLE, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> "RedisServer":
        """Until it answers. options: instead of those it was made with."""
        assert BINARY is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = options or self.options
        with (self.folder / "log").open("ab") as log:
            command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
            self._process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "no answer in 30 s"
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def signal(self, number: int) -> None:
        """Any other signal, e.g. SIGSTOP: a server that hangs."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def client(self) -> redis.Redis:
        """A plain client, for what a test looks at or sets itself."""
        return redis.Redis(port=self.port, protocol=2)

    def __enter__(self) -> "RedisServer":
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
