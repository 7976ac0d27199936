"""Items outside the catalogue, known by their content alone: what the catalogue would have made of them without ID and counts.

A bundle keeps what that takes: the projections of the channels, and the vectors of the attribute tokens that its catalogue has.
Other tokens are absent, as an untrained row of the table would only add noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from safetensors.torch import load_file, save_file
from torch import Tensor

from seminar.channels import ChannelEncoder, VectorTables
from seminar.embedding import TextEncoder, clean_text
from seminar.embedding.base import unit_rows as usable_rows
from seminar.embedding.contents import token_hashes
from seminar.rows import unit_rows
from seminar.schema import ATTRIBUTES, CHANNELS, IMAGE, TEXT

FILE = "content.safetensors"


@dataclass(frozen=True)
class Content:
    """What is known of an item; None and () are missing. image: a vector of the bundle's image encoder, of any length > 0."""

    text: str | None = None
    category: str | None = None
    attributes: tuple[str, ...] = ()
    image: Float[ndarray, " D"] | None = None


@dataclass(frozen=True)
class UnseenItems:
    """X items in channel space (text, image, attributes), and the row of the heads' tables that stands for each
    (`CatalogueStats.with_unseen`)."""

    unit_X3d: Float[ndarray, "X 3 d"]
    present_X3: Bool[ndarray, "X 3"]
    stand_in_X: Int[ndarray, " X"]


@dataclass(frozen=True)
class ItemContents:
    """Projections W_m and the vectors of known attribute tokens, in the order of their hashes."""

    project_text: Float[Tensor, "Dt d"]
    project_image: Float[Tensor, "Di d"]
    project_attributes: Float[Tensor, "a d"]
    token_hash: Int[Tensor, " A"]
    token: Float[Tensor, "A a"]

    @classmethod
    def of(cls, encoder: ChannelEncoder, tables: VectorTables) -> "ItemContents":
        """What a trained encoder makes of a catalogue's tokens."""
        known = torch.from_numpy(np.unique(tables.attribute_hash).astype(np.int64))
        with torch.no_grad():
            vectors = encoder.tokens(known % encoder.num_token_rows)
        text, image, attributes = encoder.project_text, encoder.project_image, encoder.project_attributes
        return cls(text.detach(), image.detach(), attributes.detach(), known, vectors)

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in vars(self).items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "ItemContents":
        return cls(**load_file(folder / FILE))

    @property
    def image_width(self) -> int:
        """Numbers of an image vector; 0 where the catalogue was embedded without images."""
        return len(self.project_image)

    @torch.inference_mode()
    def encode(
        self, items: Sequence[Content], channels: Sequence[str], text_encoder: TextEncoder | None
    ) -> tuple[Float[Tensor, "X 3 d"], Bool[Tensor, "X 3"]]:
        """Unit vectors of X items and which channels exist. channels: those that the model uses. Image vectors have `image_width`
        numbers. Without a text encoder, texts are absent."""
        columns = [self._texts(items, text_encoder), self._images(items), self._attributes(items)]
        used = torch.tensor([CHANNELS[channel] in channels for channel in (TEXT, IMAGE, ATTRIBUTES)])
        present_X3 = torch.stack([present for _, present in columns], 1) & used
        return torch.stack([unit for unit, _ in columns], 1) * present_X3[..., None], present_X3

    def _texts(self, items: Sequence[Content], encoder: TextEncoder | None) -> tuple[Tensor, Tensor]:
        if encoder is None:
            return _nothing(items, self.project_text)
        return _projected(encoder.encode([clean_text(item.text) for item in items]), self.project_text)

    def _images(self, items: Sequence[Content]) -> tuple[Tensor, Tensor]:
        vectors = np.zeros((len(items), self.image_width), np.float32)
        for row, item in zip(vectors, items, strict=True):
            if item.image is not None:
                row[:] = item.image
        return _projected(usable_rows(vectors), self.project_image)

    def _attributes(self, items: Sequence[Content]) -> tuple[Tensor, Tensor]:
        summed = torch.zeros(len(items), self.token.shape[1])
        present = torch.zeros(len(items), dtype=torch.bool)
        for i, item in enumerate(items):
            tokens = [*item.attributes, *([] if item.category is None else [f"category={item.category}"])]
            rows = self._known(tokens)
            summed[i], present[i] = self.token[rows].sum(0), bool(len(rows))
        return unit_rows(summed @ self.project_attributes), present

    def _known(self, tokens: Sequence[str]) -> Int[Tensor, " N"]:
        """Rows of those tokens that the catalogue has, each once."""
        if not tokens or not len(self.token_hash):
            return torch.zeros(0, dtype=torch.int64)
        wanted = torch.from_numpy(np.unique(token_hashes(tokens)))
        rows = torch.searchsorted(self.token_hash, wanted).clamp_max(len(self.token_hash) - 1)
        return rows[self.token_hash[rows] == wanted]


def _projected(vectors: ndarray, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows of encoder outputs, and which of them hold anything."""
    rows = torch.from_numpy(vectors).float()
    return unit_rows(rows @ projection), (rows != 0).any(1)


def _nothing(items: Sequence[Content], projection: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(items), projection.shape[1]), torch.zeros(len(items), dtype=torch.bool)
