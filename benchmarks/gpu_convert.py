"""ExLlamaV2's own converter, ``python -m benchmarks.gpu_convert -i MODEL -o WORK -cf EXL2 -b 4.0``.

It imports pandas and fastparquet, which it needs only to read calibration data of one's own; where they are missing it
goes on without. Its attention over SDPA, which isn't causal (see engines.exl2.paged_attention), is left out: weights
would be fitted to what the model never computes. A conversion that was cut short goes on where it was, given the same
folders.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

CONVERTER = "exllamav2.conversion.convert_exl2"


def stand_in() -> None:
    """Let the converter be imported."""
    for name in ("pandas", "fastparquet"):
        if importlib.util.find_spec(name) is None:
            module = sys.modules[name] = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)  # torch looks for it


if __name__ == "__main__":
    stand_in()
    os.environ["EXLLAMA_NO_SDPA"] = "1"
    runpy.run_module(CONVERTER, run_name="__main__")
