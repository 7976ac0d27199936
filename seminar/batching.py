"""Requests to tensors: the only padding code.

A batch is request-level: one history a row, encoded once, scored against all T targets of that request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seminar.schema import MS_PER_WEEK, NONE, PSR
from seminar.sequences import Histories

MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class Request:
    """What is scored at one moment of one user: T targets against the history before `end`.

    row: user row in the Histories. end: behaviours visible (positions [0, end)). time_ms: the moment, Unix ms.
    item_T, query_T, label_T, task_T: target pairs as catalogue rows (query -1: none), labels in {0, 1}, task codes CTR or PSR.
    """

    row: int
    end: int
    time_ms: int
    item_T: Int[np.ndarray, " T"]
    query_T: Int[np.ndarray, " T"]
    label_T: Float[np.ndarray, " T"]
    task_T: Int[np.ndarray, " T"]


@dataclass(frozen=True)
class Batch:
    """B requests, padded on the right; masks are derived from lengths here and nowhere else.

    item_BL, query_BL: catalogue rows, oldest first. hours_BL: hours from the behaviour to the request, float32 (>= 0).
    total_length_B: the history's whole length, of which the newest `length_B` are here.
    item_BT, query_BT, label_BT, task_BT: targets. week_B: the week that the request falls in, time_ms // MS_PER_WEEK.
    """

    item_BL: Int[Tensor, "B L"]
    query_BL: Int[Tensor, "B L"]
    hours_BL: Float[Tensor, "B L"]
    length_B: Int[Tensor, " B"]
    total_length_B: Int[Tensor, " B"]
    item_BT: Int[Tensor, "B T"]
    query_BT: Int[Tensor, "B T"]
    label_BT: Float[Tensor, "B T"]
    task_BT: Int[Tensor, "B T"]
    target_count_B: Int[Tensor, " B"]
    hour_of_week_B: Int[Tensor, " B"]
    week_B: Int[Tensor, " B"]

    @property
    def mask_BL(self) -> Bool[Tensor, "B L"]:
        """True for real behaviours."""
        return _mask(self.length_B, self.item_BL.shape[1])

    @property
    def mask_BT(self) -> Bool[Tensor, "B T"]:
        """True for real targets."""
        return _mask(self.target_count_B, self.item_BT.shape[1])

    def to(self, device: torch.device) -> "Batch":
        return type(self)(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def collate(histories: Histories, requests: Sequence[Request], max_history: int) -> Batch:
    """Pad the requests' newest `max_history` behaviours and their targets into one Batch."""
    ends = np.array([r.end for r in requests], np.int64)
    lengths = np.minimum(ends, max_history)
    starts = histories.offsets[[r.row for r in requests]] + ends - lengths
    index_BL, mask_BL = _gather_index(starts, lengths)
    times = np.array([r.time_ms for r in requests], np.int64)
    hours_BL = hours_since(_take(histories.time_ms, index_BL, mask_BL, 0), times[:, None])
    counts = np.array([len(r.item_T) for r in requests], np.int64)
    return Batch(
        item_BL=torch.from_numpy(_take(histories.item, index_BL, mask_BL, 0).astype(np.int64)),
        query_BL=torch.from_numpy(_take(histories.query, index_BL, mask_BL, NONE).astype(np.int64)),
        hours_BL=torch.from_numpy(np.where(mask_BL, hours_BL, np.float32(0))),
        length_B=torch.from_numpy(lengths),
        total_length_B=torch.from_numpy(ends),
        item_BT=torch.from_numpy(_pad([r.item_T for r in requests], counts, 0, np.int64)),
        query_BT=torch.from_numpy(_pad([r.query_T for r in requests], counts, NONE, np.int64)),
        label_BT=torch.from_numpy(_pad([r.label_T for r in requests], counts, 0, np.float32)),
        task_BT=torch.from_numpy(_pad([r.task_T for r in requests], counts, PSR, np.int64)),
        target_count_B=torch.from_numpy(counts),
        hour_of_week_B=torch.from_numpy(hour_of_week(times)),
        week_B=torch.from_numpy(times // MS_PER_WEEK),
    )


def batch_of_one(
    item_L: Int[np.ndarray, " L"],
    query_L: Int[np.ndarray, " L"],
    time_ms_L: Int[np.ndarray, " L"],
    total_length: int,
    item_T: Int[np.ndarray, " T"],
    query_T: Int[np.ndarray, " T"],
    task: int,
    time_ms: int,
) -> Batch:
    """One request as a Batch of one; the same arithmetic as `collate`."""
    hours, targets = hours_since(time_ms_L, np.array(time_ms)), len(item_T)
    length = len(item_L)
    width = max(length, 1)

    def padded(values: np.ndarray, fill: int) -> Tensor:
        return torch.from_numpy(values.astype(np.int64) if length else np.full(width, fill, np.int64))[None]

    return Batch(
        item_BL=padded(item_L, 0),
        query_BL=padded(query_L, NONE),
        hours_BL=torch.from_numpy(hours if length else np.zeros(width, np.float32))[None],
        length_B=torch.tensor([length]),
        total_length_B=torch.tensor([total_length]),
        item_BT=torch.from_numpy(item_T.astype(np.int64))[None],
        query_BT=torch.from_numpy(query_T.astype(np.int64))[None],
        label_BT=torch.zeros(1, targets),
        task_BT=torch.full((1, targets), task),
        target_count_B=torch.tensor([targets]),
        hour_of_week_B=torch.from_numpy(hour_of_week(np.array([time_ms]))),
        week_B=torch.tensor([time_ms // MS_PER_WEEK]),
    )


def hours_since(time_ms: Int[np.ndarray, "*N"], now_ms: Int[np.ndarray, "*#N"]) -> Float[np.ndarray, "*N"]:
    """Age of behaviours in hours, never negative (clocks differ), float32."""
    return np.maximum((now_ms - time_ms) / MS_PER_HOUR, 0).astype(np.float32)


def hour_of_week(time_ms: Int[np.ndarray, "*N"]) -> Int[np.ndarray, "*N"]:
    """0 = Monday 00:00 UTC ... 167; the Unix epoch fell on a Thursday."""
    return (time_ms // MS_PER_HOUR + 72) % 168


@dataclass(frozen=True)
class WindowBatch:
    """B windows of consecutive behaviours of one user each, padded on the right; what the PSU is pretrained on.

    request_BL: number of the behaviour's request inside its user (non-decreasing), -1 on padding.
    """

    item_BL: Int[Tensor, "B L"]
    query_BL: Int[Tensor, "B L"]
    request_BL: Int[Tensor, "B L"]
    length_B: Int[Tensor, " B"]

    @property
    def mask_BL(self) -> Bool[Tensor, "B L"]:
        """True for real behaviours."""
        return _mask(self.length_B, self.item_BL.shape[1])

    def to(self, device: torch.device) -> "WindowBatch":
        return type(self)(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def collate_windows(histories: Histories, starts: Int[np.ndarray, " B"], lengths: Int[np.ndarray, " B"]) -> WindowBatch:
    """Pad windows [start, start + length) into one WindowBatch; starts are positions in the flat arrays of `histories`."""
    index_BL, mask_BL = _gather_index(starts, lengths)
    return WindowBatch(
        item_BL=torch.from_numpy(_take(histories.item, index_BL, mask_BL, 0).astype(np.int64)),
        query_BL=torch.from_numpy(_take(histories.query, index_BL, mask_BL, NONE).astype(np.int64)),
        request_BL=torch.from_numpy(_take(histories.request, index_BL, mask_BL, NONE).astype(np.int64)),
        length_B=torch.from_numpy(lengths),
    )


def _mask(length_B: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=length_B.device) < length_B[:, None]


def _gather_index(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(max(int(lengths.max(initial=0)), 1))
    return starts[:, None] + steps, steps < lengths[:, None]


def _take(column: np.ndarray, index: np.ndarray, mask: np.ndarray, fill: int) -> np.ndarray:
    if not len(column):
        return np.full(index.shape, fill, column.dtype)
    return np.where(mask, column[np.where(mask, index, 0)], fill)


def _pad(rows: Sequence[np.ndarray], counts: np.ndarray, fill: int, dtype: type) -> np.ndarray:
    out = np.full((len(rows), max(int(counts.max(initial=0)), 1)), fill, dtype)
    out[np.arange(out.shape[1]) < counts[:, None]] = np.concatenate(rows)
    return out
