"""Candidate generation: what of the whole catalogue is worth ranking for a user."""
