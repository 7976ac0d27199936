"""Dual towers: what a vector may depend on, losses with known answers, and planted worlds that only some towers can learn."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from numpy import ndarray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from seminar.artifacts import Artifact, Store
from seminar.batching import WindowBatch, collate_windows
from seminar.candidates.full_ranking import NEW_ONLY, ask, by_tower, next_questions, rank_catalogue
from seminar.candidates.fusion import FusionEncoder
from seminar.candidates.index import ItemIndex
from seminar.candidates.mmsrec import MMSRec, Pretraining, _parts, content_numbers
from seminar.candidates.prior import log_prior
from seminar.candidates.proposer import Past, Proposer, QueryItems
from seminar.candidates.tower import Asked, DualTower, item_vectors, user_vectors
from seminar.channels import VectorTables, encoders_of
from seminar.config import IndexConfig, RetrieverConfig, TrainRetrieverConfig
from seminar.errors import VersionMismatch
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut
from seminar.schema import NONE
from seminar.sequences import Histories
from seminar.train.retriever import TOWERS, artifact_kind, load_fitting, load_retriever
from seminar.train.training import Optimisers, train_step
from tests.worlds import histories, seeded, vector_tables, weekly

KINDS = tuple(TOWERS)
Draw = Callable[[np.random.Generator], ndarray]
NOBODY = QueryItems(np.zeros(1, np.int64), np.empty(0, np.int64))


def config(**changes: object) -> RetrieverConfig:
    small = {"dim": 16, "num_heads": 2, "num_layers": 2, "num_token_rows": 64, "window": 12, "dropout": 0.0}
    return RetrieverConfig.model_validate({**small, **changes})


def tower_of(kind: str, tables: VectorTables | None = None, **changes: object) -> DualTower:
    """A tower moved away from its initialisation, so that nothing is equal by accident."""
    tower = TOWERS[kind](config(kind=kind, **changes), tables or vector_tables(), seeded())
    return stirred(tower)


def stirred(tower: DualTower) -> DualTower:
    generator = seeded(8)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tower.eval()


def windows(lengths: tuple[int, ...] = (12, 7, 1, 4), seed: int = 0, items: int = 40) -> WindowBatch:
    """Windows of requests of one to a few behaviours, with other queries inside one request."""
    g, shape, length = seeded(seed), (len(lengths), max(lengths)), torch.tensor(lengths)
    mask = torch.arange(shape[1]) < length[:, None]
    request = 3 + (torch.rand(shape, generator=g) < 0.6).cumsum(1)
    return WindowBatch(
        torch.where(mask, torch.randint(items, shape, generator=g), 0),
        torch.where(mask, torch.randint(-1, 3, shape, generator=g), NONE),
        torch.where(mask, request, NONE),
        length,
    )


@pytest.mark.parametrize(
    ("train_count", "expected"),
    [
        ([5, 1, 1, 0, 0, 0, 3], [5, 1, 1, 2 / 3, 2 / 3, 2 / 3, 3]),
        ([4, 2, 0, 0], [4, 2, 0.5, 0.5]),
        ([4, 1, 1], [4, 1, 1]),
        ([1, 1, 1, 0], [1, 1, 1, 1]),
        ([0, 0], [1, 1]),
    ],
    ids=["good-turing", "nothing seen once", "nothing unseen", "no more than an item seen once", "nothing seen"],
)
def test_prior_equals_good_turing_by_hand(train_count: list[int], expected: list[float]) -> None:
    share = np.exp(log_prior(np.array(train_count)))
    np.testing.assert_allclose(share, np.array(expected) / np.sum(expected), rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_questions_equal_a_plain_loop(seed: int) -> None:
    batch = windows(seed=seed)
    asked = Asked.of(batch, batch.query_BL)
    found = list(zip(asked.window_A.tolist(), asked.request_A.tolist(), asked.query_A.tolist(), strict=True))
    expected = set()
    for window, length in enumerate(batch.length_B.tolist()):
        assert (asked.answer_BL[window, length:] == -1).all()
        for place in range(length):
            question = (window, int(batch.request_BL[window, place]), int(batch.query_BL[window, place]))
            expected.add(question)
            assert found[asked.answer_BL[window, place]] == question
    assert len(found) == len(set(found))
    assert set(found) == expected
    for (window, request, _), seen in zip(found, asked.seen_A.tolist(), strict=True):
        assert seen == sum(0 <= earlier < request for earlier in batch.request_BL[window].tolist())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_question_depends_on_earlier_requests_of_its_window_alone(kind: str) -> None:
    tower, batch = tower_of(kind), windows()
    asked = Asked.of(batch, batch.query_BL)
    before = tower.users(batch, asked)
    for a, (window, request) in enumerate(zip(asked.window_A, asked.request_A, strict=True)):
        sees = torch.zeros_like(batch.mask_BL)
        sees[window] = batch.mask_BL[window] & (batch.request_BL[window] < request)
        other = (batch.item_BL + 7) % 40
        # Everything else becomes something else: later requests, its own, other windows, what padding happens to hold.
        around = replace(batch, item_BL=torch.where(sees, batch.item_BL, other), query_BL=torch.full_like(batch.query_BL, 5))
        torch.testing.assert_close(tower.users(around, asked)[a], before[a], rtol=1e-4, atol=1e-5)
        if sees.any():
            seen = replace(batch, item_BL=torch.where(sees, other, batch.item_BL))
            assert (tower.users(seen, asked)[a] - before[a]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_question_alone_in_its_window_without_padding_gets_the_same_vector(kind: str) -> None:
    tower, batch = tower_of(kind), windows()
    asked = Asked.of(batch, batch.query_BL)
    together = tower.users(batch, asked)
    assert len(together) > 15
    for a, window in enumerate(asked.window_A.tolist()):
        length = int(batch.length_B[window])
        alone = WindowBatch(
            *(x[window : window + 1, :length] for x in (batch.item_BL, batch.query_BL, batch.request_BL)),
            batch.length_B[window : window + 1],
        )
        one = slice(a, a + 1)
        question = Asked(
            torch.zeros(1, dtype=torch.int64), asked.request_A[one], asked.query_A[one], asked.seen_A[one], alone.item_BL
        )
        torch.testing.assert_close(tower.users(alone, question)[0], together[a], rtol=1e-4, atol=1e-5)


def held_out(users: Histories) -> list[HeldOut]:
    """Every behaviour of every user."""
    pairs = []
    for row in range(len(users)):
        starts = users.request_starts(row).tolist()
        for start, end in pairwise(starts):
            pairs += [HeldOut(row, row, position, start, end) for position in range(start, end)]
    return pairs


@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prefix_served_alone_gets_the_vector_it_has_inside_a_training_window(kind: str, query: bool) -> None:
    tower, users = tower_of(kind, query=query), histories([9, 12, 1, 6], vector_tables())
    batch = collate_windows(users, users.offsets[:-1], users.lengths)
    asked = Asked.of(batch, batch.query_BL if query else torch.full_like(batch.query_BL, NONE))
    inside = user_vectors(tower.users(batch, asked))
    pairs = held_out(users)
    assert len(pairs) == 28
    served = ask(tower, users, pairs)
    for pair, vector in zip(pairs, served, strict=True):
        np.testing.assert_allclose(vector, inside[asked.answer_BL[pair.row, pair.position]], atol=1e-5)
    if isinstance(tower, MMSRec):
        proposer = Proposer.of(tower, ItemIndex.build(item_vectors(tower), IndexConfig()), NOBODY)
        for pair, vector in zip(pairs, served, strict=True):
            np.testing.assert_allclose(proposer.user(*past(users, pair))[0], vector, atol=1e-5)


def past(users: Histories, pair: HeldOut) -> tuple[Past, int]:
    first = int(users.offsets[pair.row])
    before = slice(first, first + pair.start)
    return Past(*(column[before].astype(np.int64) for column in (users.item, users.query, users.request))), int(
        users.query[first + pair.position]
    )


@torch.no_grad()
def test_a_long_history_is_its_newest_behaviours_as_far_as_training_reaches() -> None:
    tower, users = tower_of("mmsrec", window=5), histories([12], vector_tables())
    last = HeldOut(0, 0, 10, 10, 12)
    columns = ("item", "query", "origin", "time_ms", "request")
    newest = replace(users, offsets=np.array([0, 6]), **{n: getattr(users, n)[6:] for n in columns})
    whole = ask(tower, users, [last])
    np.testing.assert_allclose(whole, ask(tower, newest, [replace(last, position=4, start=4, end=6)]), atol=1e-6)
    proposer = Proposer.of(tower, ItemIndex.build(item_vectors(tower), IndexConfig()), NOBODY)
    np.testing.assert_allclose(whole, proposer.user(*past(users, last)), atol=1e-6)
    # The last behaviour of a training window is asked for after four.
    window = one_a_request(np.arange(5)[None])
    assert int(Asked.of(window, window.query_BL).seen_A.max()) == 4


@torch.no_grad()
def test_one_window_answers_any_number_of_queries() -> None:
    tower, batch = tower_of("mmsrec"), windows((6, 3))
    which, query = np.array([1, 0, 0, 1, 0]), np.array([2, 2, -1, -1, 0])
    together = tower.users(batch, next_questions(tower, batch, which, query))
    for a in range(5):
        alone = tower.users(batch, next_questions(tower, batch, which[a : a + 1], query[a : a + 1]))
        torch.testing.assert_close(together[a], alone[0], rtol=1e-4, atol=1e-5)
    assert (torch.cdist(together, together) + torch.eye(5) > 1e-3).all()


def plain_layers(fusion: FusionEncoder, token_Sd: Tensor, visible_SS: Tensor) -> Tensor:
    """The encoder over one sequence, a token and a head at a time, in float64."""
    x = token_Sd.double()
    for layer in copy.deepcopy(fusion).double().layers:
        query, key, value = layer.joint(layer.first(x)).chunk(3, -1)
        read, size = torch.zeros_like(x), x.shape[1] // layer.num_heads
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            for s in range(len(x)):
                seen = visible_SS[s].nonzero()[:, 0]
                weight = torch.softmax(key[seen, part] @ query[s, part] / size**0.5, 0)
                read[s, part] = weight @ value[seen, part]
        x = x + layer.out(read)
        x = x + layer.narrow(nn.functional.gelu(layer.wide(layer.second(x))))
    return copy.deepcopy(fusion).double().norm(x)


@torch.no_grad()
def test_item_tower_is_the_maximum_over_present_modalities_of_a_plain_transformer() -> None:
    tower = tower_of("mmsrec")
    assert isinstance(tower, MMSRec)
    fusion, rows = tower.fusion, torch.arange(40)
    unit, present = tower.channels.unit_items(rows)
    found = tower.items(rows)
    assert {tuple(row) for row in present.tolist()} == set(product((False, True), repeat=3))
    for row in range(40):
        kept = present[row].nonzero()[:, 0]
        token = unit[row, kept] * 4 + fusion.modality[kept]
        if not len(kept):
            token = fusion.blank[None] * 4 + fusion.modality[:1]
        out = plain_layers(fusion, token + fusion.position[0], torch.ones(len(token), len(token), dtype=torch.bool))
        expected = nn.functional.normalize(out.amax(0), dim=0)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_user_tower_is_a_plain_transformer_over_what_each_question_may_see() -> None:
    tower, batch = tower_of("mmsrec"), windows((9, 4))
    assert isinstance(tower, MMSRec)
    fusion, asked = tower.fusion, Asked.of(batch, batch.query_BL)
    found = tower.users(batch, asked)
    for a, (window, request, query) in enumerate(zip(asked.window_A, asked.request_A, asked.query_A, strict=True)):
        token, when = [], []
        for place in range(int(batch.length_B[window])):
            if batch.request_BL[window, place] < request:
                unit, present = tower.channels.unit_items(batch.item_BL[window, place][None])
                for m in present[0].nonzero()[:, 0].tolist():
                    token.append(unit[0, m] * 4 + fusion.modality[m] + fusion.position[1 + place])
                    when.append(int(batch.request_BL[window, place]))
        hint = tower.channels.unit_queries(query[None])[0][0]
        seen = int((batch.mask_BL[window] & (batch.request_BL[window] < request)).sum())
        token.append(fusion.mask + hint * 4 + fusion.position[1 + seen])
        when_S = torch.tensor([*when, int(request)])
        out = plain_layers(fusion, torch.stack(token), when_S[None] <= when_S[:, None])
        expected = nn.functional.normalize(out[-1], dim=0)
        torch.testing.assert_close(found[a].double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_missing_token_holds_changes_nothing() -> None:
    fusion = tower_of("mmsrec").fusion
    assert isinstance(fusion, FusionEncoder)
    token = torch.randn(30, 3, 16, generator=seeded(1))
    present = torch.rand(30, 3, generator=seeded(2)) < 0.5
    assert not present.any(1).all()
    other = torch.where(present[..., None], token, 50 * torch.randn(30, 3, 16, generator=seeded(3)))
    torch.testing.assert_close(fusion.items(other, present), fusion.items(token, present))
    without = fusion.items(token, present)[~present.any(1)]
    assert (without == without[0]).all()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_vectors_have_length_one_and_scores_add_the_prior(kind: str) -> None:
    tower, batch = tower_of(kind), windows()
    user = tower.users(batch, Asked.of(batch, batch.query_BL))
    item = tower.items(torch.arange(40))
    for unit in (user, item):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))
    expected = tower.scale.double() * user.double() @ item.double().T + torch.from_numpy(log_prior(vector_tables().train_count))
    np.testing.assert_allclose(user_vectors(user) @ item_vectors(tower, block=7).T, expected.numpy(), rtol=1e-4, atol=1e-4)
    some = np.array([3, 39, 3])
    np.testing.assert_allclose(item_vectors(tower, some), item_vectors(tower)[some], atol=1e-5)
    tower.config = config(kind=kind, popularity=False)
    assert (item_vectors(tower)[:, -1] == 0).all()


@pytest.mark.parametrize(("query", "uniform"), [(True, 0), (False, 25)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_loss_equals_a_plain_form_with_explicit_log_q(kind: str, query: bool, uniform: int) -> None:
    tower, batch = tower_of(kind, query=query), windows(items=12)
    tower.uniform_negatives = uniform
    torch.manual_seed(3)
    drawn = torch.randint(36, (uniform,)).tolist()  # the four unseen items are the last
    torch.manual_seed(3)
    found = float(tower.loss(batch)["total"])
    count = vector_tables().train_count.astype(np.float64)
    count[-4:] = 1 / 4  # four unseen items, one that was taken once
    share = count / count.sum()
    mask, place = batch.mask_BL, [(b, p) for b, n in enumerate(batch.length_B.tolist()) for p in range(n)]
    brought = [set(row[own].tolist()) for row, own in zip(batch.item_BL, mask, strict=True)]
    others = len(place) * (1 - 1 / len(brought))
    chance = 1 - (1 - share) ** others * (1 - 1 / 36) ** uniform
    correction = np.log(share) - np.log(chance)
    asked = Asked.of(batch, batch.query_BL if query else torch.full_like(batch.query_BL, NONE))
    user, item = tower.users(batch, asked).double(), tower.items(torch.arange(40)).double()
    losses = []
    for b, p in place:
        together = {int(i) for i in batch.item_BL[b, batch.request_BL[b] == batch.request_BL[b, p]]}
        score = float(tower.scale) * (item @ user[asked.answer_BL[b, p]]).numpy() + correction
        positive = int(batch.item_BL[b, p])
        candidates = set(drawn).union(*(items for w, items in enumerate(brought) if w != b))
        competing = [positive, *sorted(candidates - together)]
        losses.append(np.log(np.exp(score[competing]).sum()) - score[positive])
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_items_of_one_request_never_compete(kind: str) -> None:
    tower = tower_of(kind)
    tower.uniform_negatives = 0
    item = torch.tensor([[1, 2, 3, 2]])
    one = WindowBatch(item, torch.tensor([[-1, 0, 1, -1]]), torch.full_like(item, 4), torch.tensor([4]))
    assert float(tower.loss(one)["total"]) == pytest.approx(0, abs=1e-6)
    two = replace(one, request_BL=torch.tensor([[4, 4, 5, 5]]))
    assert float(tower.loss(two)["total"]) == pytest.approx(0, abs=1e-6), "nor do those of one user, unless others take them"
    item = torch.tensor([[1, 2, 3, 2], [5, 6, 7, 5]])
    users = WindowBatch(item, torch.full_like(item, -1), torch.full_like(item, 4), torch.tensor([4, 4]))
    assert float(tower.loss(users)["total"]) > 0.01


@torch.no_grad()
def test_hidden_queries_are_questions_without_a_query_in_training_alone() -> None:
    tower, batch = tower_of("mmsrec"), windows()
    without = replace(batch, query_BL=torch.full_like(batch.query_BL, NONE))
    losses = []
    for hidden, training, shown in ((1.0, True, batch), (0.0, True, without), (0.0, True, batch), (1.0, False, batch)):
        tower.query_dropout = hidden
        torch.manual_seed(0)
        losses.append(float(tower.train(training).loss(shown)["total"]))
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[0] != losses[2]
    tower.query_dropout = 0.5
    searched = replace(windows((12,) * 100), query_BL=torch.full((100, 12), 2))
    shown = tower.train()._shown_queries(searched)
    assert 0.4 < (shown == NONE).float().mean() < 0.6


def test_views_are_non_empty_parts_of_what_is_present_and_all_occur_alike() -> None:
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]]) > 0
    torch.manual_seed(0)
    draws = 8000
    left, right = (part.view(3, draws, 3) for part in _parts(present.repeat_interleave(draws, 0), 2))
    for row, modalities in enumerate(present):
        parts = [p for p in product((0, 1), repeat=3) if any(p) and not (torch.tensor(p) & ~modalities).any()]
        pairs, count = torch.cat([left[row], right[row]], 1).int().unique(dim=0, return_counts=True)
        assert sorted(map(tuple, pairs.tolist())) == sorted((*a, *b) for a in parts for b in parts)
        expected = draws / len(parts) ** 2
        assert (count - expected).abs().max() < 5 * expected**0.5


def twins() -> VectorTables:
    """Items 1 and 31 of equal content, 2 and 32 but for the image, 3 and 33 but for the attributes."""
    tables = vector_tables()
    text, image = tables.text_row.copy(), tables.image_row.copy()
    token = np.split(tables.attribute_hash, tables.attribute_offsets[1:-1])
    text[[1, 31, 2, 32, 3, 33]] = [4, 4, 5, 5, 6, 6]
    image[[1, 31, 2, 32, 3, 33]] = [0, 0, 1, 2, 3, 3]
    token[31], token[32], token[3] = token[1], token[2], token[33][:1]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in token])])
    return replace(tables, text_row=text, image_row=image, attribute_hash=np.concatenate(token), attribute_offsets=offsets)


@pytest.mark.parametrize(
    ("modalities", "equal"),
    [
        (("text", "image", "attributes"), {1: True, 2: False, 3: False}),
        (("text", "attributes"), {1: True, 2: True, 3: False}),
        (("text", "image"), {1: True, 2: False, 3: True}),
        (("text",), {1: True, 2: True, 3: True}),
    ],
)
def test_contents_are_equal_where_no_used_modality_differs(modalities: tuple[str, ...], equal: dict[int, bool]) -> None:
    tables, settings = twins(), config(modalities=modalities)
    used = [name in modalities for name in ("text", "image", "attributes")]
    number = content_numbers(tables)[:, used]
    assert {item: bool((number[item] == number[item + 30]).all()) for item in equal} == equal
    unit, present = MMSRec(settings, tables, seeded()).channels.unit_items(torch.arange(40))
    for left, right in product(range(40), repeat=2):
        same = torch.equal(unit[left], unit[right]) and torch.equal(present[left], present[right])
        assert bool((number[left] == number[right]).all()) == same


@torch.no_grad()
def test_alignment_equals_a_plain_form_in_which_items_that_look_alike_do_not_compete() -> None:
    model = stirred(Pretraining(config(), twins(), seeded()))
    assert isinstance(model, Pretraining)
    rows = torch.tensor([1, 31, 2, 32, 0, 3, 33, 30, 17])
    torch.manual_seed(4)
    found = float(model.alignment(rows))
    rows = rows[(rows != 0) & (rows != 30)]  # without content
    unit, present = model.channels.unit_items(rows)
    torch.manual_seed(4)
    parts = _parts(present, 2)
    left, right = (nn.functional.normalize(model.fusion.items(unit, part), dim=1).double() for part in parts)
    assert (left - right).abs().max() > 0.1
    number = torch.from_numpy(content_numbers(twins()))[rows]

    def alike(n: int, m: int) -> bool:
        """One of the views, or the whole content, shows the same for both items."""
        shown = [torch.where(part, number, -1) for part in (*parts, present)]
        return any(torch.equal(view[n], view[m]) for view in shown)

    assert {frozenset((n, m)) for n in range(len(rows)) for m in range(n) if alike(n, m)}
    losses = []
    for one, other in ((left, right), (right, left)):
        for n in range(len(rows)):
            rival = [m for m in range(len(rows)) if m == n or not alike(n, m)]
            score = float(model.scale) * other[rival] @ one[n]
            losses.append(torch.logsumexp(score, 0) - score[rival.index(n)])
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    batch = windows()
    torch.manual_seed(4)
    expected = float(model.alignment(torch.from_numpy(_first_seen(batch))))
    torch.manual_seed(4)
    assert float(model.loss(batch)["total"]) == pytest.approx(expected)


def _first_seen(batch: WindowBatch) -> ndarray:
    return np.array(list(dict.fromkeys(batch.item_BL[batch.mask_BL].tolist())))


@pytest.mark.parametrize("rows", [[], [0, 30], [5], [5, 0]])
def test_alignment_of_fewer_than_two_contents_is_zero_and_still_has_a_gradient(rows: list[int]) -> None:
    model = Pretraining(config(), vector_tables(), seeded())
    loss = model.alignment(torch.tensor(rows, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("mmsrec", set()),
        ("sasrec", {"fusion.blank"}),
        ("two_tower", set()),
        ("pretraining", {"fusion.blank", "fusion.mask", "channels.project_query"}),
    ],
)
def test_gradients_reach_every_parameter(kind: str, without: set[str]) -> None:
    """A table of item IDs has no blank item, pretraining no users."""
    tower = stirred(Pretraining(config(), vector_tables(), seeded())) if kind == "pretraining" else tower_of(kind)
    batch = windows()
    batch.item_BL[0, :2] = torch.tensor([0, 30])  # without content
    torch.manual_seed(0)
    tower.train().loss(batch)["total"].backward()
    for name, parameter in tower.named_parameters():
        if not parameter.numel() or name in without:
            assert parameter.grad is None or not parameter.grad.to_dense().any(), name
            continue
        assert parameter.grad is not None, name
        gradient = parameter.grad.to_dense()
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().sum() > 0, name


def first_items(tables: VectorTables, count: int) -> VectorTables:
    """The catalogue before its last rows were added."""
    weeks, tokens = int(tables.week_offsets[count]), int(tables.attribute_offsets[count])
    rows = {n: getattr(tables, n)[:count] for n in ("text_row", "image_row", "category_index", "train_count")}
    bounds = {n: getattr(tables, n)[: count + 1] for n in ("week_offsets", "attribute_offsets")}
    parts = {
        "attribute_hash": tables.attribute_hash[:tokens],
        "week": tables.week[:weeks],
        "week_count": tables.week_count[:weeks],
    }
    return replace(tables, **rows, **bounds, **parts)


def published(store: Store, tables: VectorTables, encoder: str = "none") -> Artifact:
    """A vectors artefact."""
    pairs = store.publish(store.draft("pairs", {}, {}))
    draft = store.draft("vectors", {"pairs": pairs}, {"text_encoder": encoder, "lineage": [tables.num_items]})
    save_arrays(vars(tables), draft.path / "vectors.safetensors")
    return store.publish(draft)


def trained(store: Store, tower: DualTower, vectors: Artifact) -> Artifact:
    kind = artifact_kind(tower.config)
    recorded = {"retriever": tower.config.model_dump(mode="json"), "encoders": encoders_of(vectors)}
    draft = store.draft(kind, {"vectors": vectors}, recorded)
    save_file(tower.state_dict(), draft.path / f"{kind}.safetensors")
    return store.publish(draft)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_tower_is_loaded_as_it_was(store: Store, kind: str) -> None:
    tower = tower_of(kind, window=9)
    vectors = published(store, vector_tables())
    loaded = load_retriever(trained(store, tower, vectors), vectors)
    assert (type(loaded), loaded.config, loaded.training) == (type(tower), tower.config, False)
    np.testing.assert_array_equal(item_vectors(loaded), item_vectors(tower))
    users = histories([7], vector_tables())
    np.testing.assert_array_equal(ask(loaded, users, held_out(users)), ask(tower, users, held_out(users)))


def test_a_tower_serves_a_catalogue_that_has_grown_by_content(store: Store) -> None:
    grown = twins()  # item 31 is added later, with the content of item 1
    before, now = published(store, first_items(grown, 30)), published(store, grown)
    tower = tower_of("mmsrec", first_items(grown, 30))
    loaded = load_retriever(trained(store, tower, before), now)
    item = item_vectors(loaded)
    np.testing.assert_allclose(item[:30, :-1], item_vectors(tower)[:, :-1], atol=1e-5)
    np.testing.assert_allclose(item[31, :-1], item[1, :-1], atol=1e-5)
    np.testing.assert_array_equal(item[:, -1], log_prior(grown.train_count))


def test_vectors_of_another_encoder_are_refused(store: Store) -> None:
    retriever = trained(store, tower_of("mmsrec"), published(store, vector_tables()))
    with pytest.raises(VersionMismatch, match=r"'other'.*'none'.*embed with the same encoders"):
        load_retriever(retriever, published(store, vector_tables(), "other"))


def test_what_fits_is_loaded_and_what_does_not_stays(store: Store) -> None:
    state = tower_of("mmsrec").state_dict()
    fresh = TOWERS["mmsrec"](config(window=20, num_layers=3), vector_tables(), seeded(5))
    own = {name: value.clone() for name, value in fresh.state_dict().items()}
    left = load_fitting(fresh, state)
    assert left == sorted(name for name in own if name == "fusion.position" or name.startswith("fusion.layers.2."))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, own[name] if name in left else state[name]), name
    wider = replace(vector_tables(), text=np.ones((20, 30), np.float16), query=np.ones((6, 30), np.float16))
    other_text = TOWERS["mmsrec"](config(), wider, seeded())
    assert load_fitting(other_text, state) == ["channels.project_query", "channels.project_text"]
    ids = TOWERS["sasrec"](config(kind="sasrec"), vector_tables(), seeded())
    assert load_fitting(ids, state) == ["fusion.modality", "ids.weight", "queries.project"]


def of_text(text_If: ndarray, train_count: ndarray) -> VectorTables:
    """A catalogue whose items have a text each and nothing else; nobody searches."""
    unit = text_If / np.linalg.norm(text_If, axis=1, keepdims=True)
    items, none = len(text_If), np.full(len(text_If), -1, np.int32)
    return VectorTables(
        text=unit.astype(np.float16),
        text_row=np.arange(items, dtype=np.int32),
        image=np.zeros((0, 4), np.float16),
        image_row=none,
        query=np.zeros((0, text_If.shape[1]), np.float16),
        query_row=none[:0],
        attribute_hash=np.empty(0, np.int64),
        attribute_offsets=np.zeros(items + 1, np.int64),
        category_index=none,
        train_count=train_count,
        **weekly(train_count),
    )


def one_a_request(item_BL: ndarray) -> WindowBatch:
    item = torch.from_numpy(item_BL)
    request = torch.arange(item.shape[1]).expand_as(item).clone()
    return WindowBatch(item, torch.full_like(item, NONE), request, torch.full((len(item),), item.shape[1]))


def learned(kind: str, tables: VectorTables, draw: Draw, steps: int = 150) -> DualTower:
    """A tower after a short training on a planted world, its windows drawn anew for each step."""
    tower = TOWERS[kind](config(kind=kind, num_layers=1, window=WINDOW), tables, seeded())
    tower.uniform_negatives = 16
    training = TrainRetrieverConfig(steps=steps, lanes=1, learning_rate=0.02, sparse_learning_rate=0.3, warmup_steps=10)
    optimisers = Optimisers(tower.train(), training)
    for step in range(steps):
        batch = one_a_request(draw(np.random.default_rng([7, step])))
        train_step(tower, {0: batch}, optimisers, step=step, config=training)
    return tower.eval()


def walkers(item_NL: ndarray) -> tuple[Histories, list[HeldOut]]:
    """Users with these histories, each held out at its last behaviour."""
    users, length = len(item_NL), item_NL.shape[1]
    world = histories([length] * users, vector_tables())
    request = np.tile(np.arange(length, dtype=np.int32), users)
    flat = item_NL.astype(np.int32).ravel()
    world = replace(world, item=flat, request=request, query=np.full(flat.shape, NONE, np.int32))
    return world, [HeldOut(row, row, length - 1, length - 1, length) for row in range(users)]


GROUPS, SEEN, NEW = 12, 6, 2
WINDOW = 6


def test_content_finds_items_that_nobody_took_yet_and_ids_cannot() -> None:
    """Items of group g are followed by items of group 5g + 1; a sixth of each group's items is in nobody's training history."""
    rng = np.random.default_rng(0)
    group_I = np.arange(GROUPS * (SEEN + NEW)) % GROUPS
    new_I = np.arange(len(group_I)) >= GROUPS * SEEN
    text_If = rng.standard_normal((GROUPS, 16))[group_I] + 0.3 * rng.standard_normal((len(group_I), 16))
    tables = of_text(text_If, np.where(new_I, 0, 50))

    def walk(draw: np.random.Generator, length: int = WINDOW, count: int = 32) -> ndarray:
        group = draw.integers(GROUPS, size=count)
        columns = []
        for _ in range(length):
            columns.append(group + GROUPS * draw.integers(SEEN, size=count))
            group = (5 * group + 1) % GROUPS
        return np.stack(columns, 1)

    towers = {kind: learned(kind, tables, walk, steps=250) for kind in ("mmsrec", "sasrec")}
    pool, scorers = ItemPool(tables.category_index, tables.train_count), {kind: by_tower(t) for kind, t in towers.items()}
    # Users with less history than a window holds, just as much, and more.
    for length in (3, WINDOW, WINDOW + 4):
        item_NL = walk(rng, length + 1, 120)
        users, pairs = walkers(item_NL)
        # Both know the world: what follows, among items that were taken.
        rows = rank_catalogue(users, pool, pairs, scorers).ranked.to_pandas()
        known = {kind: float((of["above"] < SEEN).mean()) for kind, of in rows.groupby("scorer")}
        assert known["mmsrec"] > 0.9
        assert known["sasrec"] > 0.6
        item_NL[:, -1] = item_NL[:, -1] % GROUPS + GROUPS * (SEEN + rng.integers(NEW, size=120))
        users, pairs = walkers(item_NL)
        rows = rank_catalogue(users, pool, pairs, scorers).ranked.to_pandas()
        rows = rows[rows["protocol"] == NEW_ONLY]
        found = {kind: float((of["above"] < NEW).mean()) for kind, of in rows.groupby("scorer")}
        assert found["mmsrec"] > 0.9
        assert found["sasrec"] < 0.35  # NEW of NEW * GROUPS by chance, 0.08


WORDS = 8


def test_what_the_last_item_decides_is_lost_to_an_average() -> None:
    """After a, b comes the follower of b. An average holds a and b alike, so it is right for one of a, b and b, a at most."""
    tables = of_text(np.random.default_rng(0).standard_normal((2 * WORDS, 16)), np.full(2 * WORDS, 50))

    def sentences(draw: np.random.Generator) -> ndarray:
        first = draw.integers(WORDS, size=32)
        last = (first + draw.integers(1, WORDS, size=32)) % WORDS
        return np.stack([first, last, last + WORDS], 1)

    item_NL = np.array([(a, b, b + WORDS) for a, b in product(range(WORDS), repeat=2) if a != b])
    users, pairs = walkers(item_NL)
    towers = {kind: learned(kind, tables, sentences) for kind in KINDS}
    pool = ItemPool(tables.category_index, tables.train_count)
    rows = rank_catalogue(users, pool, pairs, {kind: by_tower(tower) for kind, tower in towers.items()}).ranked.to_pandas()
    first, second = ({kind: float((of["above"] < k).mean()) for kind, of in rows.groupby("scorer")} for k in (1, 2))
    assert min(first["mmsrec"], first["sasrec"]) > 0.9
    assert first["two_tower"] <= 0.5
    assert second["two_tower"] > 0.8
