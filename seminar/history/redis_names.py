"""Names and their local ids on a server: given in order, for ever, and never believed of a server that lost some.

seminar:<kind>          name -> local id, append-only          seminar:<kind>:names          local id -> name
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from seminar.errors import explain
from seminar.history.store import Kind, StoreUnavailable

T = TypeVar("T")
AT_ONCE = 10_000
# KEYS: name -> id, id -> name. ARGV: names. Their ids, new ones for those that have none.
_INTERN = """
local size, ids = redis.call('HLEN', KEYS[1]), {}
for i, name in ipairs(ARGV) do
  local id = redis.call('HGET', KEYS[1], name)
  if not id then
    id = tostring(size)
    redis.call('HSET', KEYS[1], name, id)
    redis.call('HSET', KEYS[2], id, name)
    size = size + 1
  end
  ids[i] = id
end
return ids
"""


class Names:
    """Reads and gives names over a client; remembers of each kind the highest id it told, the first that a server would lose.

    Bundles' rows are kept by id (`CatalogueRows`), so a server that lost names and gives their ids to others would mix items up.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._told: dict[Kind, tuple[int, bytes]] = {}

    def intern(self, client: Any, kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
        local: list[bytes] = []
        for part in parts(names, AT_ONCE):
            local += client.eval(_INTERN, 2, key_of(kind), _by_number(kind), *part)
        for name, told in zip(names, local, strict=True):
            self.tell(kind, int(told), name)
        return np.array(local, np.int32)

    def all(self, client: Any, kind: Kind, start: int) -> list[str]:
        """Names from local id `start` on, in order."""
        size = client.hlen(_by_number(kind))
        found = self.of(client, kind, range(start, size))
        if found:
            self.tell(kind, size - 1, found[-1])
        return found

    def of(self, client: Any, kind: Kind, local: Sequence[int]) -> list[str]:
        """Names of local ids that there are."""
        return [name.decode() for part in parts(local, AT_ONCE) for name in client.hmget(_by_number(kind), part)]

    def tell(self, kind: Kind, local: int, name: str) -> None:
        """Remember that this id was told."""
        if local > self._told.get(kind, (-1, b""))[0]:
            self._told[kind] = local, name.encode()

    def check(self, connection: Any) -> None:
        """StoreUnavailable for a new connection's server if it no longer has what was told before."""
        for kind, (local, name) in self._told.items():
            connection.send_command("HGET", _by_number(kind), local)
            if connection.read_response() != name:
                fix = "start every replica of the service again, and use history_durability always or replicas"
                got = f"no {kind} of that name at {local}: it lost what it had acknowledged"
                raise StoreUnavailable(explain(self._store, got=got, expected=repr(name.decode()), fix=fix))


def key_of(kind: Kind) -> str:
    """Key of the table name -> local id."""
    return f"seminar:{kind}"


def parts(sequence: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """A sequence in pieces of at most `size`."""
    return (sequence[at : at + size] for at in range(0, len(sequence), size))


def _by_number(kind: Kind) -> str:
    return f"seminar:{kind}:names"
