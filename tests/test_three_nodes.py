"""prepare, embed and pretrain on `ray.cluster_utils.Cluster`: three nodes of one CPU, so no two workers share a node."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seminar.artifacts import Artifact, Store
from seminar.config import DataConfig
from tests import ray_machines

TIMEOUT_S = 300
SETTINGS = """
[prepare]
num_shards = 4
chunk_length = 16
[embed]
text_encoder = "none"
image_encoder = "none"
[model]
dim = 16
id_dim = 8
num_token_rows = 256
[pretrain]
steps = 4
lanes = 2
num_workers = 2
window = 16
chunks_per_lane = 4
log_every = 1
[codebooks]
num_subquantizers = 4
"""
DRIVER = """
import sys
import ray
from seminar.cli import parse_job_args
from workflows.__main__ import run_job
from workflows.runtime import ray_session

arguments = ["--config", sys.argv[1]]
with ray_session(parse_job_args(arguments).ray):
    nodes = [node for node in ray.nodes() if node["Alive"]]
    print("nodes:", len(nodes))
    for job in ("prepare", "embed", "pretrain"):
        run_job(job, arguments)
"""


@pytest.mark.cluster
def test_three_nodes_prepare_the_same_pairs_and_pretrain_on_them(
    tiny_dataset: DataConfig, tiny_pairs: Artifact, tmp_path: Path
) -> None:
    config = tmp_path / "job.toml"
    data = f'[data]\nsource = "tables"\npath = {json.dumps(str(tiny_dataset.path))}\n'
    config.write_text(f"workdir = {json.dumps(str(tmp_path / 'work'))}\n{data}{SETTINGS}")
    with ray_machines.cluster(3, tmp_path / "cluster.log") as environment:
        command = [sys.executable, "-c", DRIVER, str(config)]
        done = subprocess.run(command, cwd=ray_machines.ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "nodes: 3" in done.stdout
    store = Store(tmp_path / "work")
    pairs, psu = store.open("pairs"), store.open("psu")
    assert pairs.manifest.files == tiny_pairs.manifest.files
    psu.verify()
    assert psu.manifest.inputs["pairs"].checksum == pairs.manifest.checksum
    curve = pq.read_table(psu.file("curve.parquet"))
    assert curve["step"].to_pylist()[-1] == 4
    assert all(loss > 0 for loss in curve["loss"].to_pylist())
