import io

import pytest

from seminar.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    return stream.getvalue().splitlines()


def test_log_gets_a_line_every_three_seconds_and_one_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with Progress("prepare: events", total=1000, stream=stream, clock=clock) as progress:
        for _ in range(40):
            clock.now += 0.25
            progress.advance(25)
    assert len(lines(stream)) == 3 + 1
    assert lines(stream)[-1] == "prepare: events  1,000/1,000 rows (100 %)  100 rows/s  done in 10 s"


def test_line_names_share_rate_and_time_left():
    stream, clock = io.StringIO(), Clock()
    with Progress("pretrain", total=10_000, unit="pairs", stream=stream, clock=clock) as progress:
        clock.now += 4
        progress.advance(1000, note="loss 2.31")
        assert lines(stream) == ["pretrain  1,000/10,000 pairs (10 %)  250 pairs/s  ETA 36 s  loss 2.31"]


def test_resumed_work_counts_as_done_but_not_as_speed():
    stream, clock = io.StringIO(), Clock()
    with Progress("shards", total=10, unit="shards", done=8, stream=stream, clock=clock) as progress:
        clock.now += 4
        progress.advance(1)
        assert lines(stream) == ["shards  9/10 shards (90 %)  0.25 shards/s  ETA 4.0 s"]


def test_unknown_total_shows_no_eta():
    stream, clock = io.StringIO(), Clock()
    with Progress("scan", stream=stream, clock=clock) as progress:
        clock.now += 3
        progress.advance(0)
        progress.advance(30)
    assert lines(stream) == ["scan  0 rows  0 rows/s", "scan  30 rows  10 rows/s  done in 3.0 s"]


def test_an_error_passes_through_and_is_said():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress("scan", stream=stream, clock=Clock()):
        raise ValueError("broken")
    assert "stopped after" in lines(stream)[-1]


def test_terminal_gets_a_bar_and_the_same_last_line():
    stream = Terminal()
    with Progress("scan", total=10, stream=stream) as progress:
        progress.advance(10)
    assert "10/10" in stream.getvalue()
    assert "done in" in lines(stream)[-1]
