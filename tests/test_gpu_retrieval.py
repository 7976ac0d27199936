"""Batched top-K of merged keys: the plain form on any device, the Triton kernels on CUDA or in Triton's interpreter.

Vectors of small integers make every order of summation exact, so positions must agree one by one, ties and all.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seminar.errors import ConfigError
from seminar.retrieval.base import Probe
from seminar.retrieval.gpu import BatchTopK, GpuIndex, GpuRetriever, batched_top_k, plain_top_k, two_pass_top_k
from seminar.retrieval.recall import recall_at
from tests.retrieval_world import check_top_k, oracle, shared_catalogue

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
Problem = tuple[Tensor, Tensor, Tensor]


def kernels_run() -> bool:
    """On CUDA with any Triton; the interpreter of versions before 3.9 cannot loop under numpy 2.4."""
    found = find_spec("triton") is not None
    return found and (DEVICE.type == "cuda" or tuple(map(int, version("triton").split(".")[:2])) >= (3, 9))


@pytest.fixture
def triton() -> None:
    if not kernels_run():
        pytest.skip("needs Triton, and on a CPU 3.9 or later")


def whole_numbers(
    users: int,
    targets: int,
    longest: int,
    dim: int,
    seed: int,
    dtype: torch.dtype = torch.float16,
    largest: int = 3,
    distinct: int = 0,
) -> Problem:
    """Queries, keys and lengths from 0 to `longest`; `distinct`: so many different keys, repeated."""
    draw = np.random.default_rng(seed)
    query = draw.integers(-largest, largest + 1, (users, targets, dim))
    key = draw.integers(-largest, largest + 1, (users, distinct or longest, dim))
    if distinct:
        key = np.take_along_axis(key, draw.integers(0, distinct, (users, longest, 1)), 1)
    length = draw.integers(0, longest + 1, users)
    vectors = (torch.tensor(values).to(DEVICE, dtype) for values in (query, key))
    return *vectors, torch.tensor(length, dtype=torch.int32, device=DEVICE)


def brute_force(problem: Problem, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One row at a time in float64: sort by relevance, then by age, keep k, order by position."""
    query, key, length = (values.double().cpu().numpy() for values in problem)
    users, targets = query.shape[:2]
    index, relevance = np.full((users, targets, k), -1), np.full((users, targets, k), -np.inf)
    for u, t in np.ndindex(users, targets):
        score = key[u, : int(length[u])] @ query[u, t]
        kept = np.sort(np.lexsort((-np.arange(len(score)), -score))[:k])
        index[u, t, : len(kept)], relevance[u, t, : len(kept)] = kept, score[kept]
    return index, relevance


def check_exact(result: BatchTopK, problem: Problem, k: int) -> None:
    index, relevance = brute_force(problem, k)
    np.testing.assert_array_equal(result[0].cpu(), index)
    np.testing.assert_array_equal(result[1].cpu(), relevance)


def forms(problem: Problem, k: int) -> list[BatchTopK]:
    """The plain form, and the kernels where Triton is installed."""
    return [plain_top_k(*problem, k), *([two_pass_top_k(*problem, k)] if kernels_run() else [])]


