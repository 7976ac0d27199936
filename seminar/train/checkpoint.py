"""A training state in three plain files: exact resume, no pickle.

state.safetensors    model/<name>, optimiser/<parameter>/<field>
curve.parquet        one row a step
checkpoint.json      {"format": 1, "step": steps done}
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seminar.errors import ArtifactError, VersionMismatch, explain
from seminar.train.training import Optimisers

CHECKPOINT_FORMAT = 1
HEADER = "checkpoint.json"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimisers: Optimisers, curve: pa.Table) -> None:
    """Write the state after `step` steps into an existing folder."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for key, parameter, optimiser in _slots(model, optimisers):
        tensors |= {f"{key}/{field}": value for field, value in optimiser.state[parameter].items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / "state.safetensors")
    pq.write_table(curve, folder / "curve.parquet")
    (folder / HEADER).write_text(json.dumps({"format": CHECKPOINT_FORMAT, "step": step}))


def load_checkpoint(folder: Path, model: nn.Module, optimisers: Optimisers) -> tuple[int, pa.Table]:
    """Restore model and optimisers in place; returns (steps done, curve so far).

    Raises ArtifactError for a damaged folder and VersionMismatch, naming the tensors, for a state of another model.
    """
    header = _header(folder)
    tensors = load_file(folder / "state.safetensors")
    own = model.state_dict()
    saved = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    differing = sorted(n for n in own.keys() | saved.keys() if _shape(own, n) != _shape(saved, n))
    if differing:
        raise VersionMismatch(
            explain(
                f"checkpoint {folder}",
                got=", ".join(f"{n} {_shape(saved, n)}" for n in differing[:3]),
                expected=", ".join(f"{n} {_shape(own, n)}" for n in differing[:3]),
                fix="resume with the settings it was made with",
            )
        )
    model.load_state_dict(saved)
    for key, parameter, optimiser in _slots(model, optimisers):
        fields = {n.removeprefix(f"{key}/"): v for n, v in tensors.items() if n.startswith(f"{key}/")}
        optimiser.state[parameter] = {name: value.to(parameter.device) for name, value in fields.items()}
    return header["step"], pq.read_table(folder / "curve.parquet")


def model_weights(folder: Path) -> dict[str, Tensor]:
    """Only the model's state_dict of a checkpoint."""
    _header(folder)
    tensors = load_file(folder / "state.safetensors")
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}


def _header(folder: Path) -> dict[str, int]:
    path = folder / HEADER
    if not path.is_file():
        raise ArtifactError(
            explain(f"checkpoint {folder}", got="no checkpoint.json", expected="a finished checkpoint", fix="use another")
        )
    header = json.loads(path.read_text())
    if header["format"] != CHECKPOINT_FORMAT:
        raise VersionMismatch(
            explain(
                f"checkpoint {folder}",
                got=f"format {header['format']}",
                expected=f"format {CHECKPOINT_FORMAT}",
                fix="train again",
            )
        )
    return header


def _slots(model: nn.Module, optimisers: Optimisers) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimiser in optimisers.all:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                yield f"optimiser/{names[parameter]}", parameter, optimiser


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "missing"
