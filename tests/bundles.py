"""A real bundle of the tiny dataset, made in this process without Ray or training: random weights, real vectors, codes, index."""

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from seminar.artifacts import Artifact, Store
from seminar.bundle import assemble
from seminar.candidates.index import ItemIndex
from seminar.candidates.mmsrec import MMSRec
from seminar.candidates.proposer import Proposer, QueryItems
from seminar.candidates.tower import item_vectors
from seminar.channels import ChannelEncoder, VectorTables, encoders_of, unit_tables
from seminar.codes.codebook import CatalogueCodes, Stamp, encode_block, save_codes
from seminar.codes.codebook_fit import fit
from seminar.config import CodebookConfig, EmbedConfig, IndexConfig, ModelConfig, RetrieverConfig
from seminar.embedding.vectors import contents_for, describe, embed_locally
from seminar.ranker import Ranker, load_ranker
from seminar.schema import ATTRIBUTES, IMAGE, NONE, QUERY, TEXT
from seminar.sequences import read_histories
from seminar.train.retriever import load_retriever

MODEL = ModelConfig(dim=16, num_heads=4, id_dim=8, num_token_rows=64, top_k=5, recent=4, hidden=(32, 16), dropout=0.0)
RETRIEVER = RetrieverConfig(dim=16, num_layers=1, num_heads=2, num_token_rows=64, window=16, dropout=0.0)
CODEBOOKS = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=3, rotation="none")


def make_vectors(store: Store, pairs: Artifact, embed: EmbedConfig | None = None) -> Artifact:
    """A published `vectors` artefact of these pairs."""
    embed = embed or EmbedConfig(image_encoder="none")
    items, queries = (pq.read_table(pairs.file(f"{name}.parquet")) for name in ("items", "queries"))
    config = describe(embed, contents_for(items, queries, embed, None), pairs)
    draft = store.draft("vectors", {"pairs": pairs}, config)
    vectors = embed_locally(items, queries, embed)
    vectors.save(draft.path)
    return store.publish(draft, vectors.metrics)


def make_bundle(
    store: Store,
    pairs: Artifact,
    vectors: Artifact,
    index: Artifact | None = None,
    *,
    seed: int = 0,
    current: bool = True,
    config: ModelConfig = MODEL,
) -> Artifact:
    """A published bundle whose model is drawn from `seed`; bundles of other seeds score differently."""
    model = make_model(store, pairs, vectors, seed, config)
    return assemble(store, model, make_codebooks(store, model, vectors), pairs, vectors, index, current=current)


def make_model(store: Store, pairs: Artifact, vectors: Artifact, seed: int = 0, config: ModelConfig = MODEL) -> Artifact:
    """A ranker moved away from its initialisation, so that no term of a score is zero by accident."""
    generator = torch.Generator().manual_seed(seed)
    ranker = Ranker.build(config, VectorTables.load(vectors), generator)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    draft = store.draft(
        "model",
        {"pairs": pairs, "vectors": vectors},
        {"model": config.model_dump(mode="json"), "seed": seed, "encoders": encoders_of(vectors)},
    )
    save_file({name: value.contiguous() for name, value in ranker.state_dict().items()}, draft.path / "model.safetensors")
    return store.publish(draft)


def make_codebooks(store: Store, model: Artifact, vectors: Artifact, config: CodebookConfig = CODEBOOKS) -> Artifact:
    """Codebooks and codes of this model's unit vectors."""
    encoder = load_ranker(model, vectors).channels
    assert isinstance(encoder, ChannelEncoder)
    units, inputs = unit_tables(encoder), {"model": model, "vectors": vectors}
    version = store.version_of("codebooks", inputs, config.model_dump())
    stamp = Stamp(version, encoder.fingerprint())
    item_unit, item_present = units.item_unit.numpy(), units.item_present.numpy()
    query_unit, query_present = units.query_unit.numpy(), units.query_present.numpy()
    samples = [query_unit[query_present], *(item_unit[item_present[:, c], c] for c in range(3))]
    codebooks, _ = fit(samples, config, stamp)
    item_codes, _ = encode_block(codebooks, (TEXT, IMAGE, ATTRIBUTES), item_unit, item_present)
    query_codes, _ = encode_block(codebooks, (QUERY,), query_unit[:, None], query_present[:, None])
    codes = CatalogueCodes(item_codes, query_codes[:, 0], item_present, query_present, stamp)
    draft = store.draft("codebooks", inputs, config.model_dump() | {"psu_fingerprint": stamp.psu_fingerprint}, version)
    save_codes(draft.path / "codebooks.safetensors", codebooks, codes)
    return store.publish(draft)


def make_retriever(
    store: Store, pairs: Artifact, vectors: Artifact, seed: int = 0, config: RetrieverConfig = RETRIEVER, *, current: bool = True
) -> Artifact:
    """A published dual tower with weights drawn from `seed`."""
    tower = MMSRec(config, VectorTables.load(vectors), torch.Generator().manual_seed(seed))
    recorded = {"retriever": config.model_dump(mode="json"), "seed": seed, "encoders": encoders_of(vectors)}
    draft = store.draft("retriever", {"pairs": pairs, "vectors": vectors}, recorded)
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, draft.path / "retriever.safetensors")
    return store.publish(draft, current=current)


def make_index(
    store: Store,
    retriever: Artifact,
    vectors: Artifact,
    pairs: Artifact,
    config: IndexConfig | None = None,
    *,
    current: bool = True,
) -> Artifact:
    """A published index of this tower's item vectors, with what training took under each query."""
    config = config or IndexConfig()
    draft = store.draft("index", {"retriever": retriever, "vectors": vectors, "pairs": pairs}, config.model_dump(mode="json"))
    tower = load_retriever(retriever, vectors)
    assert isinstance(tower, MMSRec)
    index = ItemIndex.build(item_vectors(tower), config)
    Proposer.of(tower, index, _query_items(pairs, config.query_items)).save(draft.path)
    return store.publish(draft, {"items": index.num_items, "kind": index.kind}, current=current)


def _query_items(pairs: Artifact, most: int) -> QueryItems:
    taken = []
    for name in sorted(name for name in pairs.manifest.files if name.startswith("shards/")):
        shard = read_histories(pq.read_table(pairs.file(name)))
        inside = np.arange(len(shard.item)) - np.repeat(shard.offsets[:-1], shard.lengths)
        kept = (shard.query != NONE) & (inside < np.repeat(shard.train_end, shard.lengths))
        taken.append(np.stack([shard.query[kept], shard.item[kept]]).astype(np.int64))
    (query, item), count = np.unique(np.concatenate(taken, 1), axis=1, return_counts=True)
    num_queries = pq.read_metadata(pairs.file("queries.parquet")).num_rows
    return QueryItems.count(query, item, count, num_queries, most)
