"""Pure functions from a resource and what was observed to the objects that should exist."""
