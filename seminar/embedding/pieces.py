"""The unit of embedding work: some ten seconds of one encoder, named by what it encodes and kept as one file.

A rerun, another worker count or a retried task therefore finds and makes the same files with the same bytes in them.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from seminar.embedding.base import Encoded, EncoderSpec
from seminar.embedding.images import IMAGE_ENCODERS, EfficientNetLite0, open_image_encoder
from seminar.embedding.text import TEXT_ENCODERS, TextEncoder, open_text_encoder

Kind = Literal["text", "image"]
ENCODERS = {"text": TEXT_ENCODERS, "image": IMAGE_ENCODERS}


@dataclass(frozen=True)
class Piece:
    """Contents to encode together: cleaned texts, or image paths relative to `folder` ("" for text)."""

    kind: Kind
    encoder: str
    contents: list[str]
    keys: list[str]
    folder: str = ""

    @property
    def spec(self) -> EncoderSpec:
        return ENCODERS[self.kind][self.encoder]

    @property
    def filename(self) -> str:
        digest = hashlib.sha256("".join(self.keys).encode()).hexdigest()
        return f"{self.kind}-{self.encoder}-{digest[:24]}.safetensors"

    def take(self, rows: Sequence[int]) -> "Piece":
        """The piece that holds only these contents."""
        return replace(self, contents=[self.contents[row] for row in rows], keys=[self.keys[row] for row in rows])

    def cut(self) -> list["Piece"]:
        """Pieces of the encoder's own size, in order."""
        size = self.spec.piece if self.contents else 1
        return [self.take(range(i, min(i + size, len(self.contents)))) for i in range(0, len(self.contents), size)]


class PieceEncoder:
    """Encodes pieces, loading each encoder once."""

    def __init__(self, *, batch_size: int = 64, device: str = "cpu") -> None:
        self._options = {"batch_size": batch_size, "device": device}
        self._text: dict[str, TextEncoder] = {}
        self._image: dict[str, EfficientNetLite0] = {}

    def encode(self, piece: Piece) -> Encoded:
        """Vectors and failures of one piece, in its order."""
        if piece.kind == "image":
            if piece.encoder not in self._image:
                self._image[piece.encoder] = open_image_encoder(piece.encoder, **self._options)
            return self._image[piece.encoder].encode(Path(piece.folder), piece.contents)
        if piece.encoder not in self._text:
            self._text[piece.encoder] = open_text_encoder(piece.encoder, **self._options)
        vectors = self._text[piece.encoder].encode(piece.contents)
        blank = np.flatnonzero(~vectors.any(axis=1))
        return Encoded(vectors, {int(row): "nothing the encoder knows" for row in blank})


def write_piece(encoded: Encoded, path: Path) -> None:
    """One safetensors file, complete or absent; a second writer of the same piece replaces it by the same bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    failures = json.dumps({str(row): reason for row, reason in sorted(encoded.failures.items())})
    save_file({"vectors": encoded.vectors}, temporary, metadata={"failures": failures})
    os.replace(temporary, path)


def read_piece(path: Path) -> Encoded:
    """What `write_piece` wrote."""
    with safe_open(path, framework="np") as file:
        failures = json.loads(file.metadata()["failures"])
        return Encoded(file.get_tensor("vectors"), {int(row): reason for row, reason in failures.items()})
