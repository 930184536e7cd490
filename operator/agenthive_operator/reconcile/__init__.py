"""Keyed queue, cache, the two reconcilers, and the conditions they write."""
