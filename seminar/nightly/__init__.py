"""The pure half of the nightly refresh: ledger and lock, gates, drift, pointers, the night's report."""
