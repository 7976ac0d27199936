"""What a method that knows nothing of channels and gates can index: one vector a behaviour, in one of three forms.

merged   sum_j weight_lj unit_lj A_j                 [d]      asked u
gated    weight_lj unit_lj A_j side by side          [M d]    asked u, M times
parts    unit_lj A_j side by side, zero where missing [M d]   asked gate_tj u; needs the gate to be the target's
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.retrieval.base import Keys, Probe
from seminar.retrieval.exact import require_no_gate
from seminar.retrieval.key_space import KeySpace

Form = Literal["merged", "gated", "parts"]


def width(space: KeySpace, form: Form) -> int:
    """Numbers a behaviour in this form: D."""
    return space.dim if form == "merged" else space.num_channels * space.dim


def arranged(space: KeySpace, keys: Keys, form: Form) -> Float[Tensor, "L D"]:
    """One vector a behaviour; zero where it has no channel."""
    if form == "merged":
        return space.merged(keys)
    part_LMd = space.parts(keys)
    return (part_LMd * keys.weight_LM[..., None] if form == "gated" else part_LMd).flatten(1)


def asked(probe: Probe, form: Form, num_channels: int) -> Float32[ndarray, "T D"]:
    """What each target asks of vectors in this form; ConfigError if the form cannot serve the probe's gate."""
    query_Td = probe.query_Td.detach().contiguous().numpy()
    if form != "parts":
        require_no_gate(probe, f"{form} keys")
        return query_Td if form == "merged" else np.concatenate([query_Td] * num_channels, 1)
    if probe.gate_TM is None:
        raise ConfigError(explain("keys of separate channels", got="no gate", expected="the target's", fix="merge or gate them"))
    return (query_Td[:, None] * probe.gate_TM.detach().numpy()[..., None]).reshape(-1, num_channels * query_Td.shape[1])


@torch.no_grad()
def sample_keys(
    space: KeySpace, histories: Sequence[Keys], count: int, form: Form, generator: np.random.Generator
) -> Float32[ndarray, "N D"]:
    """What codes are trained on: N = min(count, all) behaviours, drawn without repetition and evenly from these histories."""
    start = np.concatenate([[0], np.cumsum([len(keys) for keys in histories])]).astype(np.int64)
    chosen = np.sort(generator.choice(start[-1], min(count, int(start[-1])), replace=False))
    bounds = np.searchsorted(chosen, start)
    sample_ND = np.empty((len(chosen), width(space, form)), np.float32)
    for keys, first, low, high in zip(histories, start, bounds, bounds[1:], strict=False):
        sample_ND[low:high] = arranged(space, keys[torch.from_numpy(chosen[low:high] - first)], form)
    return sample_ND
