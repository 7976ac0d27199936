"""The end-model table: what it calls exact is the evaluation's model, and a loss is of retrieval and of nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import common, end_model
from benchmarks.common import Goal
from benchmarks.end_model import Trial, contest_of, measure, trials
from benchmarks.end_model_scores import EXACT, NEWEST, RANDOM, WHOLE, Codec, Contest, Counts, RequestScorer, _same_best
from benchmarks.end_model_table import METRICS, Measured, figures, goals, markdown, slices
from benchmarks.gsu_methods import INT8, PQ8
from seminar.artifacts import Artifact, Store
from seminar.batching import Request, collate
from seminar.bundle import Bundle
from seminar.config import DataConfig, EvaluateConfig
from seminar.errors import ConfigError
from seminar.evaluate.evaluation import evaluate_histories
from seminar.evaluate.negatives import ItemPool
from seminar.history_search import key_space
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import MergedIndex, MergedRetriever
from seminar.sequences import Histories
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from tests.bundles import MODEL, make_bundle, make_vectors

KS = (5, 12, 1000)
CONFIG = EvaluateConfig(num_negatives=20)


class Backwards:
    """Finds the least relevant behaviours."""

    name, bytes_per_behaviour = "backwards", 1.0

    def __init__(self, retriever: MergedRetriever) -> None:
        self.retriever = retriever

    def index(self, keys: Keys) -> "BackwardsIndex":
        return BackwardsIndex(self.retriever.index(keys))


class BackwardsIndex:
    def __init__(self, index: MergedIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def relevance(self, probe: Probe) -> torch.Tensor:
        return -self.index.relevance(probe)

    def top_k(self, probe: Probe, k: int) -> TopK:
        return self.index.top_k(Probe(-probe.query_Td), k)


@pytest.fixture(scope="module")
def bundle(tiny_pairs: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = Store(tmp_path_factory.mktemp("end-model"))
    return Bundle.load(make_bundle(store, tiny_pairs, make_vectors(store, tiny_pairs)).path)


@pytest.fixture(scope="module")
def histories(tiny_pairs: Artifact) -> Histories:
    return read_shards(shard_paths(tiny_pairs))


@pytest.fixture(scope="module")
def pool(tiny_pairs: Artifact) -> ItemPool:
    return ItemPool.of(pq.read_table(tiny_pairs.file("items.parquet")))


@pytest.fixture(scope="module")
def drawn(histories: Histories, pool: ItemPool) -> list[Trial]:
    return trials(histories, pool, CONFIG, None)


@pytest.fixture(scope="module")
def contest(bundle: Bundle) -> Contest:
    space = key_space(bundle)
    exact = MergedRetriever(space)
    codecs = [Codec("merged again", exact, 2.0), Codec("backwards", Backwards(exact), 1000.0)]
    return Contest(bundle.ranker, space, codecs, KS, CONFIG.max_history)


@pytest.fixture(scope="module")
def counts(contest: Contest, histories: Histories, drawn: list[Trial]) -> list[Counts]:
    return measure(contest, histories, drawn, seed=3, threads=1)


def column(counts: list[Counts], contest: Contest, name: str, k: int) -> list[tuple[int, int]]:
    row, place = contest.names.index(name), KS.index(k)
    return [(int(c.above_KR[place, row]), int(c.tied_KR[place, row])) for c in counts]


@pytest.mark.parametrize(("name", "k", "top_k"), [(EXACT, 5, 5), (EXACT, 12, 12), (WHOLE, 5, 1000)])
def test_exact_and_whole_are_the_model_of_an_evaluation_with_that_top_k(
    name: str,
    k: int,
    top_k: int,
    contest: Contest,
    counts: list[Counts],
    bundle: Bundle,
    histories: Histories,
    pool: ItemPool,
    drawn: list[Trial],
) -> None:
    model = Bundle.load(bundle.path).ranker
    model.config = bundle.config.model_copy(update={"top_k": top_k})
    rows = evaluate_histories(histories, pool, {"model": model.score}, CONFIG).ranked.to_pylist()
    expected = {row["user_id"]: (row["above"], row["tied"]) for row in rows}
    assert len(expected) == len(drawn) > 15
    found = column(counts, contest, name, k)
    assert {histories.user_id[trial.held.row]: pair for trial, pair in zip(drawn, found, strict=True)} == expected


def test_a_codec_that_finds_the_same_behaviours_loses_nothing(contest: Contest, counts: list[Counts]) -> None:
    """Also one that proposes them in the worst order, once all it proposes is re-scored."""
    for name in ("merged again", "merged again, re-scored", "backwards, re-scored"):
        row = contest.names.index(name)
        for k in KS:
            assert column(counts, contest, name, k) == column(counts, contest, EXACT, k)
        assert min(c.recall_KR[:, row].min() for c in counts) > 0.999
        assert min(c.same_KR[:, row].min() for c in counts) == 1


def test_a_codec_that_finds_other_behaviours_changes_scores_and_recall(contest: Contest, counts: list[Counts]) -> None:
    row = contest.names.index("backwards")
    assert column(counts, contest, "backwards", 5) != column(counts, contest, EXACT, 5)
    assert np.mean([c.recall_KR[0, row] for c in counts]) < 0.5
    assert 0.1 < np.mean([c.same_KR[0, row] for c in counts]) < 0.99


def test_histories_of_at_most_k_behaviours_are_alike_for_everyone(counts: list[Counts]) -> None:
    place = KS.index(1000)
    for c in counts:
        assert len(set(c.above_KR[place])) == len(set(c.tied_KR[place])) == 1
        assert (c.recall_KR[place] == 1).all()
        assert (c.same_KR[place] == 1).all()


def test_choices_ranked_together_score_as_each_alone(contest: Contest, histories: Histories, drawn: list[Trial]) -> None:
    trial = max(drawn, key=lambda trial: trial.held.start)
    with torch.inference_mode():
        scorer = RequestScorer(contest.ranker, collate(histories, [trial.request], 1000))
        draw = np.random.default_rng(0)
        targets, length = scorer.truth_TL.shape
        rows = [np.sort(draw.permutation(length)[:4]) for _ in range(3 * targets)]
        kept_RTK = torch.from_numpy(np.stack(rows).reshape(3, targets, 4))
        kept_RTK[1, ::2] = kept_RTK[0, ::2]
        together = scorer.scores(kept_RTK)
        alone = torch.cat([scorer.scores(kept_RTK[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(together[1, ::2], together[0, ::2])
    assert not torch.equal(together[1, 1::2], together[0, 1::2])


def test_recall_counts_any_of_equally_relevant_behaviours(contest: Contest, histories: Histories, drawn: list[Trial]) -> None:
    """Against a loop in float64 over sorted relevances."""
    trial = max(drawn, key=lambda trial: trial.held.start)
    with torch.inference_mode():
        scorer = RequestScorer(contest.ranker, collate(histories, [trial.request], 1000))
        kept_TK = torch.arange(3, 11).expand(len(scorer.truth_TL), -1)
        found = scorer.recall(kept_TK[None])
    truth_TL = scorer.truth_TL.numpy().astype(np.float64)
    expected = [np.mean(row[3:11] >= np.sort(row)[-8] - 1e-5 * np.abs(row).max()) for row in truth_TL]
    assert found.tolist() == pytest.approx([np.mean(expected)])
    assert 0 < found[0] < 1


def test_the_same_top_ten_is_of_exact_retrievals_ten() -> None:
    """Of twelve candidates; in the second row three of the ten fall below the two others, so one of the three stays."""
    exact = torch.arange(12.0).flip(0)
    swapped = torch.cat([exact[:7], torch.tensor([-3.0, -2.0, -1.0]), exact[10:]])
    assert _same_best(torch.stack([exact, swapped, exact.where(exact < 5, exact + 10)])).tolist() == [1, 0.8, 1]


def test_a_user_without_history_is_scored(contest: Contest, histories: Histories, drawn: list[Trial]) -> None:
    request = drawn[0].request
    empty = Request(request.row, 0, request.time_ms, request.item_T, request.query_T, request.label_T, request.task_T)
    got = contest.counts(histories, empty, 0, np.random.default_rng(0))
    assert len(set(got.above_KR.ravel())) == 1
    assert got.others == len(request.item_T) - 1


def test_what_is_random_does_not_depend_on_threads(
    contest: Contest, histories: Histories, drawn: list[Trial], counts: list[Counts]
) -> None:
    again = measure(contest, histories, drawn, seed=3, threads=2)
    for one, other in zip(counts, again, strict=True):
        np.testing.assert_array_equal(one.above_KR, other.above_KR)
    assert column(measure(contest, histories, drawn, seed=4, threads=1), contest, RANDOM, 5) != column(again, contest, RANDOM, 5)
    assert column(again, contest, NEWEST, 5) != column(again, contest, RANDOM, 5)


def ranked(above: list[int], others: int = 9) -> Counts:
    return Counts(np.array([above]), np.zeros((1, len(above)), np.int64), *np.ones((2, 1, len(above))), others)


def test_changes_are_paired_by_user_and_a_constant_one_has_no_interval() -> None:
    """Users rank from 0 to 3; the second way always puts one candidate more above the positive."""
    measured = Measured(["exact", "worse"], [256.0, 8.0], (50,), np.arange(4), [ranked([n, n + 1]) for n in range(4)])
    got = figures(measured, np.ones(4, bool), "all users", 0)
    auc, hit = METRICS.index("AUC"), METRICS.index("HIT@10")
    assert got.change_KRQ[0, 1, auc] == pytest.approx(-1 / 9)
    assert (got.low_KRQ[0, 1, auc], got.high_KRQ[0, 1, auc]) == pytest.approx((-1 / 9, -1 / 9))
    assert got.change_KRQ[0, 1, hit] == 0
    gains = [1 / np.log2(n + 2) for n in range(5)]
    assert got.change_KRQ[0, 1, METRICS.index("NDCG@10")] == pytest.approx(np.mean(np.diff(gains)))
    assert got.value_KRQ[0, 0, METRICS.index("NDCG@10")] == pytest.approx(np.mean(gains[:4]))
    assert not got.change_KRQ[:, 0].any()


def test_long_histories_have_figures_of_their_own() -> None:
    names = ["exact", "worse"]
    measured = Measured(names, [256.0, np.nan], (50,), np.array([400, 401, 10]), [ranked(a) for a in ([0, 0], [0, 9], [0, 0])])
    everyone, long = slices(measured, 0)
    assert (everyone.users, long.users) == (3, 1)
    assert long.change_KRQ[0, 1, METRICS.index("AUC")] == -1
    assert everyone.change_KRQ[0, 1, METRICS.index("AUC")] == pytest.approx(-1 / 3)
    page = "\n".join(markdown(measured, [everyone, long], ["What."]))
    assert "## Histories longer than 400: 1 users" in page
    assert "| worse |  | 1.000 | 1.000 | 0.2891 | -0.7109 [-0.7109, -0.7109] | 0.0000 | -1.0000 [-1.0000, -1.0000] |" in page


def test_a_loss_beyond_the_target_falls_short_and_a_gain_holds() -> None:
    above = {EXACT: 1, INT8: 1, f"{INT8}, re-scored": 2, PQ8: 1, f"{PQ8}, re-scored": 0, RANDOM: 1, NEWEST: 1, WHOLE: 1}
    measured = Measured(list(above), [1.0] * 8, (50,), np.array([9]), [ranked(list(above.values()))])
    found = list(goals(measured, slices(measured, 0)))

    def of(text: str) -> Goal:
        return next(goal for goal in found if goal.goal.startswith(text))

    loss = of(f"NDCG@10 lost by {INT8}, re-scored, K=50")
    assert loss.measured == pytest.approx(1 / np.log2(3) - 1 / 2)
    assert loss.holds is False
    gain = of(f"AUC lost by {PQ8}, re-scored, K=50")
    assert gain.measured == pytest.approx(-1 / 9)
    assert gain.holds is True
    assert of(f"AUC lost by {RANDOM}, K=50").holds is None


def test_a_gate_of_the_target_is_refused(tiny_pairs: Artifact, histories: Histories, tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_bundle(store, tiny_pairs, make_vectors(store, tiny_pairs), config=MODEL.model_copy(update={"gate": "target"}))
    with pytest.raises(ConfigError, match=r"model\.gate: got target"):
        contest_of(Bundle.load(made.path), histories, CONFIG)


@pytest.fixture
def config_file(tiny_store: Store, tiny_pairs: Artifact, tiny_dataset: DataConfig, tmp_path: Path) -> Path:
    make_bundle(tiny_store, tiny_pairs, make_vectors(tiny_store, tiny_pairs))
    path = tmp_path / "tiny.toml"
    data = f'[data]\nsource = "tables"\npath = "{tiny_dataset.path}"\n'
    path.write_text(f'workdir = "{tiny_store.root}"\n{data}[evaluate]\nnum_negatives = 20\n')
    return path


@pytest.fixture
def run_main(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(*arguments: str) -> Path:
        threads = torch.get_num_threads()
        monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(sys, "argv", ["end_model", "--config", str(config_file), *arguments])
        end_model.main()
        torch.set_num_threads(threads)
        return tmp_path / "results"

    return run


def test_the_whole_benchmark_writes_its_table_and_goals(
    run_main: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    results = run_main()
    page = (results / "end_model.md").read_text()
    for name in (*end_model.CODECS, "int8, re-scored", RANDOM, NEWEST, WHOLE):
        assert f"\n| {name} |" in page
    assert "| int8 | 16 |" in page
    assert "K = 100" in page
    assert (results / "end_model.json").is_file()
    assert page in capsys.readouterr().out


def test_a_sample_of_users_is_printed_and_not_published(
    run_main: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_model, "CODECS", (INT8,))
    assert not run_main("--users", "15", "--threads", "1").exists()
    printed = capsys.readouterr().out
    assert "# What the end model loses" in printed
    users = int(printed.split("## All users: ")[1].split()[0])
    assert 5 < users < 25
