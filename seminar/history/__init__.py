"""User histories that outlive any bundle: one protocol, an LMDB store."""
