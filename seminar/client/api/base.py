"""What all requests and answers share: ids, times, tasks, the strictness of inputs, and errors."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from seminar.client.api import examples

MIN_TIME_MS = 100_000_000_000
"""1973-03-03; a time below it is almost surely in seconds."""
MAX_TIME_MS = 4_102_444_800_000
"""2100-01-01."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]+$")]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")]
Version = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
TimeMs = Annotated[int, Field(ge=MIN_TIME_MS, le=MAX_TIME_MS, description="Unix milliseconds, UTC")]
Task = Literal["ctr", "psr"]
Source = Literal["history", "query", "retrieved"]


class Input(BaseModel):
    """What a client sends: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Output(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Queried(Input):
    """Something with at most one query, named by id or given as text."""

    query_id: Id | None = None
    """A query of the catalogue."""
    query: QueryText | None = None
    """Query text; one that the catalogue does not hold is encoded on the fly."""

    @model_validator(mode="after")
    def _one_query(self) -> "Queried":
        if self.query_id is not None and self.query is not None:
            raise ValueError("query_id or query, not both")
        return self


class Problem(Output):
    """One thing that is wrong with a request."""

    what: str
    got: str
    expected: str
    fix: str


class ErrorResponse(Output):
    errors: list[Problem]
    omitted: int = 0
    """Further problems, which are not listed."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.ERROR]})
