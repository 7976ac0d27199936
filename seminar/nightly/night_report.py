"""A night in one page of Markdown, made from its ledger alone: what was new, drift, gates, versions, timings."""

from collections.abc import Iterator, Mapping
from typing import Any

from seminar.nightly.ledger import STEPS, Record
from seminar.schema import CHANNELS

_STATES = {
    "running": "not finished: run the same night again to go on",
    "unchanged": "the log had nothing new; the bundle stays in use",
    "refused": "a gate refused the candidate; nothing was published",
    "rolling_back": "being rolled back: run the same night again to finish that",
    "rolled_back": "rolled back; what was in use before is in use",
    "done": "in use",
}


def render(record: Record) -> str:
    """The report of a night in any state, also an unfinished one."""
    outcomes = {name: step.outcome for name, step in record.steps.items()}
    if record.judged is not None:
        outcomes.setdefault("gates", record.judged)
    lines = [f"# Night {record.run_id}", "", f"{_STATES[record.state][0].upper()}{_STATES[record.state][1:]}."]
    lines += ["", *(f"- {reason}" for reason in record.reasons)] if record.reasons else []
    for title, section, step in (
        ("What was new", _new, "pairs"),
        ("Vectors", _vectors, "vectors"),
        ("Drift under the codebooks in use", _drift, "drift"),
        ("Refit", _refit, "codebooks"),
        ("Item index", _index, "index"),
        ("Gates", _gates, "gates"),
        ("Histories", _histories, "histories"),
        ("Swap", _swap, "swap"),
        ("Verification", _verify, "verify"),
    ):
        # What was skipped, and why, is among the steps.
        if "skipped" not in outcomes.get(step, {"skipped": ""}):
            lines += ["", f"## {title}", "", *section(outcomes[step])]
    lines += ["", "## Versions", "", *_versions(record.base, outcomes)]
    lines += ["", "## Steps", "", *_steps(record)]
    return "\n".join(lines) + "\n"


def _new(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(("count", "new"), outcome["new"].items())
    yield ""
    yield f"Query origins of the whole log: {_counts(outcome['origins'])}."
    yield f"Rows of the whole log in quarantine: {_counts(outcome['quarantined'])}."


def _vectors(outcome: Mapping[str, Any]) -> Iterator[str]:
    coverage, reused = outcome["coverage"], outcome["reused"]
    yield "Share that has a vector, by channel; `behaviours` weighs an item by how often it was taken."
    yield ""
    shares = ("queries", "items", "behaviours")
    rows = ((name, *(coverage[name].get(share) for share in shares), reused.get(name)) for name in CHANNELS)
    yield from _table(("channel", *shares, "contents taken over"), rows)
    yield ""
    yield f"Contents that could not be encoded: {_counts(outcome['failed'])}."


def _drift(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield "Squared error of unit vectors (0 to 4) by the codebooks in use; changed: share of old rows' codes that their own new"
    yield "content changes."
    yield ""
    columns = ("old_vectors", "old_distortion", "new_vectors", "new_distortion", "changed")
    rows = ((name, *(found[column] for column in columns)) for name, found in _channels(outcome))
    yield from _table(("channel", "old vectors", "distortion", "new vectors", "distortion", "changed"), rows)


def _refit(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield "Against the codebooks in use, over the whole catalogue: share of codes that the refit changed, distortions of both;"
    yield "then the distortion of items never taken in training and of those taken 100 times or more."
    yield ""
    rows = []
    for name, found in _channels(outcome):
        drift, taken = found["drift"]["all"], found["by_frequency"]
        seldom, often = (taken[bucket]["distortion"] if taken else None for bucket in ("never", "100+"))
        distortions = drift["distortion_old"], drift["distortion_new"], seldom, often
        rows.append((name, drift["changed"], *distortions, found["dead"], found["duplicates"]))
    header = ("channel", "changed", "before", "after", "never taken", "100 or more", "dead centroids", "duplicates")
    yield from _table(header, rows)


def _index(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield f"{outcome['items']:,} items, {outcome['kind']}."
    yield f"Recall@{outcome['recall_at']} against exact search: {outcome['recall']:.4f}."


def _gates(outcome: Mapping[str, Any]) -> Iterator[str]:
    measured = outcome["measured"]
    yield from _table(
        ("gate", "value", "limit"), ((g["name"], g["value"], f"{g['bound']} {g['limit']:g}") for g in outcome["gates"])
    )
    yield ""
    yield f"{measured['probes']} real requests; in {measured['searched']} the history is long enough for codes to lose anything."
    yield f"Recall of the bundle in use on the same requests: {measured['recall_before']:.4f}."
    yield f"Mean reciprocal rank of the held-out item in the {measured['ranked']} requests whose item both bundles know:"
    yield f"{measured['rank']:.4f}, under the bundle in use {measured['rank_before']:.4f}."


def _histories(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield f"{outcome['behaviours']:,} behaviours were added to the history store; {outcome['users']:,} users are new in it."


def _swap(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield f"{outcome['replicas']:,} replicas serve the candidate."


def _verify(outcome: Mapping[str, Any]) -> Iterator[str]:
    difference = outcome["largest_difference"]
    yield f"{outcome['requests']} requests gave the same scores here and there; largest difference {difference:.2g}."
    yield f"Users that could not be compared: {_counts(outcome['passed_over'])}."


def _versions(base: Mapping[str, str], outcomes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = ((kind, version, outcomes.get(kind, {}).get("version", "")) for kind, version in sorted(base.items()))
    yield from _table(("kind", "before", "candidate"), ((k, old, "the same" if k == "model" else new) for k, old, new in rows))


def _steps(record: Record) -> Iterator[str]:
    rows = []
    for name in STEPS:
        step = record.steps.get(name)
        note = "" if step is None else step.outcome.get("skipped", "")
        rows.append((name, "" if step is None else f"{step.seconds:.1f} s", "" if step is None else step.finished, note))
    yield from _table(("step", "took", "finished (UTC)", "note"), rows)


def _channels(outcome: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, outcome["channels"][name]) for name in CHANNELS)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _table(header: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
