"""The service's bearer token, and that nobody opens it to a network by accident."""

import ipaddress
import os
from pathlib import Path

from seminar.errors import ConfigError, explain

VARIABLE = "SEMINAR_TOKEN"
MIN_TOKEN = 16
"""Characters; `openssl rand -hex 32` makes 64."""


def read_token(token_file: str | Path | None) -> str | None:
    """The token in a file, else in the environment, else None. ConfigError if it cannot be read or is too short to be one."""
    if token_file is None:
        token, where = os.environ.get(VARIABLE), f"environment {VARIABLE}"
    else:
        where = f"serve.token_file {token_file}"
        try:
            token = Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            got, fix = f"{type(error).__name__}", "check the path and who may read it"
            raise ConfigError(explain(where, got=got, expected="a readable file", fix=fix)) from None
    if not token and token_file is None:
        return None
    if len(token or "") < MIN_TOKEN or not (token or "").isascii():
        expected, fix = f"at least {MIN_TOKEN} ASCII characters", "make one with `openssl rand -hex 32`"
        raise ConfigError(explain(where, got=f"{len(token or '')} characters", expected=expected, fix=fix))
    return token


def bearer(token_file: str | Path | None = None) -> dict[str, str]:
    """Headers of a request to a service with this token; none where there is no token."""
    token = read_token(token_file)
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def require_guarded(host: str, token: str | None, insecure: bool, what: str = "serve.host") -> None:
    """ConfigError for a service without a token that others than this machine can reach, unless it is said to be wanted."""
    if token is None and not insecure and not _loopback(host):
        got, expected = f"{host!r} without a token", "a token, or a loopback address"
        fix = f"set serve.token_file or {VARIABLE}, or serve.insecure = true where the network is trusted"
        raise ConfigError(explain(what, got=got, expected=expected, fix=fix))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
