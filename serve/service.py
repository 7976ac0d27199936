"""What the interfaces, HTTP and gRPC, need of a replica."""

from collections.abc import Sequence
from typing import Protocol

from seminar.client import api
from serve.engine import Engine


class Service(Protocol):
    engine: Engine

    async def replicas(self) -> Sequence[api.ReplicaState]:
        """State of all running replicas."""
        ...
