"""Cross features of a behaviour and a request that stand in for what papers take from player logs: its query, beside its age."""

from jaxtyping import Int
from torch import Tensor

from seminar.config import ModelConfig

NUM_QUERY_STATES = 3
"""No query, another query, the request's query."""


def query_state(behaviour: Int[Tensor, "B one_or_T N"], request: Int[Tensor, "B T"], config: ModelConfig) -> Int[Tensor, "B T N"]:
    """0: the behaviour had no query, 1: another query than the request (which may have none), 2: the request's query.

    Always 0 where the query channel is not in use.
    """
    request = request[..., None]
    searched = (behaviour >= 0).expand(-1, request.shape[1], -1) & ("query" in config.channels)
    return searched.long() + (searched & (behaviour == request))
