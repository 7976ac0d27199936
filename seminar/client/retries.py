"""When a client asks again, and after how long."""

import random
from dataclasses import dataclass

AGAIN = (502, 503, 504)
"""No replica, a full queue, a replica that died: nothing says that another attempt fails too."""


@dataclass(frozen=True)
class Retries:
    """attempts: at most, the first one included. The wait before attempt n is drawn between half and all of
    first_s * 2**(n - 2), at most longest_s, and at least what the service's Retry-After says."""

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 5.0

    def wait_s(self, failed: int, retry_after: str | None, draw: random.Random) -> float:
        """Seconds to wait after `failed` attempts (1, 2, ...)."""
        backoff = min(self.longest_s, self.first_s * 2 ** (failed - 1)) * draw.uniform(0.5, 1)
        asked = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0
        return max(backoff, min(asked, self.longest_s))
