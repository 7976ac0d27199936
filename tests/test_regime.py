"""The choice of a scorer: made from the request, explained, and overridden by settings."""

import pytest

from seminar.errors import ConfigError
from seminar.retrieval.regime import Method, Situation, choose, override


@pytest.mark.parametrize(
    ("situation", "method"),
    [
        (Situation("constant", 100, 10_000, 50), "int8"),
        (Situation("behaviour", 100, 10_000, 50), "int8"),
        (Situation("constant", 1, 10_000, 50), "merged"),
        (Situation("constant", 1, 10_000, 50, stored=True), "int8"),
        (Situation("constant", 100, 60, 50), "merged"),
        (Situation("constant", 100, 60, 50, stored=True), "merged"),
        (Situation("target", 100, 10_000, 50), "pq"),
        (Situation("target", 1, 60, 50), "exact"),
        (Situation("constant", 5, 0, 50), "merged"),
    ],
)
def test_the_method_follows_from_the_request(situation: Situation, method: Method) -> None:
    choice = choose(situation)
    assert choice.method == method
    assert choice.reason


def test_settings_override_the_choice() -> None:
    assert override("pq", None, "constant").overfetch == 4
    assert override("int8", 2.5, "target").overfetch == 2.5


def test_a_method_that_cannot_serve_the_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"merged.*target"):
        override("merged", None, "target")
