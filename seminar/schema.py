"""Arrow schemas of every table that crosses a boundary, and the one vocabulary of channels and query origins.

Ids are strings everywhere: hashes above 2**53 and ids read as float lose digits silently, strings do not.
Inside prepared data an item or query is its row in the catalogue (int32), and -1 means "none".
"""

import pyarrow as pa

CHANNELS = ("query", "text", "image", "attributes")
"""The M+1 = 4 channels of a query-item pair, in the order of every [.., M, ..] tensor."""
NUM_CHANNELS = len(CHANNELS)
QUERY, TEXT, IMAGE, ATTRIBUTES = range(NUM_CHANNELS)

ORIGINS = ("none", "typed", "tag", "category_proxy")
"""Where a query came from; stored as int8 in this order. Figures of different origins are never pooled."""

TASKS = ("ctr", "psr")
"""Click-through rate (a target without a query) and personalised search ranking (a target with one)."""
CTR, PSR = range(len(TASKS))

NONE = -1
"""Index that stands for "no query", "no vector" or padding."""

MS_PER_WEEK = 7 * 24 * 3_600_000
"""Weeks are counted from the Unix epoch, a Thursday: week = time_ms // MS_PER_WEEK."""

_ids = pa.list_(pa.int32())

EVENTS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("query_id", pa.string()),
        pa.field("query_origin", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("label", pa.int8(), nullable=False),
    ]
)
"""One row an interaction or exposure. time_ms: Unix milliseconds, UTC. request_id: basket, session or result page whose rows
have no known inner order (null: rows of one user at one time form a request). label 1: interacted, becomes a behaviour;
label 0: shown and not taken, becomes a CTR/PSR negative, never a behaviour."""

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("category", pa.string()),
        pa.field("image", pa.string()),
        pa.field("attributes", pa.list_(pa.string())),
    ]
)
"""image: a path relative to the image folder. attributes: tokens `field=value`, any number, embedded by hash."""

QUERIES = pa.schema([pa.field("query_id", pa.string(), nullable=False), pa.field("text", pa.string())])

USERS = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("attributes", pa.list_(pa.string()))])

TABLES: dict[str, pa.Schema] = {"events": EVENTS, "items": ITEMS, "queries": QUERIES, "users": USERS}
OPTIONAL_TABLES = ("queries", "users")
"""Tables a dataset folder may leave out; optional columns are the nullable ones."""

QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)
"""Rejected rows. row: 0-based in the file. reason: a stable short phrase, counted in the report. content: the row as JSON."""

CATALOGUE_ITEMS = pa.schema(
    [
        *ITEMS,
        pa.field("has_metadata", pa.bool_(), nullable=False),
        pa.field("category_index", pa.int32(), nullable=False),
        pa.field("train_count", pa.int64(), nullable=False),
        pa.field("week", _ids, nullable=False),
        pa.field("week_count", _ids, nullable=False),
    ]
)
"""Row number = item index. category_index: -1 without a category. train_count: behaviours before every user's train_end;
week_count: the same by week, for the weeks that have any, ascending in `week`."""

CATALOGUE_QUERIES = pa.schema([*QUERIES, pa.field("train_count", pa.int64(), nullable=False)])

PAIRS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("user_attributes", pa.list_(pa.string())),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("history_length", pa.int32(), nullable=False),
        pa.field("train_end", pa.int32(), nullable=False),
        pa.field("val_end", pa.int32(), nullable=False),
        pa.field("item", _ids, nullable=False),
        pa.field("query", _ids, nullable=False),
        pa.field("origin", pa.list_(pa.int8()), nullable=False),
        pa.field("time_ms", pa.list_(pa.int64()), nullable=False),
        pa.field("request", _ids, nullable=False),
        pa.field("exposed_item", _ids, nullable=False),
        pa.field("exposed_query", _ids, nullable=False),
        pa.field("exposed_request", _ids, nullable=False),
    ]
)
"""One row a chunk of one user's time-ordered behaviours; rows sorted by (user_id, chunk); a user without behaviours has one
empty chunk. `request` numbers the user's requests 0, 1, ... and never decreases; all behaviours of one request share the history
that ends before its first row. Behaviours [0, train_end) are for training, requests in [train_end, val_end) for validation, the
rest for test (positions, always at request boundaries). exposed_*: label-0 rows, stored in the chunk that holds the first
behaviour of their request; exposures of requests without a behaviour are counted and dropped."""
