"""Every setting of the system, its bounds and its one default. A TOML file holds only what differs."""

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seminar.errors import ConfigError, explain


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with what differs in `extra`, section by section; a key may name its sections (`"finetune.steps"`)."""
    result = dict(base)
    for name, value in extra.items():
        key, _, rest = name.partition(".")
        value = {rest: value} if rest else value
        inside = isinstance(value, dict) and (rest or isinstance(result.get(key), dict))
        result[key] = merged(result.get(key, {}), value) if inside else value
    return result


class DataConfig(_Section):
    """Where the logs come from."""

    source: Literal["tables", "complete_journey", "kuaisar", "amazon", "jdsearch", "taobao_mm"] = "tables"
    """Layout of the input; `tables` is the canonical one (`seminar check DIR`)."""
    path: Path | None = None
    """Folder of the dump; complete_journey comes from its installed package and needs none."""
    images: Path | None = None
    """Folder that the items' `image` column is relative to; none: the image channel is missing for every item."""
    query_setting: Literal["as_is", "none", "category_proxy"] = "as_is"
    """complete_journey only: it has no queries; `category_proxy` uses the category of purchases not on promotion."""
    max_users: int | None = Field(None, gt=0)
    """Keep a deterministic sample of this many users (by hash); none keeps all."""
    until: datetime | None = None
    """Ignore events at or after this UTC time; how a past day is replayed."""
    exposures_per_request: int = Field(8, ge=0, le=1000)
    """complete_journey only: promoted products not bought, sampled per basket as label-0 rows."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.source == "complete_journey":
            if self.query_setting == "as_is":
                raise ValueError("complete_journey has no queries: set query_setting to 'none' or 'category_proxy'")
        elif self.path is None:
            raise ValueError(f"source {self.source!r} needs data.path, the folder that holds the dump")
        return self


class PrepareConfig(_Section):
    """Events to chunked pair sequences."""

    num_shards: int = Field(8, gt=0, le=100_000)
    """Files the users are spread over by a stable hash; a shard must fit in one worker's memory."""
    chunk_length: int = Field(512, gt=0, le=100_000)
    """Behaviours a chunk."""
    max_history: int = Field(100_000, gt=0, le=1_000_000)
    """Newest behaviours kept a user; older ones are counted as trimmed."""
    holdout: Literal["last_request", "time"] = "last_request"
    """last_request: a user's last request is test, the one before validation. time: everything from `test_from` on is test."""
    test_from: datetime | None = None
    """UTC; needed by holdout = 'time'. Validation is the last request before it."""

    @model_validator(mode="after")
    def _consistent(self) -> "PrepareConfig":
        if (self.holdout == "time") != (self.test_from is not None):
            raise ValueError("holdout 'time' and test_from belong together: set both or neither")
        return self


class EmbedConfig(_Section):
    """Content encoders."""

    text_encoder: Literal["wordllama", "minilm", "none"] = "wordllama"
    """wordllama: static, 256-d, fast. minilm: 384-d transformer, extra `minilm`."""
    image_encoder: Literal["efficientnet_lite0", "none"] = "efficientnet_lite0"
    batch_size: int = Field(64, gt=0)


Kind = Literal["seminar", "din", "sim_hard", "sim_soft", "eta", "sdim", "twin", "qin", "muse"]
"""Models that can be trained; see docs/models.md."""
Channel = Literal["query", "text", "image", "attributes"]


class BaselineConfig(_Section):
    """What the models that stand beside SEMINAR have of their own; defaults are those of their papers where they say."""

    activation_width: int = Field(36, gt=0)
    """DIN: hidden width of the activation unit."""
    hash_bits: int = Field(256, gt=0, le=4096)
    """ETA: bits of a behaviour's SimHash signature."""
    sdim_hashes: int = Field(48, gt=0, le=1024)
    """SDIM: hash functions m; a multiple of sdim_width."""
    sdim_width: int = Field(3, gt=0, le=16)
    """SDIM: hash functions tau that must agree for a behaviour to share the target's bucket."""
    auxiliary_weight: float = Field(1.0, ge=0)
    """SIM-soft: weight of the search unit's own click loss."""
    query_top_k: int = Field(200, gt=0)
    """QIN: behaviours kept for the query (K1), of which top_k are kept for the target (K2)."""

    @model_validator(mode="after")
    def _consistent(self) -> "BaselineConfig":
        if self.sdim_hashes % self.sdim_width:
            raise ValueError(f"sdim_hashes ({self.sdim_hashes}) must be a multiple of sdim_width ({self.sdim_width})")
        return self


