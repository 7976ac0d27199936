"""What a client raises: the service's own words where it had any."""

from seminar.client import api
from seminar.errors import SeminarError


class ServiceError(SeminarError):
    """The service refused a request. status: of HTTP. problems: what, got, expected, fix. request_id: as its log knows it."""

    def __init__(self, status: int, problems: list[api.Problem], request_id: str | None = None) -> None:
        told = "; ".join(f"{p.what}: got {p.got}, expected {p.expected}; {p.fix}" for p in problems) or "no reason given"
        super().__init__(f"{status}: {told}" + (f" (request {request_id})" if request_id else ""))
        self.status, self.problems, self.request_id = status, problems, request_id


class Unreachable(SeminarError):
    """No answer after all attempts: connection refused or lost, or no answer in time."""
