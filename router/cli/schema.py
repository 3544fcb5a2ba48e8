"""`nenya schema`: the JSON Schema of a config, on standard output."""

from __future__ import annotations

import argparse
import json

from router.cli import OK
from router.config.jsonschema import config_schema


def run(_: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(config_schema(), indent=2))
    return OK
