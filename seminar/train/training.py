"""One training step over lanes, and the optimisers: no Ray, no device names, no loop.

A step's gradient is the mean over all lanes of each lane's mean loss. A worker accumulates the lanes it holds, then workers sum:
dense gradients are views of one buffer and cost one all-reduce, ID tables exchange the rows they touched. So W workers make the
update that one worker holding every lane would make, up to the order of float additions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from seminar.batching import Batch, WindowBatch
from seminar.config import TrainConfig
from seminar.errors import explain
from seminar.id_table import SparseTable
from seminar.kernels.rows import adagrad
from seminar.rows import for_kernels

Losses = Mapping[str, Tensor]
"""What `model.loss(batch)` returns: named 0-d losses, each a mean over the lane's samples; `total` is what is minimised."""


@runtime_checkable
class Trainable(Protocol):
    """What a trainable unit offers besides being an nn.Module."""

    def loss(self, batch: Any) -> Losses:
        """Of a WindowBatch (PSU) or a Batch (ranker)."""
        ...


class DenseGradients:
    """Gradients of all dense parameters as views of one buffer: one all-reduce, one norm, one scaling."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.flat: Float[Tensor, " P"] = torch.cat([torch.zeros_like(p).flatten() for p in parameters])
        for parameter, view in zip(parameters, self.flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = view.view_as(parameter)


class RowAdagrad(torch.optim.Adagrad):
    """Adagrad of coalesced sparse gradients that reads and writes only the rows they name; torch's also passes over the table."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "a step follows one backward pass"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                row, value, state = parameter.grad.indices()[0], parameter.grad.values(), self.state[parameter]
                state["step"] += 1
                if for_kernels(parameter):
                    table, sums = parameter.detach().numpy(), state["sum"].numpy()
                    rate, epsilon = np.float32(group["lr"]), np.float32(group["eps"])
                    adagrad(table, sums, row.numpy(), value.contiguous().numpy(), rate, epsilon)
                    continue
                total = state["sum"].index_add_(0, row, value.square())[row]
                parameter.index_add_(0, row, value / (total.sqrt() + group["eps"]), alpha=-group["lr"])


class Optimisers:
    """AdamW for dense parameters, Adagrad for the rows of ID tables; parameters without requires_grad are left alone."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.tables = [m for m in model.modules() if isinstance(m, SparseTable) and m.sparse_parameters()[0].requires_grad]
        sparse = [p for table in self.tables for p in table.sparse_parameters()]
        dense = [p for p in model.parameters() if p.requires_grad and all(p is not s for s in sparse)]
        self.gradients = DenseGradients(dense)
        self.config = config
        self.dense = torch.optim.AdamW(dense, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.sparse = RowAdagrad(sparse, lr=config.sparse_learning_rate) if sparse else None

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        return [self.dense] if self.sparse is None else [self.dense, self.sparse]

    def zero(self) -> None:
        self.gradients.flat.zero_()
        if self.sparse is not None:
            self.sparse.zero_grad(set_to_none=True)

    def exchange(self, group: dist.ProcessGroup | None) -> None:
        """Sum all gradients over the group's workers."""
        if group is not None:
            dist.all_reduce(self.gradients.flat, group=group)
        for table in self.tables:
            table.exchange_gradients(group)

    def step(self, step: int) -> float:
        """Clip the dense gradient, update everything, return the norm before clipping; FloatingPointError if it is not finite.

        step: number of this update, from 0; the dense learning rate is a function of it alone, so a restart changes nothing.
        """
        norm = float(torch.linalg.vector_norm(self.gradients.flat))
        if not np.isfinite(norm):
            raise FloatingPointError(
                explain("gradient norm", got=norm, expected="a finite number", fix="lower learning_rate or sparse_learning_rate")
            )
        self.gradients.flat.mul_(min(1.0, self.config.max_gradient_norm / (norm + 1e-12)))
        for group in self.dense.param_groups:
            group["lr"] = learning_rate(step, self.config)
        for optimiser in self.all:
            optimiser.step()
        return norm


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of the dense parameters at update `step`: linear warm-up, then linear decay to zero after the last of `steps`."""
    rising = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * rising * max(1.0 - step / config.steps, 0.0)


@dataclass(frozen=True)
class StepResult:
    """losses: means over all lanes of all workers. pairs: scored or predicted pairs in the global batch."""

    losses: dict[str, float]
    pairs: int
    gradient_norm: float


def train_step(
    model: nn.Module,
    batches: Mapping[int, Batch | WindowBatch],
    optimisers: Optimisers,
    *,
    step: int,
    config: TrainConfig,
    group: dist.ProcessGroup | None = None,
) -> StepResult:
    """One update from this worker's batches, keyed by lane; all workers of `group` call it with theirs.

    Dropout and other draws of `model.loss` are seeded by (seed, step, lane), so neither the number of workers nor a restart
    changes them. Raises FloatingPointError, on all workers alike, when a loss or gradient is not finite.
    """
    device = optimisers.gradients.flat.device
    optimisers.zero()
    sums: dict[str, Tensor] = {}
    pairs = 0
    for lane, batch in sorted(batches.items()):
        with _randomness_of(config.seed, step, lane, device):
            losses = cast(Trainable, model).loss(batch.to(device))
            (losses["total"] / config.lanes).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double() / config.lanes
        pairs += num_pairs(batch)
    reported, all_pairs = _reduce(sums, pairs, group)
    if not np.isfinite(reported["total"]):
        parts = ", ".join(f"{name} {value:.3g}" for name, value in reported.items())
        raise FloatingPointError(
            explain(
                f"loss of step {step}", got=parts, expected="finite numbers", fix="lower learning_rate or sparse_learning_rate"
            )
        )
    optimisers.exchange(group)
    return StepResult(reported, all_pairs, optimisers.step(step))


def num_pairs(batch: Batch | WindowBatch) -> int:
    """Targets scored, or behaviours predicted."""
    return int((batch.target_count_B if isinstance(batch, Batch) else batch.length_B).sum())


def broadcast_parameters(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Give every worker rank 0's parameters: the same generator may draw other last bits on other hardware."""
    if group is not None:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0, group=group)


def _reduce(sums: Mapping[str, Tensor], pairs: int, group: dist.ProcessGroup | None) -> tuple[dict[str, float], int]:
    """Sum the losses and the number of pairs over workers."""
    names = sorted(sums)
    packed = torch.stack([sums[name] for name in names])
    packed = torch.cat([packed, packed.new_tensor([pairs])])
    if group is not None:
        dist.all_reduce(packed, group=group)
    *losses, total = packed.tolist()
    return dict(zip(names, losses, strict=True)), int(total)


@contextmanager
def _randomness_of(seed: int, step: int, lane: int, device: torch.device) -> Iterator[None]:
    """Scoped: the caller's random state is as before afterwards."""
    value = np.random.SeedSequence([seed, step, lane]).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng([] if device.index is None else [device.index]):
        torch.manual_seed(int(value))
        yield
