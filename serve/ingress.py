"""The way in: HAProxy straight to the replicas, or Serve's own proxy. Both are chosen by environment variables before Ray starts.

HAProxy, the replicas' ports and the fallback proxy listen where `http_options.host` says, so a service of this machine alone
stays on its loopback interface. HAProxy's two pages of statistics do not: Ray binds them to all interfaces (docs/service.md).
"""

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from ray.serve.context import _get_global_client

from serve.access import require_guarded

Ingress = Literal["haproxy", "proxy"]

STICKY = "hdr(x-session-id)\n    hash-type consistent\n    hash-balance-factor 150"
"""A user's requests go to one replica while it has at most 1.5 times the mean load; without the header, round robin."""


def environment(kind: Ingress, folder: Path, *, sticky: bool = True) -> dict[str, str]:
    """Variables of the processes of one Ray. folder: HAProxy's files, a short path of its own, for its sockets have 107 bytes."""
    if kind == "proxy":
        return {}
    ports = _free_ports(4)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports[3]),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        **({"RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": STICKY} if sticky else {}),
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def require_guarded_way_in(token: str | None, insecure: bool) -> None:
    """ConfigError where Serve's interfaces are open to others than this machine, and anybody would be answered."""
    client = _get_global_client()
    assert client is not None
    require_guarded(client.http_config.host or "0.0.0.0", token, insecure, "http_options.host")
