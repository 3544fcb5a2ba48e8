"""Inference on this machine: engines, and the node process that hosts one. Knows nothing of the router."""
