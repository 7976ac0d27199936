"""Many runs (models x seeds) to one table of figures: means over seeds, intervals, and every model against one reference.

What is tested: users are the unit. Per user the metric is averaged over seeds and the reference's subtracted; signs of these
differences are flipped at random. That speaks of the trained models at hand. The interval named low, high covers seeds as well:
users are drawn with replacement and so are the seeds of either model, each model's by itself.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from seminar.errors import DataError, explain
from seminar.evaluate.aligned import Aligned, Trained, align
from seminar.evaluate.intervals import REPLICATES, draw_users, interval, run_shares
from seminar.evaluate.metrics import check_feasible
from seminar.evaluate.paired import FLIPS, holm, sign_flip_p
from seminar.evaluate.protocol import FLOORS
from seminar.evaluate.slices_of_runs import Sums, slices_of_runs

REFERENCE, RIVAL, VARIANT, FLOOR = "reference", "rival", "variant", "floor"
_VARIANT = re.compile(r" / | L=\d+$")
LOWER_IS_BETTER = ("log-loss",)


@dataclass(frozen=True)
class Comparison:
    """Figures of all models. roles: name -> reference, rival, variant (`<model> / <change>`, `<model> L=<n>`) or floor.

    lines: one a protocol, query origin, slice and model, with users, rows, seeds, `metrics` (value, low, high, by_seed) and,
    but for the reference, `differences` to it (value, low, high over users and seeds; low_users, high_users over users alone; p;
    p_holm, corrected over the models of the same role in this slice and metric). None where nothing defines a figure.
    """

    reference: str
    roles: Mapping[str, str]
    runs: tuple[Trained, ...]
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class _Mix:
    """K models made of E entries: mean_KE averages seeds, share_RKE draws them with replacement in every replicate."""

    entries: tuple[str, ...]
    names: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    mean_KE: Float[ndarray, "K E"]
    share_RKE: Float[ndarray, "R K E"]


def compare(
    runs: Sequence[Trained],
    reference: str,
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    flips: int = FLIPS,
) -> Comparison:
    """Every model's figures and its differences to `reference`; the floors of the first run are lines too.

    Raises DataError where runs differ in what they ranked or the reference has no run, InfeasibleMetrics for impossible figures.
    """
    aligned = align(runs)
    roles = {name: _role(name, reference) for name, _ in aligned.entry}
    if REFERENCE not in roles.values():
        fix = "train it or choose another reference"
        raise DataError(explain("reference", got=f"{reference}", expected=f"one of {', '.join(roles)}", fix=fix))
    # A replicate at a time: whole, in 64 bits, a million users would take 8 GB.
    weight_RU = np.concatenate([draw_users(len(aligned.users), 1, generator).astype(np.uint8) for _ in range(replicates)])
    mix = _mix(aligned, replicates, generator)
    lines: list[dict[str, Any]] = []
    for sums in slices_of_runs(aligned):
        lines += _lines(sums, mix, roles, weight_RU, generator, flips)
    return Comparison(reference, roles, tuple(runs), lines)


def better(metric: str, difference: float) -> bool:
    """Whether a difference (model minus reference) speaks for the model."""
    return difference < 0 if metric in LOWER_IS_BETTER else difference > 0


def _role(name: str, reference: str) -> str:
    if name == reference:
        return REFERENCE
    if name in FLOORS:
        return FLOOR
    return VARIANT if _VARIANT.search(name) else RIVAL


def _mix(aligned: Aligned, replicates: int, generator: np.random.Generator) -> _Mix:
    names = tuple(dict.fromkeys(name for name, _ in aligned.entry))
    own_KE = np.array([[name == entry for entry, _ in aligned.entry] for name in names])
    share_RKE = np.zeros((replicates, *own_KE.shape))
    for k, own_E in enumerate(own_KE):
        share_RKE[:, k, own_E] = run_shares(int(own_E.sum()), replicates, generator)
    seeds = tuple(tuple(seed for own, seed in aligned.entry if own == name and seed is not None) for name in names)
    entries = tuple(name if seed is None else f"{name}, seed {seed}" for name, seed in aligned.entry)
    return _Mix(entries, names, seeds, own_KE / own_KE.sum(1, keepdims=True), share_RKE)


def _lines(
    sums: Sums,
    mix: _Mix,
    roles: Mapping[str, str],
    weight_RU: UInt8[ndarray, "R U"],
    generator: np.random.Generator,
    flips: int,
) -> Iterator[dict[str, Any]]:
    value_EQ = sums.values(np.ones((1, len(sums.user_U))))[0]
    drawn_REQ = sums.values(weight_RU[:, sums.user_U])
    value_KQ = mix.mean_KE @ value_EQ
    for where, values in zip((*mix.entries, *mix.names), (*value_EQ, *value_KQ), strict=True):
        check_feasible({n: v for n, v in zip(sums.metrics, values, strict=True) if not np.isnan(v)}, f"{where}: {sums.key}")
    seeds_RKQ, users_RKQ = mix.share_RKE @ drawn_REQ, mix.mean_KE @ drawn_REQ
    reference = mix.names.index(next(name for name, role in roles.items() if role == REFERENCE))
    p_KQ = _p(sums, mix, reference, generator, flips)
    corrected_KQ = _corrected(p_KQ, [roles[name] for name in mix.names])
    for k, name in enumerate(mix.names):
        keep = [q for q, metric in enumerate(sums.metrics) if roles[name] != FLOOR or metric != "log-loss"]
        metrics = _figures(value=value_KQ[k], ends=interval(seeds_RKQ[:, k]))
        own = value_EQ[mix.mean_KE[k] > 0]
        line: dict[str, Any] = dict(zip(("protocol", "query_origin", "slice", "bin"), sums.key, strict=True))
        line |= {"main": sums.main, "scorer": name, "role": roles[name], "users": len(sums.user_U), "rows": sums.rows}
        line |= {"runs": len(own), "seeds": list(mix.seeds[k]), "notes": sums.notes}
        line["metrics"] = {sums.metrics[q]: metrics[q] | {"by_seed": [_known(v) for v in own[:, q]]} for q in keep}
        if k != reference:
            ends = interval(seeds_RKQ[:, k] - seeds_RKQ[:, reference])
            ends_users = interval(users_RKQ[:, k] - users_RKQ[:, reference])
            apart = _figures(value_KQ[k] - value_KQ[reference], ends, ends_users, p_KQ[k], corrected_KQ[k])
            line["differences"] = {sums.metrics[q]: apart[q] for q in keep}
        yield line


def _p(sums: Sums, mix: _Mix, reference: int, generator: np.random.Generator, flips: int) -> Float[ndarray, "K Q"]:
    """NaN for the reference itself and for metrics that are no sum over users."""
    total_UKQ = mix.mean_KE @ sums.total_UEQ
    apart_UKQ = total_UKQ - total_UKQ[:, reference : reference + 1]
    p = sign_flip_p(apart_UKQ.reshape(len(apart_UKQ), -1), generator, flips)
    p_KQ = np.full((len(mix.names), len(sums.metrics)), np.nan)
    p_KQ[:, : len(sums.names)] = p.reshape(len(mix.names), -1)
    p_KQ[reference] = np.nan
    return p_KQ


def _corrected(p_KQ: Float[ndarray, "K Q"], roles: Sequence[str]) -> Float[ndarray, "K Q"]:
    """Holm over the models of one role, metric by metric: rivals are one family, variants another, floors a third."""
    corrected = np.full(p_KQ.shape, np.nan)
    for role in (RIVAL, VARIANT, FLOOR):
        own = [k for k, other in enumerate(roles) if other == role]
        for q in range(p_KQ.shape[1]):
            corrected[own, q] = holm(p_KQ[own, q])
    return corrected


def _figures(
    value: Float[ndarray, " Q"],
    ends: Float[ndarray, "2 Q"],
    ends_users: Float[ndarray, "2 Q"] | None = None,
    p: Float[ndarray, " Q"] | None = None,
    corrected: Float[ndarray, " Q"] | None = None,
) -> list[dict[str, Any]]:
    parts = {"value": value, "low": ends[0], "high": ends[1]}
    if ends_users is not None and p is not None and corrected is not None:
        parts |= {"low_users": ends_users[0], "high_users": ends_users[1], "p": p, "p_holm": corrected}
    return [{name: _known(part[q]) for name, part in parts.items()} for q in range(len(value))]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
