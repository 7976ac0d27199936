"""User histories that outlive any bundle: one protocol, a store on a node's disk (LMDB) and one on a server (Redis, Valkey)."""
