"""Measurements: what the router costs, and what its decisions are worth. Nothing here is needed to serve."""
