"""What a training step sees: requests with positives, same-category negatives and logged exposures; windows for pretraining.

Everything is drawn for a whole batch at once in numpy; the price is in benchmarks/ as a share of the step.
Training never looks past a user's train_end.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from seminar.batching import Batch, Request, WindowBatch, collate, collate_windows
from seminar.config import FinetuneConfig, PretrainConfig
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories
from seminar.train.lanes import Lane
from seminar.train.training_negatives import NegativeSampler, Owned, begins_request, users_and_positions


def finetune_lane(
    shards: Sequence[Path],
    lane: int,
    config: FinetuneConfig,
    category_index: Int[ndarray, " I"],
    train_count: Int[ndarray, " I"],
) -> Lane[Batch]:
    """One lane of requests from files of schema PAIRS; raises ConfigError for a lane without any request to train on."""
    negatives = NegativeSampler(category_index, train_count, config.popularity_share)
    return Lane(shards, lane, config, config.requests_per_lane, partial(RequestSamples, config=config, negatives=negatives))


def pretrain_lane(shards: Sequence[Path], lane: int, config: PretrainConfig) -> Lane[WindowBatch]:
    """One lane of sequence windows from files of schema PAIRS; raises ConfigError for a lane without any window."""
    return Lane(shards, lane, config, config.chunks_per_lane, partial(WindowSamples, window=config.window))


class RequestSamples:
    """Training requests of some users: each is scored against the behaviours before its first row."""

    def __init__(self, histories: Histories, config: FinetuneConfig, negatives: NegativeSampler) -> None:
        self._histories, self._config, self._negatives = histories, config, negatives
        self._user, self._start, self._stop = training_requests(histories, config.min_history, config.newest_requests)
        self._owned = Owned(histories, negatives.num_items, config.negatives_outside)
        shown = histories.exposures
        key = _request_key(np.repeat(np.arange(len(histories)), shown.lengths), shown.request)
        self._shown_order = np.argsort(key, kind="stable")
        self._shown_key = key[self._shown_order]

    def __len__(self) -> int:
        return len(self._start)

    @property
    def lengths(self) -> Int[ndarray, " N"]:
        """Behaviours before each request that a batch shows."""
        return np.minimum(self._start - self._histories.offsets[self._user], self._config.max_history)

    def draw(self, index: Int[ndarray, " N"], rng: np.random.Generator) -> Batch:
        """Requests with up to positives_per_request positives, their negatives, and up to exposures_per_request exposures.

        A negative carries its positive's query; the task is PSR where a target has a query, else CTR.
        """
        h = self._histories
        user, start = self._user[index], self._start[index]
        row_p, place_p = choose(start, self._stop[index], self._config.positives_per_request, rng)
        item_p, query_p = h.item[place_p].astype(np.int64), h.query[place_p].astype(np.int64)
        n = self._config.negatives_per_positive
        row_n, query_n = np.repeat(row_p, n), np.repeat(query_p, n)
        owner = user if self._config.negatives_outside == "history" else start
        item_n = self._draw_negatives(np.repeat(item_p, n), query_n, owner[row_n], (user[row_n], start[row_n]), rng)
        found = item_n != NONE
        row_x, place_x = self._choose_exposures(user, h.request[start], rng)
        row = np.concatenate([row_p, row_n[found], row_x])
        order = np.argsort(row, kind="stable")
        item = np.concatenate([item_p, item_n[found], h.exposures.item[place_x]])[order]
        query = np.concatenate([query_p, query_n[found], h.exposures.query[place_x]])[order]
        label = (np.arange(len(row)) < len(row_p)).astype(np.float32)[order]
        bounds = np.searchsorted(row[order], np.arange(len(index) + 1))
        return collate(h, self._requests(user, start, bounds, item, query, label), self._length(rng))

    def _draw_negatives(
        self, like: ndarray, query: ndarray, owner: ndarray, moment: tuple[ndarray, ndarray], rng: np.random.Generator
    ) -> Int[ndarray, " N"]:
        """An item a negative, of the positive's category or beside it; -1 where none was found. moment: user, request's start."""
        item = self._negatives.draw(like, owner, self._owned, rng)
        if not self._config.negatives_beside_query:
            return item
        beside = np.flatnonzero((query != NONE) & (rng.random(len(like)) < self._config.negatives_beside_query))
        user, start = moment[0][beside], moment[1][beside]
        past = (self._histories.item, self._histories.offsets[user], start)
        item[beside] = self._negatives.draw_outside(like[beside], owner[beside], self._owned, past, rng)
        return item

    def _length(self, rng: np.random.Generator) -> int:
        """Most behaviours this batch shows."""
        most, range_ = self._config.max_history, self._config.stochastic_length
        # No draw where there is no choice: batches stay what they were.
        return max(int(most / 2 ** rng.uniform(0, range_)), 1) if range_ else most

    def _choose_exposures(self, user: ndarray, request: ndarray, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
        key = _request_key(user, request)
        low, high = (np.searchsorted(self._shown_key, key, side=side) for side in ("left", "right"))
        row, place = choose(low, high, self._config.exposures_per_request, rng)
        return row, self._shown_order[place]

    def _requests(
        self, user: ndarray, start: ndarray, bounds: ndarray, item: ndarray, query: ndarray, label: ndarray
    ) -> list[Request]:
        h = self._histories
        task = np.where(query == NONE, CTR, PSR)
        return [
            Request(
                row=int(user[i]),
                end=int(start[i] - h.offsets[user[i]]),
                time_ms=int(h.time_ms[start[i]]),
                item_T=item[span],
                query_T=query[span],
                label_T=label[span],
                task_T=task[span],
            )
            for i, span in enumerate(map(slice, bounds[:-1], bounds[1:]))
        ]


class WindowSamples:
    """Windows over the training part of each user with at least two behaviours: ceil(n / window) windows an epoch.

    The windows of a long user are spread evenly and shifted at random by up to half a window, so that sampling is in
    proportion to behaviours and chunk borders move from epoch to epoch.
    """

    def __init__(self, histories: Histories, window: int) -> None:
        self._histories, self._window = histories, window
        length = histories.train_end.astype(np.int64)
        count = np.where(length > 1, -(-length // window), 0)
        self._user = np.repeat(np.arange(len(histories)), count)
        self._tile = np.arange(len(self._user)) - np.repeat(np.cumsum(count) - count, count)
        self._count = count

    def __len__(self) -> int:
        return len(self._user)

    @property
    def lengths(self) -> Int[ndarray, " N"]:
        """Behaviours of each window."""
        return np.minimum(self._histories.train_end[self._user], self._window).astype(np.int64)

    def draw(self, index: Int[ndarray, " N"], rng: np.random.Generator) -> WindowBatch:
        """One window a sample, never past train_end."""
        user = self._user[index]
        room = np.maximum(self._histories.train_end[user].astype(np.int64) - self._window, 0)
        even = self._tile[index] * room // np.maximum(self._count[user] - 1, 1)
        shift = rng.integers(-(self._window // 2), self._window // 2 + 1, len(index))
        start = self._histories.offsets[user] + np.clip(even + shift, 0, room)
        return collate_windows(self._histories, start, np.minimum(self._histories.train_end[user], self._window).astype(np.int64))


def training_requests(
    histories: Histories, min_history: int, newest: int | None = None
) -> tuple[Int[ndarray, " R"], Int[ndarray, " R"], Int[ndarray, " R"]]:
    """(user, start, stop) of every request that begins before train_end and after `min_history` behaviours.

    start and stop are positions in the flat arrays. newest: keep only each user's last this many.
    """
    user_E, position_E = users_and_positions(histories)
    start = np.flatnonzero(begins_request(histories, position_E))
    stop = np.append(start[1:], len(user_E))[: len(start)]
    user, position = user_E[start], position_E[start]
    keep = (position < histories.train_end[user]) & (position >= min_history)
    user, start, stop = user[keep], start[keep], stop[keep]
    if newest is not None:
        from_newest = np.searchsorted(user, user, side="right") - 1 - np.arange(len(user))
        user, start, stop = (column[from_newest < newest] for column in (user, start, stop))
    return user, start, stop


def choose(
    start: Int[ndarray, " R"], stop: Int[ndarray, " R"], most: int, rng: np.random.Generator
) -> tuple[Int[ndarray, " N"], Int[ndarray, " N"]]:
    """Up to `most` positions of each span [start, stop), without replacement, every subset equally likely: (span, position)."""
    size = stop - start
    span = np.repeat(np.arange(len(start)), size)
    first = np.repeat(np.cumsum(size) - size, size)
    order = np.lexsort((rng.random(len(span)), span))
    kept = np.sort(order[np.arange(len(span)) - first < most])
    return span[kept], (np.arange(len(span)) - first + np.repeat(start, size))[kept]


def _request_key(user: ndarray, request: ndarray) -> Int[ndarray, " N"]:
    return user.astype(np.int64) << 32 | request.astype(np.int64)
