"""Examples of the documentation, beside those of requests that stand with their models: one of every answer, as data."""

from typing import Any

_MS = 1_700_000_000_000
_ANSWER: dict[str, Any] = {
    "bundle_version": "3b7bce0e94a8",
    "user_id": "1738",
    "known_user": True,
    "task": "ctr",
    "time_ms": _MS,
    "history_length": 812,
    "history_used": 810,
    "retriever": "int8",
    "retriever_reason": "packed keys of this history are kept",
}
_TIMINGS = {"history": 0.4, "retrieve": 1.2, "rank": 1.6, "total": 3.4}
_CHANNELS = {"query": 0.0, "text": 0.3, "image": 0.0, "attributes": 0.7}
_BEHAVIOUR = {"item_id": "995242", "text": "fluid milk white only 1 gal", "query": None, "time_ms": _MS - 86_400_000}
_PROBLEM = {
    "what": "targets[0].item_id",
    "got": "'nothing'",
    "expected": "an id that the bundle knows",
    "fix": "score items of the catalogue, or send its content as `item`",
}
ERROR: dict[str, Any] = {"errors": [_PROBLEM], "omitted": 0}
SCORE: dict[str, Any] = {**_ANSWER, "scores": [0.71, 0.08], "timings_ms": _TIMINGS, "explanation": None}
BATCH: dict[str, Any] = {
    "bundle_version": "3b7bce0e94a8",
    "results": [{"status": 200, "response": SCORE, "error": None}, {"status": 422, "response": None, "error": ERROR}],
}
RECOMMEND: dict[str, Any] = {
    **_ANSWER,
    "items": [
        {
            "item_id": "995242",
            "text": "fluid milk white only 1 gal",
            "score": 0.71,
            "sources": ["history", "retrieved"],
            "retrieval_score": 3.2,
            "because": [{**_BEHAVIOUR, "attention": 0.4}],
        }
    ],
    "candidates": 200,
    "by_source": {"history": 35, "query": 0, "retrieved": 196},
    "timings_ms": {**_TIMINGS, "propose": 7.0},
}
EXPLAIN: dict[str, Any] = {
    **_ANSWER,
    "target": {"item_id": "1082185", "text": "bananas", "category": "TROPICAL FRUIT", "query_id": None, "query": None},
    "score": 0.71,
    "top_k": 1,
    "heads": 2,
    "gate": _CHANNELS,
    "kept": [
        {
            **_BEHAVIOUR,
            "position": 809,
            "category": "FLUID MILK PRODUCTS",
            "query_id": None,
            "relevance": 1.0,
            "channels": _CHANNELS,
            "attention_H": [1.0, 1.0],
        }
    ],
    "recall": 1.0,
    "next_best": 0.9,
    "history": {
        "position": [809],
        "item_id": ["995242"],
        "text": ["fluid milk white only 1 gal"],
        "category": ["FLUID MILK PRODUCTS"],
        "query_id": [None],
        "query": [None],
        "time_ms": [_MS - 86_400_000],
        "request": [120],
        "relevance": [1.0],
    },
    "timings_ms": {**_TIMINGS, "exact": 2.0},
}
EVENTS: dict[str, Any] = {
    "user_id": "1738",
    "accepted": 1,
    "duplicates": 0,
    "history_length": 813,
    "unknown_items": 0,
    "bundle_version": "3b7bce0e94a8",
}
HISTORY: dict[str, Any] = {
    "user_id": "1738",
    "length": 813,
    "behaviours": [{**_BEHAVIOUR, "category": "FLUID MILK PRODUCTS", "query_id": None, "request": 120, "in_bundle": True}],
    "bundle_version": "3b7bce0e94a8",
}
USERS: dict[str, Any] = {"users": [{"user_id": "1738", "length": 813, "newest_ms": _MS}], "total": 2469}
ITEMS: dict[str, Any] = {
    "items": [{"item_id": "1082185", "text": "bananas", "category": "TROPICAL FRUIT"}],
    "bundle_version": "3b7bce0e94a8",
}
QUERIES: dict[str, Any] = {"queries": [{"query_id": "cheeses", "text": "cheeses"}], "bundle_version": "3b7bce0e94a8"}
BUNDLES: dict[str, Any] = {
    "current": "3b7bce0e94a8",
    "bundles": [{"version": "3b7bce0e94a8", "created": "2026-11-22T10:00:00+00:00", "in_use": True}],
}
BUNDLE: dict[str, Any] = {
    "version": "3b7bce0e94a8",
    "checksum": "5d1c",
    "created": "2026-11-22T10:00:00+00:00",
    "psu_fingerprint": "8a0f",
    "inputs": {"model": "1ee5a558d5d0", "codebooks": "c83de2d1a07f", "pairs": "0a41", "vectors": "77b2"},
    "retriever": "auto",
    "overfetch": None,
    "topology": "fused",
    "text_encoder": "wordllama",
    "items": 79461,
    "queries": 300,
    "top_k": 50,
    "recommends": True,
    "users": 2469,
    "loading": None,
    "refused": None,
    "replicas": [
        {
            "deployment": "Ingress",
            "replica": "seminar#Ingress#abc",
            "pid": 4711,
            "bundle_version": "3b7bce0e94a8",
            "loading": None,
            "refused": None,
        }
    ],
}
HEALTH: dict[str, Any] = {"status": "ready", "bundle_version": "3b7bce0e94a8"}
SERVER: dict[str, Any] = {"name": "seminar", "version": "1", "extensions": []}
MODEL: dict[str, Any] = {
    "name": "seminar",
    "versions": ["3b7bce0e94a8"],
    "platform": "seminar_ray",
    "inputs": [{"name": "user_id", "datatype": "BYTES", "shape": [1]}, {"name": "item_id", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1]}],
}
