"""Which runs a comparison needs: the same random search for every model, every model under every seed, variants beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seminar.config import Kind, Settings, merged, settings_of
from seminar.models import NAMES

PUBLISHED = "as published"


@dataclass(frozen=True)
class Plan:
    """One training run. name: its line in the report; runs of one name differ by seed only."""

    name: str
    seed: int
    settings: Settings


def draws(settings: Settings, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Settings of each trial: the first as given, the others drawn uniformly from `compare.search`, no two alike."""
    config = settings.compare
    found: list[dict[str, Any]] = [{}] if config.trials else []
    space = int(np.prod([len(values) for values in config.search.values()])) if config.search else 0
    while len(found) < min(config.trials, 1 + space):
        drawn = {name: values[int(generator.integers(len(values)))] for name, values in config.search.items()}
        if drawn not in found:
            found.append(drawn)
    return found


def trial_plans(settings: Settings, kind: Kind, trials: Sequence[dict[str, Any]]) -> list[Plan]:
    """Runs of one model's random search: first seed, validation split."""
    config = settings.compare
    shorter = {} if config.trial_steps is None else {"finetune.steps": config.trial_steps}
    fixed = {**shorter, "evaluate.split": "validation", **_WITHOUT_CATALOGUE}
    return [_plan(f"{NAMES[kind]} trial {i}", settings, config.seeds[0], kind, drawn, fixed) for i, drawn in enumerate(trials)]


def model_plans(settings: Settings, kind: Kind, chosen: dict[str, Any]) -> list[Plan]:
    """One run a seed with the chosen settings; the whole catalogue is ranked under the first seed only, for its price."""
    return [
        _plan(NAMES[kind], settings, seed, kind, chosen, _WITHOUT_CATALOGUE if later else {})
        for later, seed in enumerate(settings.compare.seeds)
    ]


def variant_plans(settings: Settings, chosen: dict[Kind, dict[str, Any]]) -> list[Plan]:
    """Named variants and cut histories, each with the settings chosen for its model; never the whole catalogue."""
    config = settings.compare
    plans = []
    for kind in config.models if config.published else ():
        tuned = {**chosen.get(kind, {}), **_WITHOUT_CATALOGUE}
        name = f"{NAMES[kind]} / {PUBLISHED}"
        plans += [_plan(name, settings, seed, kind, tuned, published_inputs(kind)) for seed in config.paired_seeds]
    for name, changes in config.variants.items():
        kind = merged({"model": {"kind": config.models[0]}}, changes)["model"]["kind"]
        tuned = {**chosen.get(kind, {}), **_WITHOUT_CATALOGUE}
        plans += [_plan(f"{NAMES[kind]} / {name}", settings, seed, kind, tuned, changes) for seed in config.paired_seeds]
    for kind in config.length_models:
        for length in config.lengths:
            cut = {"finetune.max_history": length, "evaluate.max_history": length}
            tuned = {**chosen.get(kind, {}), **_WITHOUT_CATALOGUE, **cut}
            plans += [_plan(length_name(kind, length), settings, seed, kind, tuned) for seed in config.paired_seeds]
    return plans


def published_inputs(kind: Kind) -> dict[str, Any]:
    """What a model's paper feeds it of what this data has; SEMINAR also without what this code adds to it."""
    with_content = kind in ("seminar", "qin", "muse")
    channels = ["query", "text", "image", "attributes"] if with_content else ["attributes"]
    inputs = {"model.channels": channels, "model.cross_features": False, "model.trend_features": False}
    if kind != "seminar":
        return inputs
    added = {"taste": 0, "simtier": False, "semantic_attention": False, "time_buckets": 0}
    return inputs | {f"model.{name}": value for name, value in added.items()} | {"finetune.distillation": 0.0}


def length_name(kind: Kind, length: int) -> str:
    """Line of a model whose histories are cut."""
    return f"{NAMES[kind]} L={length}"


_WITHOUT_CATALOGUE = {"evaluate.full_ranking_users": 0}


def _plan(name: str, settings: Settings, seed: int, kind: Kind, *changes: dict[str, Any]) -> Plan:
    config = settings.compare
    start = True if kind in config.pretrained else "content" if kind in config.pretrained_content else False
    own = {"model.kind": kind, "finetune.pretrained": start}
    values = settings.model_dump(exclude={"compare"})
    for change in ({"pretrain.seed": seed, "finetune.seed": seed}, own, *changes):
        values = merged(values, change)
    return Plan(name, seed, settings_of(values, f"run {name!r}"))
