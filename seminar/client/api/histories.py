"""Histories: events in, behaviours out, and which users there are."""

from typing import Annotated

from pydantic import ConfigDict, Field

from seminar.client.api import examples
from seminar.client.api.base import Id, Input, Output, Queried, TimeMs


class EventIn(Queried):
    item_id: Id
    """May be unknown to the bundle: the behaviour is kept and counts from the first bundle on that knows the item."""
    time_ms: TimeMs
    event_id: Id | None = None
    """Makes a retry safe: a second event of this user with the same event_id is dropped."""
    request_id: Id | None = None
    """Events of one call that share it form one request; without it, those of the same time do."""


class EventsRequest(Input):
    user_id: Id
    events: Annotated[list[EventIn], Field(min_length=1)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "1738",
                    "events": [{"item_id": "1082185", "time_ms": 1_700_000_000_000, "event_id": "basket 7, line 1"}],
                }
            ]
        }
    )


class EventsResponse(Output):
    user_id: str
    accepted: int
    duplicates: int
    history_length: int
    unknown_items: int
    """Events whose item the bundle in use does not know; kept, and not scored until a bundle knows it."""
    bundle_version: str

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EVENTS]})


class StoredBehaviour(Output):
    item_id: str
    text: str | None
    category: str | None
    query_id: str | None
    query: str | None
    time_ms: int
    request: int
    in_bundle: bool


class HistoryResponse(Output):
    user_id: str
    length: int
    behaviours: list[StoredBehaviour]
    """The newest `limit`, newest last."""
    bundle_version: str

    model_config = ConfigDict(json_schema_extra={"examples": [examples.HISTORY]})
