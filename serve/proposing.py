"""Candidates of one bundle, without its scorer: user tower, item index, query table and, once it is needed, the text encoder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from seminar.artifacts import Artifact
from seminar.bundle import PROPOSER
from seminar.candidates.proposer import Candidates, Past, Proposer
from seminar.embedding import TextEncoder, open_text_encoder
from seminar.errors import ArtifactError, VersionMismatch, explain
from seminar.faiss_extra import faiss_module
from seminar.schema import NONE


@dataclass(frozen=True)
class Wish:
    """What candidates are wanted for. query: catalogue row, -1 none. text: a query that the catalogue lacks, instead of a row."""

    past: Past
    query: int
    text: str | None
    count: int


@dataclass(frozen=True)
class Proposed:
    """Candidates, and how long finding them took."""

    candidates: Candidates
    propose_ms: float


class BundleProposer:
    """Proposes out of a published bundle's catalogue. Thread-safe; a bundle without an item index is known, and proposes nothing.

    ArtifactError if a file is damaged or no candidates come out, VersionMismatch if the index is of another catalogue.
    """

    def __init__(self, bundle: Artifact) -> None:
        bundle.verify()
        self.version = bundle.version
        self._encoder_name = bundle.manifest.config["text_encoder"]
        self._proposer: Proposer | None = None
        if has_index(bundle):
            self._proposer = Proposer.load(bundle.path / PROPOSER)
            self._try_out(bundle.manifest.metrics["items"])

    def propose(self, wish: Wish) -> Candidates:
        """On one core, whichever thread calls."""
        proposer = self._proposer
        if proposer is None:
            what, fix = f"bundle {self.version}", "run `seminar build-index` and serve the bundle it makes"
            raise ArtifactError(explain(what, got="no item index", expected="one", fix=fix))
        # faiss's limit is one of the calling thread.
        faiss_module("an item index").omp_set_num_threads(1)
        if wish.text is None:
            return proposer.propose(wish.past, wish.query, wish.count)
        unseen_Xd = proposer.query_vectors(self._text_encoder.encode([wish.text]))
        return proposer.propose(wish.past, len(proposer.units.query_unit), wish.count, unseen_Xd)

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        return open_text_encoder(self._encoder_name)

    def _try_out(self, items: int) -> None:
        # A first request pays for compiled kernels, and a tower that diverged loads without complaint.
        assert self._proposer is not None
        what = f"item index of bundle {self.version}"
        if self._proposer.index.num_items != items:
            got, fix = f"{self._proposer.index.num_items} items", "assemble the bundle again"
            raise VersionMismatch(explain(what, got=got, expected=f"the bundle's {items}", fix=fix))
        rows = np.resize(np.arange(min(items, 64)), self._proposer.config.window)
        for past in (Past(rows, np.full(len(rows), NONE), np.arange(len(rows))), Past(rows[:0], rows[:0], rows[:0])):
            found = self.propose(Wish(past, NONE, None, min(items, 200)))
            score = found.score_C[~np.isnan(found.score_C)]
            if not len(score) or not np.isfinite(score).all():
                fix = "roll back to the bundle before it"
                raise ArtifactError(explain(what, got="nothing that is near a user", expected="candidates", fix=fix))


def published(folder: Path) -> Artifact:
    """The bundle in a folder; ArtifactError if there is none."""
    if not (folder / "manifest.json").is_file():
        what, fix = f"bundle {folder}", "check the path"
        raise ArtifactError(explain(what, got="no manifest.json", expected="a published bundle", fix=fix))
    return Artifact.at(folder)


def has_index(bundle: Artifact) -> bool:
    """Whether a bundle says what to rank; as `Bundle.proposes`, without loading it."""
    return "index" in bundle.manifest.inputs
