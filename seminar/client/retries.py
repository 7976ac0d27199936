"""When a call is sent again, where to and after which wait: a conversation with whoever can send, which is `http.py`.

`exchange` yields what to do next and is told what came of it, so it holds for blocking and async clients alike. Sent again is
what nobody answered, and what was answered by 408, 502, 503, 504 or by a 500 that is no word of the service: a proxy's own page.
Waits are exponential with full jitter, on top of any `Retry-After`; none goes past the deadline.
"""

import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Annotated, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field

from seminar.client.calls import Call, Reply, answer_of, told_by_us
from seminar.client.errors import Unreachable
from seminar.errors import ConfigError, explain

T = TypeVar("T", bound=BaseModel)
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AGAIN = frozenset({408, 502, 503, 504})


class Patience(BaseModel):
    """How long a call may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    timeout_s: Seconds = 10.0
    """One attempt."""
    connect_s: Seconds = 2.0
    """Reaching an address."""
    deadline_s: Seconds = 30.0
    """All attempts and the waits between them."""
    first_wait_s: Seconds = 0.1
    """Most that is waited after the first attempt; doubled after each further one."""
    most_wait_s: Seconds = 5.0
    """Most that is waited without a Retry-After."""


@dataclass(frozen=True)
class Send:
    """Send the call to this address, for so many seconds."""

    url: str
    timeout_s: float


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Lost:
    """No answer. reached: False where there was not even a connection."""

    why: str
    reached: bool


Conversation = Generator[Send | Wait, Reply | Lost | None, T]


class Addresses:
    """Base URLs of the same service, of which one is in use: the last that was not left. ConfigError for anything else."""

    def __init__(self, urls: str | Sequence[str]) -> None:
        self.urls = [_checked(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls:
            raise ConfigError(explain("urls", got="none", expected="at least one", fix="name the service's address"))
        self.current = self.urls[0]

    def leave(self, url: str) -> None:
        """Go to the next one, unless another thread already did."""
        if self.current == url:
            self.current = self.urls[(self.urls.index(url) + 1) % len(self.urls)]


def exchange(
    call: Call[T],
    addresses: Addresses,
    patience: Patience,
    draw: Callable[[], float] = random.random,
    clock: Callable[[], float] = time.monotonic,
) -> Conversation[T]:
    """Attempts until an answer or the deadline. draw: from 0 to 1, of the wait. Raises ServiceError and Unreachable."""
    deadline, unreached, told = clock() + patience.deadline_s, 0, None
    for attempts in count(1):
        url = addresses.current
        left_s = max(deadline - clock(), 0.001)
        outcome = yield Send(url, min(patience.timeout_s, left_s))
        assert outcome is not None
        if isinstance(outcome, Reply) and not _worth_another(outcome):
            return answer_of(call, outcome)
        addresses.leave(url)
        # An attempt that the deadline cut short tells less than the one before it.
        told = told if told and isinstance(outcome, Lost) and left_s < patience.timeout_s else outcome
        unreached = unreached + 1 if isinstance(outcome, Lost) and not outcome.reached else 0
        # The next address may be well; once none could be reached, all of them are given time.
        at_once = unreached % len(addresses.urls) or not call.again
        wait_s = 0.0 if at_once else _wait_s(outcome, attempts, patience, draw())
        if clock() + wait_s >= deadline or not (call.again or attempts < len(addresses.urls)):
            return _give_up(call, told, url, attempts)
        if wait_s:
            yield Wait(wait_s)
    raise AssertionError("attempts are without end")


def lost(error: Exception) -> Lost:
    """What an error of httpx means; raises it if the fault lies with the request, which no attempt would mend."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Lost(f"no connection ({error or type(error).__name__})", reached=False)
    gone = httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError | httpx.DecodingError
    if isinstance(error, gone | TimeoutError):
        return Lost(f"{type(error).__name__} {error}".strip(), reached=True)
    raise error


def _worth_another(reply: Reply) -> bool:
    return reply.status in AGAIN or (reply.status == 500 and told_by_us(reply) is None)


def _wait_s(outcome: Reply | Lost, attempts: int, patience: Patience, share: float) -> float:
    jitter = share * min(patience.most_wait_s, patience.first_wait_s * 2.0 ** min(attempts - 1, 60))
    asked = retry_after_s(outcome.headers.get("retry-after", "")) if isinstance(outcome, Reply) else 0.0
    # On top of what was asked for, or all that were refused together come back together.
    return asked + jitter


def retry_after_s(header: str) -> float:
    """Seconds that a Retry-After asks for, as a number or as a date; 0 for anything else."""
    if header.strip().isascii() and header.strip().isdigit():
        return float(header[:9])
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _give_up(call: Call[T], outcome: Reply | Lost, url: str, attempts: int) -> T:
    if isinstance(outcome, Reply):
        return answer_of(call, outcome)
    raise Unreachable(f"{call.method} {url}{call.path}", outcome.why, attempts, call.request_id)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.query and not parsed.fragment
    except (httpx.InvalidURL, TypeError):
        usable = False
    if not usable:
        expected, fix = "http://host:port or https://host:port, with a path or not", "correct the address"
        raise ConfigError(explain("url", got=repr(url), expected=expected, fix=fix))
    return url.rstrip("/")
