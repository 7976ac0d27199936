"""PSU: losses with known answers, masks, and that every parameter learns."""

import math

import pytest
import torch

from seminar.batching import WindowBatch
from seminar.config import PretrainConfig
from seminar.psu import PSU, alignment_loss, relevance_loss, unique_pairs
from tests.worlds import seeded, small_config, vector_tables


def windows(batch: int = 6, length: int = 12, seed: int = 0) -> WindowBatch:
    g = seeded(seed)
    return WindowBatch(
        torch.randint(0, 40, (batch, length), generator=g),
        torch.randint(-1, 6, (batch, length), generator=g),
        (torch.arange(length) // 2).expand(batch, -1).clone(),
        torch.randint(1, length + 1, (batch,), generator=g),
    )


def psu(**changes: object) -> PSU:
    return PSU.build(small_config(**changes), PretrainConfig(num_chunks=3), vector_tables(), seeded())


@pytest.mark.parametrize("gate", ["constant", "target", "behaviour"])
def test_every_parameter_gets_a_gradient(gate: str) -> None:
    unit = psu(gate=gate)
    with torch.no_grad():  # a gate whose direction is zero has no gradient problem, only a vanishing one elsewhere
        for parameter in unit.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=seeded(7)))
    unit.loss(windows())["total"].backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.to_dense()
        assert torch.isfinite(grad).all(), name
        assert grad.abs().sum() > 0, name


def test_state_dict_round_trip_gives_equal_losses() -> None:
    first, batch = psu(), windows()
    second = PSU.build(small_config(), PretrainConfig(num_chunks=3), vector_tables(), seeded(99))
    torch.manual_seed(3)
    expected = first.loss(batch)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(3)
    assert {k: float(v) for k, v in second.loss(batch).items()} == {k: float(v) for k, v in expected.items()}


def test_minimising_relevance_raises_auc() -> None:
    g = seeded(1)
    query = torch.nn.Parameter(torch.randn(8, 6, generator=g))
    item = torch.nn.Parameter(torch.randn(8, 6, generator=g))
    names = torch.arange(8)
    scale, bias = torch.tensor(5.0), torch.tensor(0.0)

    def auc() -> float:
        scores = (torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(item, dim=1).T).detach()
        matched, mismatched = scores.diagonal(), scores[~torch.eye(8, dtype=torch.bool)]
        return float((matched[:, None] > mismatched).float().mean())

    before = auc()
    optimiser = torch.optim.Adam([query, item], lr=0.05)
    for step in range(300):
        order = torch.randperm(8, generator=g) if step else names
        optimiser.zero_grad()
        q, i = torch.nn.functional.normalize(query, dim=1)[order], torch.nn.functional.normalize(item, dim=1)[order]
        relevance_loss(q, i, names[order], scale, bias).backward()
        optimiser.step()
    assert before < 0.8
    assert auc() > 0.95


def test_relevance_needs_mismatched_queries_only() -> None:
    same = torch.zeros(5, dtype=torch.long)
    unit = torch.nn.functional.normalize(torch.randn(5, 4, generator=seeded()), dim=1)
    loss = relevance_loss(unit, unit, same, torch.tensor(2.0), torch.tensor(0.0))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)) / 2, rel=1e-5)


def test_minimising_alignment_finds_the_right_partner() -> None:
    g = seeded(2)
    vectors = torch.nn.Parameter(torch.randn(1, 12, 3, 8, generator=g))
    present, item = torch.ones(1, 12, 3, dtype=torch.bool), torch.arange(12)[None]
    optimiser = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        alignment_loss(torch.nn.functional.normalize(vectors, dim=-1), present, item, torch.tensor(10.0)).backward()
        optimiser.step()
    unit = torch.nn.functional.normalize(vectors.detach(), dim=-1)[0]
    for left, right in ((0, 1), (1, 2), (0, 2)):
        assert ((unit[:, left] @ unit[:, right].T).argmax(1) == torch.arange(12)).all()