@TYPES
@given(
    users=st.integers(1, 4),
    targets=st.integers(1, 5),
    longest=st.integers(1, 80),
    dim=st.sampled_from([16, 48, 64, 128]),
    k=st.integers(0, 100),
    distinct=st.sampled_from([0, 1, 3, 20]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_the_plain_form_keeps_the_newest_of_the_best(dtype, users, targets, longest, dim, k, distinct, seed) -> None:
    problem = whole_numbers(users, targets, longest, dim, seed, dtype, distinct=distinct)
    check_exact(batched_top_k(*problem, k), problem, k)
    check_exact(plain_top_k(*problem, k), problem, k)


@pytest.mark.usefixtures("triton")
@given(
    users=st.integers(1, 3),
    targets=st.sampled_from([1, 2, 17]),
    longest=st.sampled_from([1, 31, 130, 700]),
    dim=st.sampled_from([16, 48, 64, 128]),
    k=st.sampled_from([1, 10, 100]),
    distinct=st.sampled_from([0, 1, 30]),
    seed=st.integers(0, 1000),
    negative=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_the_kernels_equal_brute_force_at_any_length_and_with_ties(
    users, targets, longest, dim, k, distinct, seed, negative
) -> None:
    from seminar.retrieval.gpu_two_pass import two_pass

    query, key, length = whole_numbers(users, targets, longest, dim, seed, distinct=distinct)
    problem = (query.abs(), -key.abs(), length) if negative else (query, key, length)
    *result, complete = two_pass(*problem, k)
    if not distinct:
        assert complete.all()
        check_exact((result[0], result[1]), problem, k)
    check_exact(two_pass_top_k(*problem, k), problem, k)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(("targets", "longest", "dim", "k"), [(65, 1500, 64, 30), (3, 2500, 16, 100), (130, 300, 16, 10)])
def test_the_two_passes_equal_brute_force_where_groups_hold_many_rows(
    targets: int, longest: int, dim: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seminar.retrieval import gpu_two_pass

    monkeypatch.setattr(gpu_two_pass, "PROGRAMS", 1)  # no more groups than K asks for
    users = 2 if targets < 10 else 1
    tiling = gpu_two_pass.Tiling.of(users, targets, longest, k)
    assert longest > 2 * tiling.stride
    assert tiling.skip == (targets < 10)
    problem = whole_numbers(users, targets, longest, dim, seed=1, largest=8)
    problem[2][:] = torch.tensor([longest, longest // 3])[:users]
    *result, complete = gpu_two_pass.two_pass(*problem, k)
    assert complete.all()
    check_exact((result[0], result[1]), problem, k)


@pytest.mark.usefixtures("triton")
def test_a_batch_larger_than_the_scratch_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from seminar.retrieval import gpu

    monkeypatch.setattr(gpu, "SCRATCH_BYTES", 1)
    problem = whole_numbers(3, 2, 100, 16, seed=10)
    check_exact(two_pass_top_k(*problem, 5), problem, 5)


@pytest.mark.usefixtures("triton")
def test_bfloat16_keys_are_searched_exactly() -> None:
    if DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    problem = whole_numbers(8, 100, 10_000, 64, seed=2, dtype=torch.bfloat16, largest=8)
    check_exact(two_pass_top_k(*problem, 100), problem, 100)


@pytest.mark.usefixtures("triton")
def test_rows_with_more_repeats_than_room_take_the_plain_form() -> None:
    from seminar.retrieval.gpu_two_pass import Tiling, two_pass

    query, key, length = whole_numbers(3, 2, 600, 16, seed=3)
    length[:] = 600
    key[1, ::2] = query[1, 0] * 2  # 300 repeats of what the first target of the second user likes best
    assert Tiling.of(3, 2, 600, 10).capacity < 300
    complete = two_pass(query, key, length, 10)[2]
    assert complete.tolist() == [[True, True], [False, complete[1, 1].item()], [True, True]]
    check_exact(two_pass_top_k(query, key, length, 10), (query, key, length), 10)


@pytest.mark.usefixtures("triton")
def test_hundreds_of_repeats_stay_in_the_kernels() -> None:
    from seminar.retrieval.gpu_two_pass import two_pass

    query, key, length = whole_numbers(1, 2, 900, 16, seed=4)
    length[:] = 900
    key[0, ::2] = query[0, 0] * 2
    *result, complete = two_pass(query, key, length, 100)
    assert complete.all()
    check_exact((result[0], result[1]), (query, key, length), 100)


def test_nothing_at_padding_reaches_a_result() -> None:
    query, key, length = whole_numbers(3, 4, 150, 48, seed=5)  # 48 is padded to 64: a tile row ends in the next key
    length[:] = torch.tensor([0, 40, 150])
    clean = brute_force((query, key, length), 50)
    for poison in (torch.nan, torch.inf, 6e4):
        for user, count in enumerate(length.tolist()):
            key[user, count:] = poison
        for index, relevance in forms((query, key, length), 50):
            np.testing.assert_array_equal(index.cpu(), clean[0])
            np.testing.assert_array_equal(relevance.cpu(), clean[1])


def test_a_behaviour_whose_relevance_is_nan_counts_as_padding() -> None:
    query, key, length = whole_numbers(2, 3, 60, 16, seed=6)
    length[:] = torch.tensor([60, 8])
    key[0, 5], key[1, 7] = torch.nan, torch.nan
    for index, relevance in forms((query, key, length), 60):
        assert not relevance.isnan().any()
        assert not (index[0] == 5).any()
        assert (index[0, :, 59:] == -1).all()
        assert index[1, 0].tolist() == [*range(7), *[-1] * 53]


def test_real_vectors_are_ranked_by_the_relevance_of_the_rounded_ones() -> None:
    draw = torch.Generator().manual_seed(7)
    query, key = (torch.randn(2, rows, 64, generator=draw).to(DEVICE, torch.float16) for rows in (6, 800))
    length = torch.tensor([800, 333], dtype=torch.int32, device=DEVICE)
    truth = torch.einsum("utd,uld->utl", query.double(), key.double()).cpu().numpy()
    for index, relevance in forms((query, key, length), 100):
        assert (index.diff(dim=-1) > 0).all()
        for user, count in enumerate(length.tolist()):
            row = truth[user, :, :count]
            np.testing.assert_allclose(relevance[user].cpu(), np.take_along_axis(row, index[user].cpu().numpy(), 1), atol=2e-5)
            best = -np.sort(-row, axis=1)[:, :100]
            np.testing.assert_allclose(-np.sort(-relevance[user].cpu().numpy(), axis=1), best, atol=2e-5)


def test_a_batch_without_users_targets_or_behaviours_has_a_result() -> None:
    for users, targets, longest, k in [(0, 3, 5, 2), (2, 0, 5, 2), (2, 3, 0, 2), (2, 3, 5, 0)]:
        problem = whole_numbers(users, targets, longest, 16, seed=8)
        index, relevance = batched_top_k(*problem, k)
        assert index.shape == relevance.shape == (users, targets, k)


def test_other_types_and_negative_k_are_refused() -> None:
    query, key, length = whole_numbers(1, 2, 5, 16, seed=9)
    with pytest.raises(ConfigError, match="float16 or bfloat16"):
        batched_top_k(query.float(), key.float(), length, 2)
    with pytest.raises(ConfigError, match="float16 or bfloat16, the same"):
        batched_top_k(query.bfloat16(), key, length, 2)
    with pytest.raises(ConfigError, match="k: got -1"):
        batched_top_k(query, key, length, -1)


@TYPES
def test_the_index_of_one_history_keeps_the_retrievers_contract(dtype: torch.dtype) -> None:
    world = shared_catalogue()
    retriever = GpuRetriever(world.space, DEVICE, dtype)
    for length in (0, 7, 120):
        probe, keys = world.probe(5, 1), world.keys(length, 2)
        index = retriever.index(keys)
        assert len(index) == length
        truth = index.relevance(probe)
        check_top_k(index.top_k(probe, 30), truth.double().numpy(), 30)
        expected = oracle(world.space, probe, keys, world.item, world.query)
        tolerance = 2.0 ** (-9 if dtype == torch.float16 else -6)
        np.testing.assert_allclose(truth, expected, atol=tolerance)
    with pytest.raises(ConfigError, match="gate of the target"):
        retriever.index(world.keys(10, 1)).top_k(world.probe(2, 1, "target"), 3)


def test_float16_keys_lose_almost_no_recall() -> None:
    world = shared_catalogue()
    requests = [(world.probe(10, seed), world.keys(1000, seed)) for seed in range(3)]
    (recall,) = recall_at(GpuRetriever(world.space, DEVICE), world.exact, requests, [100])
    assert recall > 0.995


def test_answers_come_back_to_the_probes_device() -> None:
    index = GpuIndex(torch.ones(3, 16, dtype=torch.float16, device=DEVICE))
    top = index.top_k(Probe(torch.ones(2, 16)), 2)
    assert top.index_TK.device.type == top.relevance_TK.device.type == "cpu"
    assert top.index_TK.tolist() == [[1, 2], [1, 2]]


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from seminar.retrieval import gpu_kernels as kernels
from seminar.retrieval.gpu_two_pass import Tiling

tiling = Tiling.of(64, int(sys.argv[1]), 10_000, 100)
dim = int(sys.argv[2])
widths = {"dim": dim, "padded": dim, "tile_targets": tiling.targets, "tile_rows": tiling.rows, "stride": tiling.stride,
          "skip": tiling.skip, "capacity": tiling.capacity, "above": -1, "width": tiling.narrow, "block": 128, "tile": 32}
types = {"query": "*bf16", "key": "*bf16", "length": "*i32", "maxima": "*i16", "threshold": "*fp32", "mark": "*i32",
         "position": "*i32", "score": "*fp32", "count": "*i32", "index": "*i64", "relevance": "*fp32", "complete": "*u8"}
for kernel, warps in (kernels._maxima, 4), (kernels._threshold, 1), (kernels._mark, 4), (kernels._choose, 1):
    fixed = {name for name in widths if name in kernel.arg_names and (name != "stride" or kernel is kernels._threshold)}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): widths[name] for name in fixed}
    compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
"""


@pytest.mark.parametrize(("targets", "dim"), [(100, 64), (1, 128)])
def test_the_kernels_compile_for_an_h100(targets: int, dim: int) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(targets), str(dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
