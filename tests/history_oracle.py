"""What every history store must give, in plain Python: one list a user, sorted from scratch at each read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from seminar.history.store import Appended, Event, HistoryStore


@dataclass(frozen=True, order=True)
class Row:
    """In their order: requests by their start, then by arrival; inside one by time, then by arrival."""

    start_ms: int
    request: int
    time_ms: int
    arrival: int
    item: str
    query: str | None


@dataclass
class _User:
    rows: list[Row] = field(default_factory=list)
    event_ids: set[str] = field(default_factory=set)
    requests: int = 0


class Oracle:
    """A HistoryStore's appends and reads, with names where the store has local ids."""

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}

    @property
    def users(self) -> list[str]:
        return list(self._users)

    def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        user = self._users.setdefault(user_id, _User())
        fresh = []
        for event in events:
            if event.event_id is None or event.event_id not in user.event_ids:
                fresh.append(event)
            if event.event_id is not None:
                user.event_ids.add(event.event_id)
        self._add(user, fresh)
        return Appended(len(fresh), len(events) - len(fresh), len(user.rows))

    def load(self, user_id: str, rows: Sequence[tuple[int, str]]) -> int:
        """Behaviours (time, item), oldest first, each its own request; how many were newer than the newest and so added."""
        user = self._users.setdefault(user_id, _User())
        newest = max((row.time_ms for row in user.rows), default=-1)
        newer = [Event(item, time_ms, request_id=str(place)) for place, (time_ms, item) in enumerate(rows) if time_ms > newest]
        self._add(user, newer)
        return len(newer)

    def read(self, user_id: str) -> list[tuple[int, str, str | None, int]]:
        """Time, item, query and number of request of each behaviour."""
        rows = sorted(self._users[user_id].rows)
        number = {request: place for place, request in enumerate(dict.fromkeys(row.request for row in rows))}
        return [(row.time_ms, row.item, row.query, number[row.request]) for row in rows]

    def _add(self, user: _User, events: Sequence[Event]) -> None:
        groups: dict[object, list[Event]] = {}
        for event in events:
            groups.setdefault(event.request_id or event.time_ms, []).append(event)
        for request, members in enumerate(groups.values(), start=user.requests):
            start_ms = min(event.time_ms for event in members)
            first = len(user.rows)
            user.rows += [
                Row(start_ms, request, e.time_ms, place, e.item_id, e.query) for place, e in enumerate(members, start=first)
            ]
        user.requests += len(groups)


def read_back(store: HistoryStore, user_id: str) -> list[tuple[int, str, str | None, int]]:
    """A store's history as `Oracle.read` gives it."""
    history = store.read(user_id)
    items, queries = store.names_of("items", history.item_L), store.names_of("queries", history.query_L)
    columns = zip(history.time_ms_L.tolist(), items, queries, history.request_L.tolist(), strict=True)
    return [(time_ms, str(item), query, request) for time_ms, item, query, request in columns]
