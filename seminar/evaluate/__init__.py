"""Offline evaluation: what is ranked against what, tie-aware metrics, intervals, the report and its plots."""
