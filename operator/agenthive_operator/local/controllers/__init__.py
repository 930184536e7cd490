"""The controllers a cluster would have, as plain API clients.

Each module keeps its decisions in pure functions over plain objects and its requests in one small class.
"""
