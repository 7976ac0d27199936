"""Bodies as JSON of one meaning: limited while they stream in, UTF-8, no deep nesting, no key twice.

Everything else about a body, NaN too, is a matter of fields, which pydantic refuses with their names.
"""

import json
import re
from typing import Any

import numpy as np
from fastapi import Request
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from seminar.client import api
from serve.problems import MAX_NAME, Refused, in_utf8

MAX_BODY_BYTES = 1 << 24
"""16 MiB, the largest body that is read: 10,000 events of 1.6 kB each."""
MAX_DEPTH = 16
"""Of lists and objects inside each other; the deepest request has 7."""
SHOWN = "send what /docs shows"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_OPENS, _CLOSES = (np.frombuffer(brackets, np.uint8) for brackets in (b"[{", b"]}"))


class Body(Request):
    """A request whose body is read and parsed here, before FastAPI validates it."""

    async def read(self) -> bytes:
        """The bytes; Refused where the request says that they are no JSON, or they are too many."""
        _require_json(self.headers.get("content-type", ""))
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > MAX_BODY_BYTES):
            raise too_long(f"{length[:20]} bytes")
        pieces, size = [], 0
        async for piece in self.stream():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise too_long(f"more than {MAX_BODY_BYTES} bytes")
            pieces.append(piece)
        # Where Starlette keeps it, and what came of it: FastAPI finds both there, and parses nothing again.
        self._body = b"".join(pieces)
        return self._body

    def parse(self) -> None:
        """What FastAPI will validate; Refused as `parsed`."""
        if self._body:
            self._json = parsed(self._body)


def has_each_key_once(body: bytes, model: BaseModel) -> bool:
    """True only if no key stands twice in the JSON text that `model` was made of: it would have more colons than the model's own.

    A quarter of the price of `parsed`. False also where anything is escaped or the model holds something that is no model.
    """
    if b"\\" in body:
        # An escaped colon would hide one that a second key brings.
        return False
    try:
        own = model.__pydantic_serializer__.to_json(model, exclude_unset=True, warnings=False)
    except PydanticSerializationError:
        return False
    return own.count(b":") == body.count(b":")


def parsed(body: bytes) -> Any:
    """The value of a JSON text; Refused if it is none, or not of one meaning."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _refused(f"byte {body[error.start]:#04x} at place {error.start}", "UTF-8", "encode it as UTF-8") from None
    if _depth(body) > MAX_DEPTH:
        raise _refused(f"more than {MAX_DEPTH} lists and objects inside each other", f"at most {MAX_DEPTH}", SHOWN)
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        raise _refused(f"{error.msg} at character {error.pos}", "JSON", "send valid JSON") from None
    except ValueError:
        # Python's limit of the digits of a whole number.
        raise _refused("a number of thousands of digits", "numbers of sensible size", SHOWN) from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        what = in_utf8(twice)[:MAX_NAME] or "a key without a name"
        raise Refused(422, api.Problem(what=what, got="the same key twice", expected="each key once", fix="keep one of them"))
    return found


def _depth(body: bytes) -> int:
    """Of lists and objects inside each other, up to the first place where the text is no JSON."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    byte = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    step = np.isin(byte, _OPENS).astype(np.int32) - np.isin(byte, _CLOSES)
    return int(np.cumsum(step).max(initial=0))


def _require_json(content_type: str) -> None:
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        got = repr(content_type[:100]) if content_type else "nothing"
        problem = api.Problem(what="content-type", got=got, expected="application/json", fix="say so in the header")
        raise Refused(415, problem)


def _refused(got: str, expected: str, fix: str) -> Refused:
    return Refused(422, api.Problem(what="body", got=got, expected=expected, fix=fix))


def too_long(got: str) -> Refused:
    expected = f"at most {MAX_BODY_BYTES}"
    return Refused(413, api.Problem(what="body", got=got, expected=expected, fix="split it over several requests"))
