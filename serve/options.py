"""Arguments of `serve.app:build`: what stands under `args` in the YAML."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seminar.artifacts import Store
from seminar.bundle import Bundle
from seminar.errors import ArtifactError, ConfigError, explain
from seminar.history.opening import open_histories
from seminar.history.store import Durability, HistoryStore
from seminar.history_search import key_space
from seminar.retrieval.key_store import open_shared
from seminar.schema import CTR, NONE
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from serve.access import read_token
from serve.explain import rank_found
from serve.problems import problems_of
from serve.proposing import BundleProposer, published


class Options(BaseModel):
    """Everything fixed for the life of a deployment; the bundle is not: it is `user_config`, so that it can be swapped."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    workdir: str
    """Root of all artefacts, readable on every node."""
    history: str | None = None
    """LMDB folder, on a disk of the node; none: <workdir>/history."""
    history_url: str | None = Field(None, pattern=r"^(redis|rediss|unix)://")
    """Histories on a Redis or Valkey server instead; `ServeConfig` says more."""
    history_durability: Durability = "always"
    history_replicas: int = Field(0, ge=0, le=16)
    history_timeout_s: float = Field(5.0, gt=0, le=60)
    topology: Literal["fused", "split"] = "fused"
    retriever: Literal["auto", "exact", "merged", "int8", "pq"] = "auto"
    overfetch: float | None = Field(None, ge=1, le=64)
    keep_keys: bool = True
    """Keep packed keys of users; they are as safe to delete as any cache."""
    keys: str | None = None
    """Folder of packed keys, on a disk of the node; none: <workdir>/keys."""
    max_keys_gib: float = Field(64.0, gt=0)
    user_cache_mib: int = Field(512, ge=0)
    """Memory of a replica for histories kept between requests, some 400 bytes a behaviour."""
    max_targets: int = Field(1000, gt=0)
    max_events: int = Field(10_000, gt=0)
    recommend: bool = True
    """POST /v1/recommend: the application has a deployment Proposer."""
    max_history_gib: float = Field(64.0, gt=0)
    recall_sample: int = Field(100, ge=0)
    """One in so many approximate searches of a history is repeated exactly, off the request's path; 0: none."""
    drift_window: int = Field(50_000, ge=100)
    """Scores a task that are compared with as many of the past."""
    log_slow_ms: float = Field(1000, gt=0)
    """Requests at least this slow have a line in the log; so have all that are refused or fail."""
    log_sample: int = Field(1000, ge=0)
    """One in so many other requests has a line too; 0: none."""
    log_raw_users: bool = False
    """Log ids of users instead of digests."""
    token_file: str | None = None
    """File with the bearer token that requests must carry, readable on every node; none: environment SEMINAR_TOKEN."""
    insecure: bool = False
    """Start without a token though others than this machine can reach the port."""
    import_histories: bool = True
    """Load what the bundle's `pairs` artefact holds and the store does not: everything the first time, then what a later night
    brought. Turn it off where every behaviour comes through POST /v1/events."""

    @classmethod
    def parse(cls, args: dict[str, Any]) -> "Options":
        """Options from YAML; ConfigError in one sentence."""
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            problems = problems_of(error.errors(), known=cls.model_fields)
            sentences = (explain(f"args.{p.what}", got=p.got, expected=p.expected, fix=p.fix) for p in problems)
            raise ConfigError("; ".join(sentences)) from None

    def token(self) -> str | None:
        """The bearer token; ConfigError if its file cannot be read."""
        return read_token(self.token_file)

    def bundle_folder(self, reference: str) -> Path:
        """Folder of a bundle named by version, by "current" or by path."""
        return Path(reference) if "/" in reference else Store(self.workdir).open("bundle", reference).path

    def load_scorer(self, folder: Path) -> TwoStageScorer:
        """Load, check and warm up a bundle; ArtifactError or VersionMismatch if it must not be served."""
        bundle = Bundle.load(folder)
        keys = Path(self.keys or Path(self.workdir) / "keys")
        store = open_shared(keys, key_space(bundle), bundle.version, self.max_keys_gib) if self.keep_keys else None
        scorer = TwoStageScorer(bundle, self.retriever, self.overfetch, store)
        _try_out(scorer)
        return scorer

    def load_proposer(self, folder: Path) -> BundleProposer:
        """Load, check and warm up what a bundle proposes with, without its scorer; ArtifactError or VersionMismatch."""
        return BundleProposer(published(folder))

    @model_validator(mode="after")
    def _one_place(self) -> "Options":
        if self.history is not None and self.history_url is not None:
            raise ValueError("history or history_url, not both")
        return self

    def open_history(self) -> HistoryStore:
        """The store of histories; StoreUnavailable if it is on a server that is away or not set up to keep them."""
        return open_histories(self, Path(self.history or Path(self.workdir) / "history"))


def _try_out(scorer: TwoStageScorer) -> None:
    # A first request pays for compiled kernels, and a model that diverged loads without complaint.
    rows = np.arange(min(len(scorer.bundle.item_ids), 64))
    length = 64 + 4 * scorer.bundle.config.top_k
    history = ScoringHistory(np.resize(rows, length), np.full(length, NONE), np.full(length, 1_600_000_000_000))
    targets = Targets(rows, np.full(len(rows), NONE), CTR, 1_600_000_000_000)
    # Reasons are torch's, scores alone the compiled scorer's: both are tried, and reasons of what the latter kept.
    scores = [scorer.score(history, targets, explain=explain).probability_T for explain in (True, False)]
    history = scorer.ready(history)
    found = scorer.find(history, targets)
    if found is not None:
        scores.append(rank_found(scorer, history, targets, found, explain_top=3).probability_T)
    if not np.isfinite(scores).all():
        what = f"scores of bundle {scorer.bundle.version}"
        raise ArtifactError(explain(what, got="not a number", expected="probabilities", fix="roll back to the bundle before it"))


def bundle_reference(user_config: Any) -> str:
    """The `bundle` of a deployment's user_config; ConfigError for anything else."""
    if isinstance(user_config, dict) and list(user_config) == ["bundle"] and isinstance(user_config["bundle"], str):
        return user_config["bundle"]
    raise ConfigError(
        explain("user_config", got=repr(user_config), expected='{"bundle": version, path or "current"}', fix="name the bundle")
    )
