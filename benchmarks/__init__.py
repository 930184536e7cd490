"""Figures of what this costs, next to what others cost on the same machine in the same run."""
