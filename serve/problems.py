"""What is wrong with a request, in one vocabulary: what, got, expected, fix."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seminar.client import api
from seminar.errors import SeminarError

MAX_NAME = 100
"""Characters of a client's field name that an answer repeats."""


class Refused(SeminarError):
    """A request that cannot be answered; carries the HTTP status and its problems."""

    def __init__(self, status: int, *problems: api.Problem) -> None:
        super().__init__("; ".join(f"{p.what}: got {p.got}, expected {p.expected}; {p.fix}" for p in problems))
        self.status, self.problems = status, list(problems)


def problems_of(errors: Sequence[Mapping[str, Any]], known: Iterable[str] | None = None) -> list[api.Problem]:
    """Pydantic's errors in our words; `what` is the field's path, e.g. `targets[3].item_id`. known: names for typos."""
    return [_problem(error, _FIELDS if known is None else list(known)) for error in errors]


def in_utf8(text: str) -> str:
    """A client's text with what no answer can hold escaped: halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode()


_FIXES = {
    "missing": "add it",
    "string_type": "ids are strings: quote it",
    "int_type": "send a whole number",
    "int_from_float": "send a whole number",
    "greater_than_equal": "raise it",
    "less_than_equal": "lower it",
    "value_error": "keep one of them",
    "one_item": "name the item by one of them",
    "no_content": "say what is known of it",
}


def _problem(error: Mapping[str, Any], known: Sequence[str]) -> api.Problem:
    location = [part for part in error["loc"] if part != "body"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{in_utf8(part)[:MAX_NAME]}" for part in location)
    where = where.lstrip(".") or "body"
    kind, name = error["type"], str(location[-1])[:MAX_NAME] if location else ""
    if kind == "extra_forbidden":
        # A name of another request is known too, but out of place here.
        near = [] if name in known else difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "remove it"
        return api.Problem(what=where, got="an unknown field", expected="a known one", fix=fix)
    got = "nothing" if kind == "missing" else repr(error.get("input"))[:80]
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "string_pattern_mismatch":
        expected = "words, not only blanks or control characters" if name == "query" else "text without control characters"
    fix = _FIXES.get(kind, "mend that value")
    if name == "time_ms" and kind in ("greater_than_equal", "less_than_equal"):
        fix += "; times are in milliseconds, not seconds or microseconds"
    return api.Problem(what=where, got=got, expected=expected, fix=fix)


_MODELS = (api.ScoreRequest, api.Target, api.RecommendRequest, api.EventsRequest, api.EventIn, api.ExplainRequest)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields})