class ModelConfig(_Section):
    """Shapes and switches shared by all models and by PSU, GSU and ESU."""

    kind: Kind = "seminar"
    """Which model is trained; all kinds share channels, features, heads, data and protocol. Only `seminar` is served."""
    channels: tuple[Channel, ...] = ("query", "text", "image", "attributes")
    """Channels in use; the others are missing for every pair. `attributes` holds the item ID."""
    cross_features: bool = True
    """Counts and recency of the target's item and category in the whole history, as features of the head."""
    trend_features: bool = True
    """The item's popularity as of the request, in the weeks before it, as features of the head."""
    query_fit: bool = False
    """Cosines of the target's query with its item's text, image and attributes, as features of the head: whether it is an answer.
    Worth something where candidates are not all answers (`finetune.negatives_beside_query`)."""
    learn_transform: bool = True
    """Learn one G_j a channel; false keeps the identity."""
    baseline: BaselineConfig = BaselineConfig()
    dim: int = Field(64, ge=8, le=1024)
    """Width d of every channel."""
    num_heads: int = Field(4, gt=0, le=64)
    id_dim: int = Field(32, gt=0, le=1024)
    """Width of ID and attribute-token embeddings before projection."""
    num_token_rows: int = Field(1 << 15, gt=0)
    """Rows of the hashed attribute-token table (items' and users' attributes)."""
    gate: Literal["constant", "target", "behaviour"] = "constant"
    """What the channel gate gamma depends on."""
    top_k: int = Field(50, gt=0, le=10_000)
    """Behaviours the GSU keeps."""
    recent: int = Field(20, ge=0, le=1000)
    """Newest behaviours in the short recent-sequence branch."""
    taste: int = Field(512, ge=0, le=100_000)
    """Newest behaviours pooled into the user's general taste (SEMINAR only); 0 turns it off."""
    simtier: bool = True
    """SimTier histograms of target-behaviour similarity (MUSE)."""
    simtier_bins: int = Field(16, ge=2, le=256)
    semantic_attention: bool = True
    """Semantic-aware attention in the ESU (MUSE)."""
    time_buckets: int = Field(16, ge=0, le=64)
    """Learned attention bias by log2 of the hours since the behaviour; 0 turns it off."""
    freeze_psu: bool = False
    """Keep the pretrained channel projections fixed while fine-tuning."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the scoring MLP."""
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.dim % self.num_heads:
            fits = [h for h in (1, 2, 4, 8, 16, 32) if self.dim % h == 0]
            raise ValueError(f"num_heads ({self.num_heads}) must divide dim ({self.dim}); try one of {fits}")
        return self


PSU_SHAPES = ("dim", "num_heads", "id_dim", "num_token_rows", "gate", "channels")
"""Settings of a model that its pretraining depends on."""


