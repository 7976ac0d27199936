"""What a person looks for before there is a request: users, items, queries and bundles."""

from typing import Literal

from pydantic import ConfigDict

from seminar.client.api import examples
from seminar.client.api.base import Output

UserOrder = Literal["id", "longest", "newest"]


class User(Output):
    user_id: str
    length: int
    """Behaviours stored."""
    newest_ms: int | None
    """Time of the newest behaviour; null without any."""


class UsersResponse(Output):
    users: list[User]
    """In the order asked for: by the bytes of their ids, the longest or the newest history first. Ids of more than 510 bytes are
    not listed."""
    total: int
    """Users in the store of the node that answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.USERS]})


class Item(Output):
    item_id: str
    text: str | None
    category: str | None


class ItemsResponse(Output):
    items: list[Item]
    """Most often taken in training first."""
    bundle_version: str

    model_config = ConfigDict(json_schema_extra={"examples": [examples.ITEMS]})


class CatalogueQuery(Output):
    query_id: str
    text: str | None


class QueriesResponse(Output):
    queries: list[CatalogueQuery]
    bundle_version: str

    model_config = ConfigDict(json_schema_extra={"examples": [examples.QUERIES]})


class PublishedBundle(Output):
    version: str
    created: str
    in_use: bool
    """This replica answers with it."""


class BundlesResponse(Output):
    current: str | None
    """What the artefact store points at; null where nothing is published there."""
    bundles: list[PublishedBundle]
    """Newest first, at most 100."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BUNDLES]})
