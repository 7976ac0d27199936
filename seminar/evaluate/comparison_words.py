"""Where the reference loses, in sentences made from the figures, so that nobody chooses which losses are told."""

from collections.abc import Collection, Mapping
from typing import Any

from seminar.evaluate.comparison import FLOOR, REFERENCE, RIVAL, VARIANT, Comparison, better
from seminar.evaluate.evaluation import SAMPLED
from seminar.evaluate.report import signed
from seminar.evaluate.summary import ALL, FLAGS, LENGTH

LEVEL = 0.05
DECISIVE = ("NDCG@10", "AUC", "gAUC")
_PROTOCOLS = {"sampled": "sampled ranking", "full": "full ranking", "impressions": "impressions"}


def decided(metric: str, apart: Mapping[str, float | None]) -> str:
    """`better` or `worse` than the reference where Holm's p (if tested) is below 0.05 and the interval excludes 0; else nothing.

    The interval is that over users and seeds: a difference that other seeds may turn is not decided, whatever its p.
    """
    value, low, high, p = (apart[name] for name in ("value", "low", "high", "p_holm"))
    if value is None or low is None or high is None or low <= 0 <= high or (p is not None and p >= LEVEL):
        return ""
    return "better" if better(metric, value) else "worse"


def short(comparison: Comparison) -> list[str]:
    """For each whole setting of sampled ranking, the best rival by NDCG@10 and AUC, and by AUC on items unseen in training."""
    said = []
    unseen = FLAGS["unseen"][1]
    own = [line for line in comparison.lines if line["protocol"] == SAMPLED and line["main"] and line["role"] == RIVAL]
    for origin in dict.fromkeys(line["query_origin"] for line in own):
        for part, metric, where in ((ALL, "NDCG@10", "all"), (ALL, "AUC", "all"), (unseen, "AUC", f"items {unseen}")):
            found = [line for line in own if (line["query_origin"], line["bin"]) == (origin, part)]
            if found:
                best = max(found, key=lambda line: line["metrics"][metric]["value"])
                value, apart = best["metrics"][metric]["value"], best["differences"][metric]
                said.append(
                    f"- {metric}, query origin {origin}, {where} ({best['users']:,} users): {comparison.reference} "
                    f"{value - apart['value']:.3f}, best rival {best['scorer']} {value:.3f}; "
                    f"{best['scorer']} minus {comparison.reference} {signed(apart)}{_tested(apart)}."
                )
    return said or ["No rival is compared."]


def losses(comparison: Comparison) -> list[str]:
    """Sentences: each rival's wins by setting and slice, undecided rivals of main lines, variants and floors that win."""
    reference, lines = comparison.reference, [line for line in comparison.lines if line["role"] != REFERENCE]
    rivals = [line for line in lines if line["role"] == RIVAL]
    verdicts = [decided(metric, apart) for line in rivals for metric, apart in _told(line)]
    count = f"{len(verdicts):,} comparisons with rivals (every metric, slice, query origin and protocol)"
    said = [
        f"Of {count}, {verdicts.count('worse'):,} are won by {reference}, {verdicts.count('better'):,} by a rival and "
        f"{verdicts.count(''):,} undecided. Won: Holm's p < {LEVEL} and an interval over users and seeds that excludes 0. "
        "Correction is within a metric and slice: about one in twenty of these would show a winner where there is none."
    ]
    wins = [f"- {sentence}" for line in rivals if (sentence := _sentence(line, wanted="better"))]
    said += (
        ["", f"Rivals significantly better than {reference}:", "", *wins] if wins else ["", "No rival is significantly better."]
    )
    main = [line for line in rivals if line["slice"] == ALL and line["main"]]
    open_ = [f"- {sentence}" for line in main if (sentence := _sentence(line, wanted="", only=DECISIVE))]
    if open_:
        said += [
            "",
            f"Undecided by {', '.join(DECISIVE)} over all requests of a setting ({reference} and rival may be equal there):",
            "",
            *open_,
        ]
    for role, what in ((VARIANT, "Variants"), (FLOOR, "Floors")):
        own = [line for line in lines if line["role"] == role and (role == FLOOR or line["slice"] == ALL)]
        found = [f"- {sentence}" for line in own if (sentence := _sentence(line, wanted="better"))]
        if found:
            said += ["", f"{what} significantly better than {reference}:", "", *found]
    return said


def _told(line: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float | None]]]:
    """Differences but that of NDCG@1, which is HIT@1."""
    return [(metric, apart) for metric, apart in line["differences"].items() if metric != "NDCG@1"]


def _sentence(line: Mapping[str, Any], wanted: str, only: Collection[str] = ()) -> str:
    """One line's metrics (or those of `only`) with this verdict; nothing if there are none."""
    found = [
        f"{metric} by {signed(apart)}{_tested(apart)}"
        for metric, apart in _told(line)
        if apart["value"] is not None
        and apart["low"] is not None
        and decided(metric, apart) == wanted
        and (not only or metric in only)
    ]
    if not found:
        return ""
    part = f", history of {line['bin']} behaviours" if line["slice"] == LENGTH else f", {line['bin']}"
    setting = f"{_PROTOCOLS[line['protocol']]}, query origin {line['query_origin']}{'' if line['slice'] == ALL else part}"
    return f"{line['scorer']} ({setting}; {line['users']:,} users): {', '.join(found)}."


def _tested(apart: Mapping[str, float | None]) -> str:
    return "" if apart["p"] is None else f" (p = {apart['p']:.4f}, Holm {apart['p_holm']:.4f})"
