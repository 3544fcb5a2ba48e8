"""The documents say what the program does: every knob is explained, the README's example runs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from engines import specs
from router.config import schema

ROOT = Path(__file__).parent.parent
PARTS = [
    schema.Server, schema.Key, schema.Provider, schema.Target, schema.Model, schema.Timeouts, schema.Retry,
    schema.Health, schema.Config, specs.LlamaCppSpec, specs.SimulatedSpec, specs.ExLlamaV2Spec,
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_knob_is_explained(part):
    text = (ROOT / "docs/config.md").read_text()
    missing = [
        field.encode_name
        for field in msgspec.structs.fields(part)
        if f"`{field.encode_name}`" not in text and f"## {field.encode_name}\n" not in text
        and f"{{{field.encode_name}" not in text and f"{field.encode_name}}}" not in text
    ]  # fmt: skip
    assert not missing


def test_links_between_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"
