"""What candidate generation found: report.json (every figure) and report.md (read first)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seminar.artifacts import write_atomically
from seminar.candidates.full_ranking import NEW_ONLY
from seminar.candidates.two_stage import TWO_STAGE
from seminar.config import EvaluateRetrieverConfig
from seminar.evaluate.evaluation import FULL
from seminar.evaluate.intervals import CONFIDENCE, REPLICATES
from seminar.evaluate.report import RecordLine, cell
from seminar.evaluate.summary import ALL, FLAGS

NAMES = {
    "mmsrec": "MMSRec",
    "sasrec": "SASRec (IDs)",
    "two_tower": "two-tower (IDs and content)",
    "neighbours": "item-kNN",
    "history": "in-history",
    "popularity": "most popular",
    "query": "most taken under the query",
    "own_query": "in-history under the query, then most taken under it",
}
METRICS = ("HIT@10", "HIT@50", "NDCG@10", "NDCG@50")
"""With one item to find, HIT@k is Recall@k."""
SHOWN = {"HIT@10": "Recall@10", "HIT@50": "Recall@50", "NDCG@10": "NDCG@10", "NDCG@50": "NDCG@50"}
_SENTENCES = {
    FULL: (
        "Every held-out behaviour ranked among the whole catalogue; the rest of its request is left out, items of the history "
        "stay in."
    ),
    NEW_ONLY: "Held-out behaviours of items unseen in training, ranked among all items unseen in training.",
    TWO_STAGE: (
        "One held-out behaviour a user, among the whole catalogue: {count} candidates, ranked by the model; all else behind them."
    ),
}


def write_retriever_report(
    folder: Path,
    lines: Sequence[RecordLine],
    versions: Mapping[str, str],
    config: EvaluateRetrieverConfig,
    index: Mapping[str, Any] | None,
) -> list[str]:
    """Write report.json and report.md; returns the lines to print."""
    document = {
        "protocols": {name: text.format(count=config.candidates) for name, text in _SENTENCES.items()},
        "interval": {"method": "percentile bootstrap over users", "confidence": CONFIDENCE, "replicates": REPLICATES},
        "versions": dict(versions),
        "index": dict(index) if index else None,
        "results": list(lines),
    }
    write_atomically(folder / "report.json", json.dumps(document, indent=1, allow_nan=False))
    write_atomically(folder / "report.md", "\n".join(_markdown(lines, config, index)) + "\n")
    return list(_tables(lines, config, (ALL,)))


def _markdown(lines: Sequence[RecordLine], config: EvaluateRetrieverConfig, index: Mapping[str, Any] | None) -> Iterator[str]:
    yield from ("# Candidates out of the whole catalogue", "")
    yield f"Brackets hold {CONFIDENCE:.0%} intervals over users ({REPLICATES:,} bootstrap draws)."
    yield from _tables(lines, config, (ALL, "unseen", "repeat"))
    if index:
        yield from ("", "## Index", "")
        yield (
            f"{index['items']:,} items, {index['kind']}: recall@{index['recall_at']} {index['recall']:.4f} against exact search. "
            "Figures above are of exact search, but for those of two stages, which use the index."
        )


def _tables(lines: Sequence[RecordLine], config: EvaluateRetrieverConfig, slices: Sequence[str]) -> Iterator[str]:
    for protocol, sentence in _SENTENCES.items():
        of_protocol = [line for line in lines if line["protocol"] == protocol]
        if not of_protocol:
            continue
        yield from ("", f"## {protocol[0].upper()}{protocol[1:]} ranking", "", f"*{sentence.format(count=config.candidates)}*")
        for origin in dict.fromkeys(line["query_origin"] for line in of_protocol):
            own = [line for line in of_protocol if line["query_origin"] == origin]
            for name, part in dict.fromkeys((line["slice"], line["bin"]) for line in own if line["slice"] in slices):
                chosen = [line for line in own if (line["slice"], line["bin"]) == (name, part)]
                sizes = f"{chosen[0]['rows']:,} behaviours of {chosen[0]['users']:,} users"
                what = "" if name not in FLAGS else f", {part}"
                yield from ("", f"### Queries: {origin}{what} ({sizes})", "")
                yield f"| proposed by | {' | '.join(SHOWN[m] for m in METRICS)} |"
                yield f"|---|{'---|' * len(METRICS)}"
                for line in sorted(chosen, key=lambda line: -(line["metrics"]["HIT@50"]["value"] or 0)):
                    yield f"| {line['scorer']} | {' | '.join(cell(line['metrics'].get(m)) for m in METRICS)} |"
