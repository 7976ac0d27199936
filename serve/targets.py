"""Targets, queries and tasks of a request in rows of one bundle; what the catalogue lacks is encoded here."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.bundle import normal_text
from seminar.client import api
from seminar.content import FILE, Content, UnseenItems
from seminar.schema import NONE, TASKS
from seminar.scorer import Targets, TwoStageScorer
from serve.problems import Refused


def targets_of(scorer: TwoStageScorer, request: api.ScoreRequest, where: str) -> Targets:
    """Refused for an id that the bundle does not hold, or content that it cannot read. where: what a client calls a target."""
    ids = [target.item_id for target in request.targets]
    item_T = scorer.bundle.item_row([name or "" for name in ids])
    _require(where + ".item_id", item_T, ids, "score items of the catalogue, or send its content as `item`")
    item_T, unseen_items = _with_contents(scorer, request.targets, item_T, where + ".item")
    queried = any(target.query_id or target.query for target in request.targets)
    query_T, unseen_Xd = query_rows(scorer, request.targets, where + ".query_id")
    return Targets(
        item_T=item_T,
        query_T=query_T,
        task=task_of(request, queried),
        time_ms=request.time_ms or now_ms(),
        unseen_Xd=unseen_Xd,
        unseen_items=unseen_items,
    )


def _with_contents(
    scorer: TwoStageScorer, targets: Sequence[api.Target], item_T: Int[ndarray, " T"], where: str
) -> tuple[Int[ndarray, " T"], UnseenItems | None]:
    """Rows behind the catalogue for items given by content."""
    given = [(i, target.item) for i, target in enumerate(targets) if target.item is not None]
    if not given:
        return item_T, None
    bundle, contents = scorer.bundle, [_content(item) for _, item in given]
    if FILE not in bundle.manifest.files:
        fix = "name its `item_id`, or make the bundle again with this release"
        got = f"a bundle ({bundle.version}) that knows items by id only"
        raise Refused(409, api.Problem(what=where.format(given[0][0]), got=got, expected="one of this release", fix=fix))
    width = bundle.item_contents.image_width
    for (i, _), content in zip(given, contents, strict=True):
        if content.image is not None and len(content.image) != width:
            fix = "send what the bundle's image encoder gives" if width else "leave it out: the bundle was made without images"
            what, got = f"{where.format(i)}.image_vector", f"{len(content.image)} numbers"
            raise Refused(422, api.Problem(what=what, got=got, expected=str(width), fix=fix))
    item_T[[i for i, _ in given]] = len(bundle.item_ids) + np.arange(len(given))
    return item_T, scorer.unseen_items(contents)


def _content(item: api.ItemContent) -> Content:
    image = None if item.image_vector is None else np.array(item.image_vector, np.float32)
    return Content(item.text, item.category, tuple(item.attributes), image)


def task_of(request: api.ScoreRequest | api.RecommendRequest, queried: bool) -> int:
    return TASKS.index(request.task or ("psr" if queried else "ctr"))


def query_rows(
    scorer: TwoStageScorer, targets: Sequence[api.Queried], where: str
) -> tuple[Int[ndarray, " T"], Float[ndarray, "X d"] | None]:
    """Catalogue rows; rows behind the catalogue are texts it does not hold, encoded here. A text without any word is no query."""
    bundle = scorer.bundle
    names, texts = [target.query_id for target in targets], [target.query for target in targets]
    query_T = _rows(names, bundle.query_row)
    _require(where, query_T, names, "send its text as `query`")
    by_text = _rows(texts, bundle.query_row_by_text)
    query_T = np.maximum(query_T, by_text)
    new = {normal_text(text): NONE for text, row in zip(texts, by_text.tolist(), strict=True) if text and row == NONE}
    if not new:
        return query_T, None
    vectors = scorer.unseen_queries(list(new))
    usable = np.abs(vectors).sum(1) > 0
    numbers = np.where(usable, len(bundle.query_ids) + np.cumsum(usable) - 1, NONE).tolist()
    new = dict(zip(new, numbers, strict=True))
    unseen = [new.get(normal_text(text), NONE) if text else NONE for text in texts]
    return np.where(np.array(unseen) != NONE, unseen, query_T), vectors[usable] if usable.any() else None


def _rows(names: Sequence[str | None], row_of: Callable[[Sequence[str]], Int[ndarray, " N"]]) -> Int[ndarray, " T"]:
    """Row of each name, -1 for none; targets of a request mostly have one query, which is looked up once."""
    distinct = [name for name in dict.fromkeys(names) if name is not None]
    if not distinct:
        return np.full(len(names), NONE)
    rows: dict[str | None, int] = dict(zip(distinct, row_of(distinct).tolist(), strict=True))
    return np.fromiter((rows.get(name, NONE) for name in names), np.int64, len(names))


def _require(where: str, rows: Int[ndarray, " T"], ids: Sequence[str | None], fix: str) -> None:
    """Refused, each unknown id told with its place put into `where`."""
    unknown = [i for i in np.flatnonzero(rows == NONE).tolist() if ids[i] is not None]
    if unknown:
        raise Refused(
            422,
            *(
                api.Problem(what=where.format(i), got=repr(ids[i]), expected="an id that the bundle knows", fix=fix)
                for i in unknown[:10]
            ),
        )


def now_ms() -> int:
    return time.time_ns() // 1_000_000
