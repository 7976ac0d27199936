"""The service itself: versions of everything that makes a score, replicas, health; and what its catalogue holds."""

from typing import Literal

from pydantic import ConfigDict

from seminar.client.api import examples
from seminar.client.api.base import Output


class Refusal(Output):
    """A bundle that was offered and not taken; the one before it serves on."""

    bundle: str
    error: str
    time_ms: int


class ReplicaState(Output):
    deployment: str
    replica: str
    pid: int
    bundle_version: str | None
    loading: str | None
    """The bundle it is loading beside that one."""
    refused: Refusal | None
    user_cache_hits: int = 0
    """Requests whose history the replica still had from before, since it started; 0 where a deployment reads no histories."""
    user_cache_misses: int = 0


class BundleResponse(Output):
    version: str
    checksum: str
    created: str
    psu_fingerprint: str
    inputs: dict[str, str]
    """Versions of the artefacts the bundle was made from."""
    retriever: str
    overfetch: float | None
    """Candidates a kept behaviour that are re-scored exactly; null: the method's own."""
    topology: str
    text_encoder: str
    items: int
    queries: int
    top_k: int
    recommends: bool
    """Whether POST /v1/recommend answers: the bundle has an item index and the service a Proposer."""
    users: int
    """Users in the history store of the node that answers."""
    loading: str | None
    """A bundle that was offered and is being loaded."""
    refused: Refusal | None
    """Why the last offered bundle is not the one in use; null if it is."""
    replicas: list[ReplicaState]
    """All running replicas of all deployments: a swap is done when each names the new version."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BUNDLE]})


class Health(Output):
    status: Literal["alive", "ready"]
    bundle_version: str | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [examples.HEALTH]})
