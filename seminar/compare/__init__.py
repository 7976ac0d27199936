"""Many models on one protocol: which runs a comparison needs, one run from settings to scored rows, and what a score costs."""