class TrainConfig(_Section):
    """What pretraining and fine-tuning share."""

    steps: int = Field(200, gt=0)
    """Optimiser steps."""
    lanes: int = Field(2, gt=0, le=1024)
    """Fixed data-parallel lanes: each reads its own shards and fills its part of every global batch, however many
    workers share the lanes. The loss curve therefore does not depend on the number of workers, which must divide this."""
    num_workers: int = Field(1, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the dense learning rate rises to its value; afterwards it falls linearly to zero at the last step."""
    sparse_learning_rate: float = Field(5e-2, gt=0)
    """Adagrad rate of the ID tables."""
    weight_decay: float = Field(1e-5, ge=0)
    max_history: int = Field(1000, gt=0, le=1_000_000)
    """Newest behaviours a training sample sees."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps; also the most that a killed worker can cost."""
    max_gradient_norm: float = Field(5.0, gt=0)
    """Dense gradients are scaled down to this global norm."""
    max_failures: int = Field(2, ge=0)
    """Times a job restarts after losing a worker."""
    seed: int = 0
    log_every: int = Field(20, gt=0)

    @model_validator(mode="after")
    def _lanes(self) -> "TrainConfig":
        if self.lanes % self.num_workers:
            raise ValueError(
                f"num_workers ({self.num_workers}) must divide lanes ({self.lanes}); raise lanes or lower num_workers"
            )
        return self


class PretrainConfig(TrainConfig):
    """PSU pretraining: L = w_next L_next + w_align L_align + w_rel L_rel (SEMINAR, section on PSU)."""

    chunks_per_lane: int = Field(16, gt=0)
    """Sequence windows in one lane's part of the batch."""
    window: int = Field(256, gt=1)
    """Behaviours a window."""
    num_chunks: int = Field(4, gt=0)
    """Alignment chunks a window: cost O(window^2 / num_chunks)."""
    learning_rate: float = Field(1e-2, gt=0)
    sparse_learning_rate: float = Field(0.2, gt=0)
    """Adagrad rate of the ID tables: what is taken together is learned by them, and slower rates learn it late."""
    num_negatives: int = Field(1024, gt=0)
    """Most whole pairs of the lane's batch used as negatives of next-pair prediction."""
    w_next: float = Field(1.0, ge=0)
    w_align: float = Field(0.03, ge=0)
    w_rel: float = Field(0.03, ge=0)


class FinetuneConfig(TrainConfig):
    """CTR and PSR fine-tuning."""

    pretrained: bool | Literal["content"] = True
    """Start from the current PSU; content: from its projections of query, text and image alone, IDs and attribute tokens fresh
    (MUSE's paper); false: from scratch."""
    requests_per_lane: int = Field(16, gt=0)
    """Requests in one lane's part of the batch; all targets of a request share one encoded history."""
    positives_per_request: int = Field(8, gt=0)
    negatives_per_positive: int = Field(4, ge=0)
    """Sampled items of the positive's category outside the user's history; they carry the positive's query."""
    popularity_share: float = Field(0.0, ge=0, le=1)
    """Share of sampled negatives drawn in proportion to training counts; the rest is uniform in the category."""
    negatives_beside_query: float = Field(0.0, ge=0, le=1)
    """Share of a positive's negatives, where it has a query, that lie outside its category, so that a model learns what is no
    answer: half of them behaviours of the user before the request, half by training counts. What proposes candidates makes
    such mistakes."""
    negatives_outside: Literal["request", "history"] = "request"
    """request: a negative is any item not taken in the same request. history: any item the user never took (in training)."""
    exposures_per_request: int = Field(8, ge=0)
    """Logged label-0 rows used at most."""
    newest_requests: int | None = Field(None, gt=0)
    """Train only on each user's newest this many requests."""
    min_history: int = Field(1, ge=0)
    """Behaviours before a request that is trained on."""
    distillation: float = Field(0.1, ge=0)
    """Weight of the loss that teaches GSU relevance the ESU's attention."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of a batch's items that are shown as new, without ID and popularity, so that content learns to speak for them."""
    channel_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a batch's pairs whose query, text or image is hidden, each by itself."""
    stochastic_length: float = Field(0.0, ge=0, le=16)
    """A batch sees max_history / 2^u behaviours, u uniform in [0, this]; 0 shows all of them."""
    quantised_search: bool = False
    """Search by merged keys rounded to 8 bits in training too, as they are when served (not under gate mode target)."""


class RetrieverConfig(_Section):
    """The dual tower that proposes candidates, and what it is made of."""

    kind: Literal["mmsrec", "sasrec", "two_tower"] = "mmsrec"
    """mmsrec: content alone, new items included. sasrec (IDs alone) and two_tower (both) stand beside it in evaluation."""
    modalities: tuple[Literal["text", "image", "attributes"], ...] = Field(("text", "image", "attributes"), min_length=1)
    """What an item is made of; an item has those of them that exist."""
    query: bool = True
    """Whether the query that a request comes with is shown to the user tower."""
    popularity: bool = True
    """Add the log of an item's share of all behaviours to its score."""
    dim: int = Field(64, ge=8, le=1024)
    num_layers: int = Field(2, gt=0, le=24)
    num_heads: int = Field(4, gt=0, le=64)
    num_token_rows: int = Field(1 << 15, gt=0)
    """Rows of the hashed attribute-token table."""
    window: int = Field(128, gt=1, le=4096)
    """Behaviours of a training window. When asked for what comes next the user tower reads one less: the newest window - 1."""
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def channel_shapes(self) -> ModelConfig:
        """The same as a channel encoder reads it."""
        channels: tuple[Channel, ...] = ("query", *self.modalities)
        return ModelConfig(
            channels=channels, dim=self.dim, num_heads=self.num_heads, id_dim=self.dim, num_token_rows=self.num_token_rows
        )

    @model_validator(mode="after")
    def _consistent(self) -> "RetrieverConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"retriever.num_heads ({self.num_heads}) must divide retriever.dim ({self.dim})")
        return self


class PretrainRetrieverConfig(TrainConfig):
    """Alignment of every two combinations of an item's modalities (MMSRec, pretraining)."""

    windows_per_lane: int = Field(16, gt=0)
    """Sequence windows in one lane's part of the batch; their distinct items are aligned."""


class TrainRetrieverConfig(TrainConfig):
    """Masked-item prediction over the whole catalogue by sampled softmax."""

    pretrained: bool = True
    """Start from the current pretrained towers; false trains from scratch. mmsrec only: the others have no pretraining."""
    start: Path | None = None
    """Start from this folder instead: `towers` or a `retriever` of another data set (transfer). Content must come from the same
    encoders; what the two do not share in shape starts fresh."""
    windows_per_lane: int = Field(16, gt=0)
    uniform_negatives: int = Field(512, ge=0)
    """Items of the whole catalogue, drawn uniformly, that compete beside those of the batch."""
    query_dropout: float = Field(0.3, ge=0, le=1)
    """Share of questions that are asked without their query, so that one model serves search and recommendation."""


class IndexConfig(_Section):
    """The index of item vectors that candidates are looked up in."""

    kind: Literal["auto", "flat", "hnsw", "ivf_pq"] = "auto"
    """auto: flat (exact) up to 50,000 items, hnsw up to 5 million, ivf_pq beyond, which keeps an item in `code_bytes`."""
    neighbours: int = Field(32, ge=4, le=128)
    """hnsw: links an item."""
    build_effort: int = Field(200, ge=8, le=2048)
    """hnsw: candidates looked at for each item while building."""
    effort: int = Field(512, ge=1, le=65_536)
    """hnsw: candidates looked at for each search; ivf_pq: cells, of 4 sqrt(items)."""
    code_bytes: int = Field(32, ge=1, le=256)
    """ivf_pq: bytes an item."""
    query_items: int = Field(50, ge=0, le=1000)
    """Most items kept for each query: those taken under it most often, proposed where the query comes again."""
    probe_users: int = Field(500, gt=0)
    """Users whose newest vector the index is tested with against exact search."""


class EvaluateRetrieverConfig(_Section):
    """How candidates are judged; `evaluate.split` and `evaluate.seed` apply too."""

    neighbours: int = Field(200, ge=0, le=10_000)
    """Nearest items that the item-kNN baseline keeps for each; 0 leaves it out (training behaviours must fit in one memory)."""
    shrinkage: float = Field(10.0, ge=0)
    """Users added to the denominator of item-kNN's cosine, so that two items that one user took are not taken for twins."""
    candidates: int = Field(200, gt=0, le=10_000)
    """Items that a first stage hands to the ranker."""
    ranked_users: int = Field(500, ge=0)
    """Users whose candidates the current model ranks; 0 leaves the second stage out."""


class CodebookConfig(_Section):
    """Multi-modal product quantisation."""

    num_subquantizers: int = Field(16, gt=0)
    """B, codes of one byte a channel."""
    num_centroids: int = Field(256, gt=1, le=256)
    """C; one byte holds a code. 16 makes 4-bit codes, packed two a byte where histories are scored."""
    rotation: Literal["none", "opq"] = "opq"
    """opq: learn an orthogonal rotation of each channel that suits its sub-spaces. A warm start keeps the rotation it finds."""
    trainer: Literal["exact", "faiss"] = "exact"
    """exact: the same bits for any number of shards. faiss: its k-means, on all GPUs where it sees any; not bitwise reproducible.
    A warm start is always exact."""
    sample_items: int = Field(65_536, gt=0)
    """Most training vectors a channel."""
    iterations: int = Field(15, gt=0)
    """Most updates of the centroids; with rotation = opq as many rounds before them."""
    warm_gain: float = Field(0.01, ge=0, lt=1)
    """After a warm start a centroid moves only if that lowers its cluster's error by more than this share: codes stay as they are
    where the catalogue did."""
    num_shards: int = Field(4, gt=0)
    """Pieces the statistics are gathered over; the result does not depend on it."""
    seed: int = 0


class EvaluateConfig(_Section):
    """Offline evaluation."""

    split: Literal["test", "validation"] = "test"
    negatives: Literal["same_category", "uniform", "popularity"] = "same_category"
    num_negatives: int = Field(99, gt=0)
    exclude: Literal["request", "history"] = "request"
    """request: negatives outside the held-out request only, so that items taken before compete too. history: negatives the user
    never took, before or after; then "was it taken before" alone ranks every repeat first."""
    one_per_user: bool = True
    """One held-out pair a user, drawn by `seed`; false evaluates every held-out pair."""
    full_ranking_users: int = Field(200, ge=0)
    """Users for ranking the whole catalogue; 0 skips it."""
    seed: int = 7
    max_history: int = Field(100_000, gt=0)
    num_workers: int = Field(2, gt=0)

    @property
    def protocol(self) -> dict[str, Any]:
        """What figures depend on: everything but how many workers find them."""
        return self.model_dump(mode="json", exclude={"num_workers"})


class ServeConfig(_Section):
    """The scoring service."""

    topology: Literal["fused", "split"] = "fused"
    ingress: Literal["haproxy", "proxy"] = "haproxy"
    """How HTTP reaches the replicas: HAProxy with Serve's throughput settings, or Serve's own proxy, which is five to nine times
    slower. For the Ray that `seminar serve` starts; an existing cluster has what its environment says (docs/service.md)."""
    retriever: Literal["auto", "exact", "merged", "int8", "pq"] = "auto"
    """How the GSU searches a history; auto chooses by request. exact and merged are exact; int8 and pq re-score candidates, which
    loses nothing measurable on real histories (docs/retrieval.md)."""
    overfetch: float | None = Field(None, ge=1, le=64)
    """Candidates a kept behaviour that are re-scored exactly; none: the method's own, 1.5 for int8 and 4 for pq."""
    keep_keys: bool = True
    """Keep packed 8-bit keys of users, so that a request packs only what is new."""
    keys: Path | None = None
    """Folder of packed keys, on a local disk; none: <workdir>/keys. Those of the two newest bundles are kept."""
    max_keys_gib: float = Field(64.0, gt=0)
    """Size limit of one bundle's packed keys (address space, not memory)."""
    user_cache_mib: int = Field(512, ge=0)
    """Memory of a replica for histories kept between requests, 100 to 300 bytes a behaviour; the least recently used go first."""
    host: str = "127.0.0.1"
    port: int = Field(8000, gt=0, lt=65536)
    token_file: Path | None = None
    """File with the bearer token that every request must carry; none: environment SEMINAR_TOKEN, and without that no token."""
    insecure: bool = False
    """Start without a token though `host` is no loopback address, or gRPC is on, which listens on all of them."""
    grpc_port: int | None = Field(None, gt=0, lt=65536)
    """Port of the gRPC interface (docs/api.md); none: it is off."""
    max_targets: int = Field(1000, gt=0)
    max_events: int = Field(10_000, gt=0)
    """Behaviours accepted in one POST /v1/events."""
    recommend: bool = True
    """POST /v1/recommend, by a deployment of its own, where the bundle has an item index (`seminar build-index`)."""
    history: Path | None = None
    """LMDB folder, for a service on one node; none: <workdir>/history."""
    max_history_gib: float = Field(64.0, gt=0)
    """Size limit of the LMDB map (address space, not memory)."""
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
    trace_sample: float = Field(0, ge=0, le=1)
    """Share of requests whose spans are exported, where the client did not decide by its traceparent; 0: no tracing at all."""
    history_url: str | None = Field(None, pattern=r"^(redis|rediss|unix)://")
    """A Redis or Valkey server instead, for a service on several nodes: redis://host:port/db, rediss:// (TLS) or unix://. Its
    password better comes from the environment, SEMINAR_HISTORY_PASSWORD. Extra `redis`."""
    history_durability: Literal["always", "everysec", "server"] = "always"
    """What the server must be set up for, checked at every connection. always: a behaviour is on its disk before the answer.
    everysec: what the last second or two brought may be lost when its machine fails. server: not checked."""
    history_replicas: int = Field(0, ge=0, le=16)
    """Replicas of the server that must have received a behaviour before the answer."""
    history_timeout_s: float = Field(5.0, gt=0, le=60)
    """Of connecting to the server and of each of its answers; after it 503."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeConfig":
        if self.history is not None and self.history_url is not None:
            raise ValueError("history (a folder) and history_url (a server) are two places for one thing: set one of them")
        return self


class RefreshConfig(_Section):
    """The nightly refresh and its gates."""

    run_id: str | None = None
    """Name of the night; a rerun with the same name resumes. None: the date of `data.until`, else today."""
    min_recall: float = Field(0.98, ge=0, le=1)
    """Gate: recall@K of the new codes with re-scoring against exact retrieval."""
    max_score_change: float = Field(0.05, ge=0)
    """Gate: mean absolute difference between new quantised and exact scores (probabilities)."""
    min_index_recall: float = Field(0.95, ge=0, le=1)
    """Gate: recall@100 of the item index against exact search, where the bundle has one."""
    max_recall_drop: float = Field(0.02, ge=0, le=1)
    """Gate: how far recall may fall below that of the codebooks now in use."""
    max_coverage_drop: float = Field(0.02, ge=0, le=1)
    """Gate: how far the share of already known items with a text, image or attributes, or of known queries with a vector, may
    fall; the worst of the four."""
    max_quarantined: float = Field(0.05, ge=0, le=1)
    """Gate: share of the log's rows that were rejected."""
    max_rank_drop: float = Field(0.05, ge=0, le=1)
    """Gate: how far the mean reciprocal rank of held-out items may fall below that of the bundle in use."""
    probe_users: int = Field(100, gt=0)
    """Users whose real targets the gates use."""
    endpoint: str | None = None
    """Base URL of the running service, e.g. http://127.0.0.1:8000; none publishes without swapping."""
    dashboard: str | None = None
    """Ray dashboard URL that accepts the declarative Serve config, e.g. http://127.0.0.1:8265."""


class CompareConfig(_Section):
    """The grid of `seminar compare`: every model under every seed, after the same random search for each."""

    models: tuple[Kind, ...] = ("seminar", "din", "sim_hard", "sim_soft", "eta", "sdim", "twin", "qin", "muse")
    """The first is the one that all others are compared with."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Training seeds of the models; each has its own pretraining."""
    pretrained: tuple[Kind, ...] = ("seminar",)
    """Models that start from the whole PSU; those in neither list learn their channels from scratch."""
    pretrained_content: tuple[Kind, ...] = ("muse",)
    """Models that start from the PSU's content alone, as MUSE's paper does, IDs and attribute tokens fresh."""
    trials: int = Field(4, ge=0)
    """Draws of the random search, the same ones for every model; the best on validation is trained again under every seed.
    0 takes the settings as they are."""
    trial_steps: int | None = Field(None, gt=0)
    """Optimiser steps of a trial; none: those of a run."""
    search: dict[str, list[Any]] = {
        "finetune.learning_rate": [2e-3, 4e-3, 6e-3],
        "finetune.sparse_learning_rate": [0.02, 0.05, 0.1, 0.2],
        "model.dropout": [0.0, 0.1],
    }
    """Setting to the values that a trial draws from."""
    variants: dict[str, dict[str, Any]] = {}
    """Name to settings that differ: an ablation of the first model or, with `model.kind`, another model changed."""
    published: bool = False
    """Also train each model with the inputs of its paper: item ID and attributes (SEMINAR, QIN, MUSE: content too), no counts of
    the whole history, no trends; SEMINAR without what this code adds to it. Named `<model> / as published`."""
    variant_seeds: tuple[int, ...] | None = None
    """Training seeds of the variants, a part of `seeds`; none: the first."""
    lengths: tuple[int, ...] = ()
    """Histories cut to each of these many newest behaviours, in training and evaluation, for `length_models`."""
    length_models: tuple[Kind, ...] = ("seminar",)
    cost_lengths: tuple[int, ...] = (200, 1000, 4000)
    """History lengths at which the time of scoring 100 targets on one core is taken."""

    @model_validator(mode="after")
    def _consistent(self) -> "CompareConfig":
        for name, values in {"models": self.models, "seeds": self.seeds, **self.search}.items():
            if not values or len({str(value) for value in values}) < len(values):
                raise ValueError(f"{name} {list(values)} must name at least one, and each once")
        changed = {f"variant {name!r}": merged({}, change) for name, change in self.variants.items()}
        for name, change in {**changed, "search": merged({}, dict.fromkeys(self.search))}.items():
            if other := sorted(set(change) - {"model", "pretrain", "finetune"}):
                # Data and protocol are one for all runs, or figures could not stand side by side.
                raise ValueError(f"{name} changes {other[0]!r}, but runs may differ in model, pretrain and finetune alone")
        if not set(self.variant_seeds or ()) <= set(self.seeds):
            raise ValueError(f"variant_seeds {self.variant_seeds} must be among seeds {self.seeds}: variants are paired by seed")
        return self

    @property
    def paired_seeds(self) -> tuple[int, ...]:
        """Training seeds of the variants."""
        return self.variant_seeds or self.seeds[:1]


class RayConfig(_Section):
    """How jobs use the cluster."""

    address: str | None = None
    """None: the cluster named by RAY_ADDRESS, else one started for this process."""
    num_cpus: int | None = Field(None, gt=0)
    """CPUs of a Ray started for this process; none takes all."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class Settings(_Section):
    """The whole file; every section may be left out."""

    workdir: Path = Path("runs/default")
    """Root of all artefacts; on a cluster a path that every node can read and write."""
    data: DataConfig = DataConfig(source="complete_journey", query_setting="category_proxy")
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    codebooks: CodebookConfig = CodebookConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    pretrain_retriever: PretrainRetrieverConfig = PretrainRetrieverConfig()
    train_retriever: TrainRetrieverConfig = TrainRetrieverConfig()
    index: IndexConfig = IndexConfig()
    evaluate_retriever: EvaluateRetrieverConfig = EvaluateRetrieverConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    refresh: RefreshConfig = RefreshConfig()
    compare: CompareConfig = CompareConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.model.dim % self.codebooks.num_subquantizers:
            fits = [s for s in (2, 4, 8, 16, 32, 64) if self.model.dim % s == 0]
            raise ValueError(
                f"codebooks.num_subquantizers ({self.codebooks.num_subquantizers}) must divide "
                f"model.dim ({self.model.dim}); try one of {fits}"
            )
        return self


def load_settings(path: Path | str | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from a TOML file and nested overrides; every problem becomes one ConfigError sentence.

    Overrides are merged key by key, e.g. `{"data": {"max_users": 100}}`.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(
                explain(f"config {path}", got="no such file", expected="a TOML file", fix="check --config")
            ) from error
        except OSError as error:
            raise ConfigError(
                explain(f"config {path}", got=error.strerror, expected="a readable TOML file", fix="check --config")
            ) from error
        except UnicodeDecodeError as error:
            got = f"a byte that is not UTF-8 at position {error.start}"
            raise ConfigError(explain(f"config {path}", got=got, expected="TOML in UTF-8", fix="save it as UTF-8")) from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(explain(f"config {path}", got=str(error), expected="valid TOML", fix="mend that line")) from error
    return settings_of(merged(values, overrides or {}), f"config {path}" if path else "settings")


def settings_of(values: dict[str, Any], source: str = "settings") -> Settings:
    """Settings from nested values; ConfigError, naming `source`, for what is unknown, out of bounds or contradictory."""
    data = values.get("data")
    if isinstance(data, dict) and not {"source", "path"} & data.keys():
        # A section that only narrows the data (`--data.max_users 100`) narrows the default data.
        default = Settings.model_fields["data"].default
        values = values | {"data": {"source": default.source, "query_setting": default.query_setting, **data}}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(source, e) for e in error.errors())) from error


def _sentence(source: str, error: Any) -> str:
    import difflib

    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return explain(f"{source}: {where}", got="an unknown key", expected="a known one", fix=hint)
    if error["type"] == "value_error":  # our own rules: the message already says got, expected and fix
        return ": ".join(part for part in (source, where, error["msg"].removeprefix("Value error, ")) if part)
    expected = error["msg"].removeprefix("Input should be ")
    return explain(f"{source}: {where or 'settings'}", got=repr(error["input"])[:80], expected=expected, fix="mend that value")


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)
