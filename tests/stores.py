"""What tests of history stores share."""

import pytest

from benchmarks.redis_server import BINARY

needs_server = pytest.mark.skipif(BINARY is None, reason="needs redis-server or valkey-server (Debian package redis-server)")
