"""One line for a request that is slow, refused, failed or sampled; never one for each.

A line has request id, route, status, user, stage milliseconds and bundle version as fields, so it is JSON where the logger's
formatter makes JSON (Serve's `logging_config: {encoding: JSON}`). A failure has its traceback. Users are digests unless asked for
otherwise; SEMINAR_LOG_KEY in the environment makes them impossible to look up by who knows the ids but not the key.
"""

import hashlib
import logging
import os
import time

from serve.observe import Record
from serve.options import Options

LINES_PER_S = 50
"""At most; a service that refuses thousands of requests a second says so by its metrics."""
KEY = "SEMINAR_LOG_KEY"


class RequestLog:
    """Writes lines to a logger. Not thread-safe: one thread writes."""

    def __init__(self, logger: logging.Logger, options: Options, lines_per_s: int = LINES_PER_S) -> None:
        self._logger, self._options, self._most = logger, options, lines_per_s
        self._key = os.environ.get(KEY, "").encode()[:64]
        self._seen = 0
        self._second, self._written = 0, 0

    def write(self, record: Record) -> bool:
        """False if there should be a line, but too many were written in this second."""
        why = self._why(record)
        if why is None:
            return True
        second = int(time.monotonic())
        self._second, self._written = second, self._written + 1 if second == self._second else 1
        if self._written > self._most:
            return False
        level = logging.ERROR if why == "failed" else logging.WARNING if why in ("slow", "overloaded") else logging.INFO
        message = f"{record.method} {record.route or 'other'} {record.status} {record.total_ms:.1f}ms {why}"
        self._logger.log(level, message, exc_info=record.error, extra=self._fields(record, why))
        return True

    def _why(self, record: Record) -> str | None:
        self._seen += 1
        if record.error is not None or record.status == 500:
            return "failed"
        if record.status >= 500:
            return "overloaded"
        if record.status >= 400:
            return "refused"
        if record.total_ms >= self._options.log_slow_ms:
            return "slow"
        return "sampled" if self._options.log_sample and self._seen % self._options.log_sample == 0 else None

    def _fields(self, record: Record, why: str) -> dict[str, object]:
        known = {
            "user": None if record.user_id is None else self._user(record.user_id),
            "bundle_version": record.bundle_version,
        }
        return {
            "request_id": record.request_id,
            "why": why,
            "method": record.method,
            "path": record.route,
            "status": record.status,
            "total_ms": round(record.total_ms, 2),
            "stage_ms": {stage: round(took_ms, 2) for stage, took_ms in record.stage_ms.items()},
            "targets": record.targets,
            **{name: value for name, value in known.items() if value is not None},
        }

    def _user(self, user_id: str) -> str:
        if self._options.log_raw_users:
            return user_id
        return hashlib.blake2b(user_id.encode(), digest_size=8, key=self._key).hexdigest()