def test_alignment_equals_a_loop_over_chunks_with_masks() -> None:
    g = seeded(3)
    unit = torch.nn.functional.normalize(torch.randn(4, 7, 3, 5, generator=g), dim=-1)
    present = torch.rand(4, 7, 3, generator=g) < 0.7
    item = torch.randint(0, 4, (4, 7), generator=g)
    scale = torch.tensor(3.0)
    losses = []
    for n in range(4):
        for i, j in ((0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)):
            rows = [p for p in range(7) if present[n, p, i] and present[n, p, j]]
            for p in rows:
                negatives = [q for q in rows if item[n, q] != item[n, p]]
                if negatives:
                    logits = torch.stack([scale * unit[n, p, i] @ unit[n, q, j] for q in [p, *negatives]])
                    losses.append(torch.logsumexp(logits, 0) - logits[0])
    torch.testing.assert_close(alignment_loss(unit, present, item, scale), torch.stack(losses).mean())


def test_alignment_is_one_batched_product_however_many_chunks() -> None:
    def products(chunks: int) -> int:
        unit, item = torch.randn(chunks, 5, 3, 4, generator=seeded()), torch.arange(chunks * 5).view(chunks, 5)
        with torch.profiler.profile() as profile:
            alignment_loss(unit, torch.ones(chunks, 5, 3, dtype=torch.bool), item, torch.tensor(1.0))
        return sum(event.count for event in profile.key_averages() if event.key in ("aten::bmm", "aten::mm"))

    assert products(64) == products(2) == 1


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 2), (3, 1)])
def test_small_batches_never_give_nan(batch: int, length: int) -> None:
    losses = psu().loss(windows(batch, length))
    assert all(torch.isfinite(v) for v in losses.values())


def test_prediction_sees_only_earlier_requests() -> None:
    unit, batch = psu(), windows(3, 10)
    key = torch.randn(3, 10, 16, generator=seeded(5))
    before = unit.next(key, batch.request_BL, batch.mask_BL)
    changed = key.clone()
    changed[:, 6:] += 1.0  # request 3 and later
    after = unit.next(changed, batch.request_BL, batch.mask_BL)
    torch.testing.assert_close(after[:, :8], before[:, :8])  # request 3 itself sees only requests 0..2
    full = torch.ones_like(batch.mask_BL)
    assert not torch.allclose(
        unit.next(changed, batch.request_BL, full)[:, 8:],
        unit.next(key, batch.request_BL, full)[:, 8:],
    )


def test_padding_changes_no_loss() -> None:
    unit, batch = psu(), windows(4, 8)
    unit.config = PretrainConfig(num_chunks=1)
    wider = WindowBatch(
        *(
            torch.nn.functional.pad(x, (0, 4), value=v)
            for x, v in ((batch.item_BL, 0), (batch.query_BL, -1), (batch.request_BL, 99))
        ),
        batch.length_B,
    )
    torch.manual_seed(0)
    narrow = unit.loss(batch)
    torch.manual_seed(0)
    wide = unit.loss(wider)
    assert float(wide["align"]) == pytest.approx(float(narrow["align"]), rel=1e-5)
    assert float(wide["rel"]) == pytest.approx(float(narrow["rel"]), rel=1e-5)


def test_unique_pairs_rebuild_their_input() -> None:
    item, query = torch.tensor([[3, 0, 3], [3, 1, 0]]), torch.tensor([[-1, 2, -1], [0, -1, 2]])
    (items, queries), inverse = unique_pairs(item, query)
    assert torch.equal(items[inverse], item)
    assert torch.equal(queries[inverse], query)
    assert len(items) == 4


def test_next_pair_loss_learns_a_planted_cycle() -> None:
    """Item i is always followed by item i+1: after training the right pair must beat all others."""
    item = (torch.arange(12) + torch.arange(8)[:, None]) % 12
    batch = WindowBatch(item, torch.full_like(item, -1), torch.arange(12).expand(8, -1), torch.full((8,), 12))
    torch.manual_seed(0)
    unit = PSU.build(small_config(), PretrainConfig(num_chunks=1, w_align=0, w_rel=0), vector_tables(), seeded())
    dense = [p for n, p in unit.named_parameters() if "ids" not in n and "tokens" not in n]
    sparse = [p for n, p in unit.named_parameters() if "ids" in n or "tokens" in n]
    optimisers = [torch.optim.Adam(dense, lr=0.01), torch.optim.Adagrad(sparse, lr=0.1)]
    first = float(unit.loss(batch)["next"])
    for _ in range(150):
        for optimiser in optimisers:
            optimiser.zero_grad()
        unit.loss(batch)["total"].backward()
        for optimiser in optimisers:
            optimiser.step()
    assert first > 1.5
    assert float(unit.loss(batch)["next"]) < 0.4
