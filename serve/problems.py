"""What is wrong with a request, in one vocabulary: what, got, expected, fix."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seminar.errors import SeminarError
from serve import api


class Refused(SeminarError):
    """A request that cannot be answered; carries the HTTP status and its problems."""

    def __init__(self, status: int, *problems: api.Problem) -> None:
        super().__init__("; ".join(f"{p.what}: got {p.got}, expected {p.expected}; {p.fix}" for p in problems))
        self.status, self.problems = status, list(problems)


def problems_of(errors: Sequence[Mapping[str, Any]], known: Iterable[str] | None = None) -> list[api.Problem]:
    """Pydantic's errors in our words; `what` is the field's path, e.g. `targets[3].item_id`. known: names for typos."""
    return [_problem(error, _FIELDS if known is None else list(known)) for error in errors]


_FIXES = {
    "missing": "add it",
    "json_invalid": "send valid JSON",
    "string_type": "ids are strings: quote it",
    "int_type": "send a whole number",
    "int_from_float": "send a whole number",
    "greater_than_equal": "raise it; times are in milliseconds, not seconds",
    "less_than_equal": "lower it; times are in milliseconds",
    "value_error": "keep one of them",
}


def _problem(error: Mapping[str, Any], known: Sequence[str]) -> api.Problem:
    location = [part for part in error["loc"] if part != "body"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "body"
    kind, expected = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "remove it"
        return api.Problem(what=where, got="an unknown field", expected="a known one", fix=fix)
    got = "nothing" if kind == "missing" else repr(error.get("input"))[:80]
    return api.Problem(what=where, got=got, expected=expected, fix=_FIXES.get(kind, "mend that value"))


_MODELS = (api.ScoreRequest, api.Target, api.EventsRequest, api.EventIn)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields})
