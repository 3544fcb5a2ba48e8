"""The documents say what the program does: every knob is explained, the README's example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engines import specs
from router import recent, status
from router.config import schema
from router.policy.quota import Gauge
from router.wire.chat import ChatRequest

ROOT = Path(__file__).parent.parent
PARTS = [
    schema.Server, schema.Key, schema.Rates, schema.Tier, schema.Price,
    schema.Accounts, schema.Provider, schema.Target, schema.Model, schema.Timeouts, schema.Retry,
    schema.Recovery, schema.Health, schema.Queue, schema.Tracing, schema.Config, specs.LlamaCppSpec,
    specs.SimulatedSpec,
    specs.ExLlamaV2Spec,
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


@pytest.mark.parametrize(
    "part",
    [
        status.Status, status.ModelStatus, status.TargetStatus, status.EngineStatus, status.Waiting, recent.Totals,
        recent.Rates, recent.Point, recent.Error, Gauge,
    ],
    ids=lambda part: part.__name__,
)  # fmt: skip
def test_every_field_of_the_status_is_explained(part):
    text = (ROOT / "docs/admin.md").read_text()
    names = [field.encode_name for field in msgspec.structs.fields(part)]
    assert not [name for name in names if f"`{name}`" not in text]


def test_links_between_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readmes_library_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "from router import" in block]
    script = tmp_path / "example.py"
    script.write_text(
        example.replace("kind: llamacpp, model: starter, threads: 1", "kind: simulated")
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20


def test_every_parameter_has_its_row():
    table = (
        (ROOT / "docs/openai.md")
        .read_text()
        .split("## Chat completions")[1]
        .split("\nMessages:")[0]
    )
    names = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert names == set(ChatRequest.__struct_fields__)
