"""Which scorer for which request: the fastest that loses nothing once re-scored. The choice is visible and may be overridden.

What decides (figures: docs/retrieval.md, `seminar bench gsu`): with a gate of the request or of the behaviour a key is one
d-vector, and 8-bit inner products of it cost fewer instructions than any look-up of codes; with a gate of the target the channels
stay apart, and codes read a quarter of the bytes. Packing pays from a few targets on, at once where packed keys are kept.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from seminar.errors import ConfigError, explain

Method = Literal["exact", "merged", "int8", "pq"]
"""exact: all channels apart in float32. merged: one float32 key. int8: the key in 8 bits. pq: multi-modal product codes."""
Gate = Literal["constant", "target", "behaviour"]

OVERFETCH: dict[Method, float] = {"exact": 1.0, "merged": 1.0, "int8": 1.5, "pq": 4.0}
"""Candidates a kept behaviour that are re-scored exactly, where nothing else is set."""
PACKING_PAYS = 4
"""Targets from which packing a history for one request is cheaper than scoring it in float32."""


@dataclass(frozen=True)
class Situation:
    """A request as the choice sees it. stored: packed keys of this history are kept."""

    gate: Gate
    num_targets: int
    length: int
    top_k: int
    stored: bool = False


@dataclass(frozen=True)
class Choice:
    """A method, how much it over-fetches, and why it."""

    method: Method
    overfetch: float
    reason: str


def choose(situation: Situation, overfetch: float | None = None) -> Choice:
    """The method for a request. overfetch: what is set for all methods, if anything."""
    per_target = situation.gate == "target"
    if situation.length <= OVERFETCH["int8"] * situation.top_k:
        method, reason = ("exact" if per_target else "merged"), "everything would be fetched and re-scored anyway"
    elif per_target:
        method, reason = "pq", "the target weighs the channels: they stay apart, and codes read a quarter of the bytes"
    elif situation.stored:
        method, reason = "int8", "packed keys of this history are kept"
    elif situation.num_targets >= PACKING_PAYS:
        method, reason = "int8", f"{situation.num_targets} targets share the packing of the history"
    else:
        method, reason = "merged", f"fewer than {PACKING_PAYS} targets do not pay for packing the history"
    return Choice(method, overfetch or OVERFETCH[method], reason)


def override(method: Method, overfetch: float | None, gate: Gate) -> Choice:
    """A method chosen by settings; ConfigError if it cannot serve the gate."""
    if method not in get_args(Method):
        raise ConfigError(explain("retriever", got=repr(method), expected=f"auto or one of {get_args(Method)}", fix="choose one"))
    if method == "merged" and gate == "target":
        fix = "use auto, exact, int8 or pq"
        raise ConfigError(explain("retriever 'merged'", got="model.gate 'target'", expected="another gate", fix=fix))
    return Choice(method, overfetch or OVERFETCH[method], "set")
