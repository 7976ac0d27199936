"""The store that settings name: on this node's disk, or on a server that several nodes share."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from seminar.errors import ConfigError, explain
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.store import Durability, HistoryStore


@runtime_checkable
class StoreSettings(Protocol):
    """What `[serve]` and the args of a deployment both say about histories."""

    @property
    def history_url(self) -> str | None: ...
    @property
    def history_durability(self) -> Durability: ...
    @property
    def history_replicas(self) -> int: ...
    @property
    def history_timeout_s(self) -> float: ...
    @property
    def max_history_gib(self) -> float: ...


def open_histories(settings: StoreSettings, folder: Path) -> HistoryStore:
    """The server at `history_url`, else the LMDB in `folder`; StoreUnavailable if the server is away or not fit to keep them."""
    if settings.history_url is None:
        return LMDBHistoryStore(folder, settings.max_history_gib)
    try:
        from seminar.history.redis_store import RedisHistoryStore
    except ImportError as error:
        fix = "pip install 'seminar[redis]'"
        raise ConfigError(explain("serve.history_url", got=str(error), expected="the redis package", fix=fix)) from error
    return RedisHistoryStore(
        settings.history_url, settings.history_durability, settings.history_replicas, settings.history_timeout_s
    )
