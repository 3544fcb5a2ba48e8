"""These tests need torch and ExLlamaV3; without them the contract's suite says that they are missing."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("torch", "exllamav3")):
    collect_ignore_glob = ["test_*.py"]
