"""What a process keeps of bundles: something loaded from each of the newest folders that requests named."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from serve.aside import aside

HELD = 2
"""Bundles kept: the one in use and the one that requests in flight began with."""

T = TypeVar("T")


class Held(Generic[T]):
    """Loads what is asked for and not held yet, once, beside the requests that go on; keeps the `most` asked for last.

    load: raises if it must not be served.
    """

    def __init__(self, load: Callable[[Path], T], most: int = HELD) -> None:
        self._load, self._most = load, most
        self._of: OrderedDict[str, T] = OrderedDict()
        self._loading = asyncio.Lock()

    async def get(self, folder: str) -> T:
        if folder not in self._of:
            async with self._loading:
                if folder not in self._of:
                    self._of[folder] = await aside(self._load, Path(folder))
                    while len(self._of) > self._most:
                        self._of.popitem(last=False)
        self._of.move_to_end(folder)
        return self._of[folder]

    def peek(self, folder: str | None) -> T | None:
        """What is held of a folder, without loading it."""
        return None if folder is None else self._of.get(folder)
