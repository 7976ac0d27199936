"""Training without a cluster: lanes, sampling, one step, exact checkpoints."""
