"""What a call raises when there is no answer."""

from collections.abc import Sequence

from seminar.client.api import Problem
from seminar.errors import SeminarError, explain


class ServiceError(SeminarError):
    """The service, or something before it, refused. request_id: what its log calls it."""

    def __init__(self, status: int, problems: Sequence[Problem], request_id: str | None = None) -> None:
        sentences = [explain(p.what, got=p.got, expected=p.expected, fix=p.fix) for p in problems]
        where = f" (request {request_id})" if request_id else ""
        super().__init__(f"status {status}: {'. '.join(sentences)}{where}")
        self.status, self.problems, self.request_id = status, list(problems), request_id


class Unreachable(SeminarError):
    """No address gave an answer before the deadline."""

    def __init__(self, what: str, why: str, attempts: int, request_id: str) -> None:
        got = f"{why}, {attempts} attempt{'s' * (attempts > 1)} (request {request_id})"
        fix = "check the addresses and that the service runs, or allow a longer deadline_s"
        super().__init__(explain(what, got=got, expected="an answer before the deadline", fix=fix))
        self.attempts, self.request_id = attempts, request_id
