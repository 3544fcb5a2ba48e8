"""From a spec to its engine; each engine is imported only when it is asked for.

A table of classes would import every engine, and with it torch or llama.cpp, into whoever reads a
config.
"""

from __future__ import annotations

from engines.base import Engine, EngineError
from engines.specs import EngineSpec, ExLlamaSpec, LlamaCppSpec


def make(spec: EngineSpec) -> Engine:
    """Return the engine for ``spec``, not started. Raises EngineError where its packages are missing."""
    if isinstance(spec, LlamaCppSpec):
        from engines.llamacpp import LlamaCppEngine  # noqa: PLC0415  # lazy: see above

        return LlamaCppEngine(spec)
    if isinstance(spec, ExLlamaSpec):
        try:
            from engines.exl2.engine import ExLlamaV2Engine  # noqa: PLC0415  # lazy: see above
        except ImportError as error:
            kind = spec.__struct_config__.tag
            raise EngineError(
                "unsupported",
                f"the {kind} engine needs more: pip install 'nenya[exllamav2]' ({error})",
            ) from error
        return ExLlamaV2Engine(spec)
    from engines.simulated.engine import SimulatedEngine  # noqa: PLC0415  # lazy: see above

    return SimulatedEngine(spec)
