"""Bundles offered to a replica through `user_config`: the first is taken or the replica fails, later ones are taken or refused.

Serve stops a replica whose reconfigure raises, and with it the bundle that works; and it sends nothing to a replica while
reconfigure runs. So a later bundle loads in the background, and a refusal is remembered and told by GET /v1/bundle.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from seminar.client import api
from serve.options import bundle_reference
from serve.targets import now_ms


class Offers:
    """Takes offers one at a time, in their order. take: loads and switches, or raises and changes nothing."""

    def __init__(self, take: Callable[[str], Awaitable[None]]) -> None:
        self._take = take
        self._taken = False
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[bool]] = set()
        self.loading: str | None = None
        self.refused: api.Refusal | None = None

    async def reconfigure(self, user_config: Any) -> None:
        """What Serve calls: waits for the first bundle, and raises if it is bad; later ones go their way in the background."""
        if not self._taken:
            await self._take(bundle_reference(user_config))
            self._taken = True
            return
        task = asyncio.create_task(self.offer(user_config))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def offer(self, user_config: Any) -> bool:
        """Take a bundle, or remember why not."""
        async with self._turn:
            reference = user_config.get("bundle") if isinstance(user_config, dict) else user_config
            self.loading, self.refused = str(reference), None
            try:
                await self._take(bundle_reference(user_config))
            except Exception as error:
                self.refused = api.Refusal(bundle=self.loading, error=f"{type(error).__name__}: {error}", time_ms=now_ms())
            finally:
                self.loading = None
            return self.refused is None
