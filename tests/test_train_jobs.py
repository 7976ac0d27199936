"""Training under Ray Train: workers may die, runs may stop, and nothing of it shows in the result.

A fit costs 15 s and more to start, so each test asks as much as it can of one.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray import cloudpickle
from safetensors.numpy import save_file
from safetensors.torch import load_file

from seminar.artifacts import Artifact, Store
from seminar.batching import WindowBatch
from seminar.channels import VectorTables
from seminar.config import PSU_SHAPES, FinetuneConfig, ModelConfig, PretrainConfig, RayConfig, Settings
from seminar.data.weekly import flat_weeks
from seminar.errors import ConfigError, VersionMismatch
from seminar.train.build import check_psu, fresh_model, fresh_psu, psu_shapes
from seminar.train.training import Optimisers
from tests.test_training import Unit, batch_of, run
from workflows import finetune, pretrain
from workflows.train_artifact import train_artifact
from workflows.train_loop import TrainJob, train

STEPS = 12
RAY = RayConfig(address="local")
SMALL = ModelConfig(dim=16, num_heads=2, id_dim=8, num_token_rows=64, top_k=4, recent=4, hidden=(16,))


class Mishaps:
    """A lane whose step 7 fails the first time: the process is killed, or a batch cannot be made. Writes down every draw."""

    def __init__(self, folder: Path, kind: str, lane: int) -> None:
        self.folder, self.kind, self.lane = folder, kind, lane

    def batch(self, step: int) -> WindowBatch:
        with open(self.folder / f"drawn-{self.lane}", "a") as log:
            log.write(f"{step}\n")
        flag = self.folder / "happened"
        if step == 7 and self.lane == 1 and not flag.exists():
            flag.touch()
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("planted: this batch cannot be made")
        return batch_of(self.lane, step)


@pytest.fixture(scope="module", autouse=True)
def _workers_get_this_module_by_value() -> None:
    for name in (__name__, Unit.__module__):
        cloudpickle.register_pickle_by_value(sys.modules[name])


def config(**changes: Any) -> PretrainConfig:
    values = {
        "steps": STEPS,
        "lanes": 2,
        "checkpoint_every": 5,
        "log_every": 1,
        "learning_rate": 0.01,
        "sparse_learning_rate": 0.1,
    }
    return PretrainConfig(**{**values, **changes})


def uninterrupted() -> list[float]:
    """Losses of one worker in this process that holds both lanes and never stops."""
    unit = Unit()
    return [row["total"] for row in run(unit, Optimisers(unit, config()), config(), range(STEPS))]


def drawn(folder: Path, lane: int) -> list[int]:
    return [int(line) for line in (folder / f"drawn-{lane}").read_text().split()]


def tiny_vectors(store: Store, pairs: Artifact) -> Artifact:
    """A vectors artefact for `pairs`: random text and query vectors, attributes, no images."""
    items, queries = pq.read_table(pairs.file("items.parquet")), pq.read_table(pairs.file("queries.parquet"))
    rng, n, q = np.random.default_rng(0), len(items), len(queries)
    tables = VectorTables(
        text=rng.standard_normal((n, 12)).astype(np.float16),
        text_row=np.where(np.arange(n) % 4, np.arange(n), -1).astype(np.int32),
        image=np.zeros((0, 6), np.float16),
        image_row=np.full(n, -1, np.int32),
        query=rng.standard_normal((q, 12)).astype(np.float16),
        query_row=np.arange(q, dtype=np.int32),
        attribute_hash=rng.integers(0, 2**62, n),
        attribute_offsets=np.arange(n + 1),
        category_index=items["category_index"].to_numpy(),
        train_count=items["train_count"].to_numpy(),
        **dict(zip(("week_offsets", "week", "week_count"), flat_weeks(items), strict=True)),
    )
    draft = store.draft("vectors", {"pairs": pairs}, {})
    save_file(vars(tables), draft.path / "vectors.safetensors")
    return store.publish(draft)


@pytest.fixture
def settings(tiny_store: Store) -> Settings:
    common: dict[str, Any] = {"steps": 6, "lanes": 2, "checkpoint_every": 4, "max_history": 40}
    return Settings(
        workdir=tiny_store.root,
        model=SMALL,
        pretrain=PretrainConfig(**common, chunks_per_lane=4, window=16, num_chunks=2),
        finetune=FinetuneConfig(**common, requests_per_lane=4, num_workers=2),
        ray=RAY,
    )


def test_two_workers_and_a_killed_one_give_the_curve_of_one_that_never_stopped(ray_session: None, tmp_path: Path) -> None:
    job = TrainJob("test", config(num_workers=2, max_failures=1), tmp_path, Unit, partial(Mishaps, tmp_path, "kill"))
    folder = train(job, RAY)
    curve = pq.read_table(folder / "curve.parquet")
    assert curve["step"].to_pylist() == list(range(1, STEPS + 1))
    assert curve["loss"].to_pylist() == pytest.approx(uninterrupted(), rel=1e-5)
    assert (curve["pairs_per_s"].to_numpy() > 0).all()
    # Killed while drawing step 7, with a checkpoint after five steps: only steps since then are drawn again.
    draws = drawn(tmp_path, 1)
    assert draws == [*range(8), *range(5, STEPS)]


def test_a_failing_step_ends_the_job_with_its_traceback_and_a_rerun_resumes(
    ray_session: None, store: Store, tiny_pairs: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = {"pairs": tiny_pairs, "vectors": tiny_vectors(store, tiny_pairs)}
    settings, shapes = Settings(workdir=store.root, model=SMALL, ray=RAY), psu_shapes(SMALL)
    lanes = partial(Mishaps, tmp_path, "raise")
    with pytest.raises(ValueError, match="planted") as failure:
        train_artifact(store, "psu", "pretrain", inputs, settings, shapes, config(max_failures=3), Unit, lanes)
    assert "in batch\n" in failure.value.__notes__[0], "the worker's own traceback comes along"
    assert drawn(tmp_path, 1) == list(range(8)), "an error that would repeat is not tried again"
    assert store.versions("psu") == []
    assert "stopped after" in capfd.readouterr().err

    artifact = train_artifact(store, "psu", "pretrain", inputs, settings, shapes, config(max_failures=3), Unit, lanes)
    assert drawn(tmp_path, 1) == [*range(8), *range(5, STEPS)]
    curve = pq.read_table(artifact.file("curve.parquet"))
    assert curve["loss"].to_pylist() == uninterrupted(), "on one worker a resumed run is bitwise the whole one"
    assert load_file(artifact.file("psu.safetensors")).keys() == Unit().state_dict().keys()
    assert sorted(artifact.manifest.files) == ["curve.parquet", "psu.safetensors"]
    assert artifact.manifest.metrics["steps"] == STEPS
    assert artifact.manifest.metrics["final"]["loss"] == curve["loss"][-1].as_py()
    assert artifact.manifest.metrics["origins"] == tiny_pairs.manifest.metrics["origins"]

    again = train_artifact(store, "psu", "pretrain", inputs, settings, shapes, config(num_workers=2), Unit, lanes)
    assert again.version == artifact.version, "how many workers is not part of what was trained"
    assert drawn(tmp_path, 1) == [*range(8), *range(5, STEPS)], "a finished artefact is returned at once"


def test_pretrain_and_finetune_publish_models_that_were_trained(
    ray_session: None, tiny_store: Store, tiny_pairs: Artifact, settings: Settings
) -> None:
    vectors = tiny_vectors(tiny_store, tiny_pairs)
    psu = pretrain.run(settings, tiny_store)
    curve = pq.read_table(psu.file("curve.parquet"))
    assert {"step", "loss", "next", "align", "rel", "pairs_per_s"} <= set(curve.column_names)
    assert np.isfinite(curve["loss"].to_numpy()).all()
    fresh = fresh_psu(SMALL, settings.pretrain, vectors.path).state_dict()
    trained = load_file(psu.file("psu.safetensors"))
    assert trained.keys() == fresh.keys()
    assert not torch.equal(trained["channels.ids.weight"], fresh["channels.ids.weight"])

    model = finetune.run(settings, tiny_store)
    assert {name: ref.version for name, ref in model.manifest.inputs.items()} == {
        "pairs": tiny_pairs.version,
        "vectors": vectors.version,
        "psu": psu.version,
    }
    curve = pq.read_table(model.file("curve.parquet"))
    assert {"ctr", "psr", "pairs_per_s"} <= set(curve.column_names)
    start = fresh_model(SMALL, settings.finetune, vectors.path, psu.file("psu.safetensors"))
    assert torch.equal(start.state_dict()["channels.project_text"], trained["channels.project_text"]), "starts from the PSU"
    assert start.distillation == settings.finetune.distillation
    assert start.channels.show_as_new == settings.finetune.id_dropout
    finished = load_file(model.file("model.safetensors"))
    assert finished.keys() == start.state_dict().keys()
    moved = {name for name, value in start.named_parameters() if not torch.equal(value, finished[name])}
    assert {"channels.ids.weight", "channels.project_text", "gsu.attention.wq", "esu.attention.wq"} <= moved


def test_too_many_workers_for_this_machine_is_one_clear_error(ray_session: None, tmp_path: Path) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    job = TrainJob("test", config(num_workers=cpus + 1, lanes=cpus + 1), tmp_path, Unit, partial(Mishaps, tmp_path, "kill"))
    with pytest.raises(ConfigError, match=rf"num_workers \({cpus + 1}\).*lower num_workers"):
        train(job, RAY)


def test_vectors_of_other_pairs_are_refused(store: Store, tiny_pairs: Artifact) -> None:
    other = store.publish(store.draft("pairs", {}, {"source": "other"}))
    with pytest.raises(VersionMismatch, match=f"expected pairs {tiny_pairs.version}.*run embed"):
        tiny_vectors(store, other_with_catalogue(other, tiny_pairs)).require_input("pairs", tiny_pairs, "run embed")


def other_with_catalogue(other: Artifact, pairs: Artifact) -> Artifact:
    """The manifest of `other` in front of the files of `pairs`."""
    return Artifact(pairs.path, other.manifest.model_copy(update={"files": pairs.manifest.files}))


def test_a_psu_of_another_shape_is_refused(store: Store, tiny_pairs: Artifact) -> None:
    vectors = tiny_vectors(store, tiny_pairs)
    recorded = {"model": SMALL.model_copy(update={"dim": 32}).model_dump(mode="json", include=set(PSU_SHAPES))}
    psu = store.publish(store.draft("psu", {"pairs": tiny_pairs, "vectors": vectors}, recorded))
    check_psu(psu, vectors, SMALL.model_copy(update={"dim": 32, "top_k": 9}))
    with pytest.raises(VersionMismatch, match=r"'dim': 32.*'dim': 16.*run pretrain"):
        check_psu(psu, vectors, SMALL)


@ray.remote
def large_memory_flags() -> set[str]:
    """Flags of the mapping that holds a large new block of malloc's."""
    block = np.ones(1 << 25, np.uint8)
    address, inside = block.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (first := line.split(maxsplit=1)[0]) and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= address < high
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    return set()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="no huge pages to ask for")
def test_processes_of_a_job_ask_for_huge_pages(ray_session: None) -> None:
    assert "hg" in ray.get(large_memory_flags.remote())
