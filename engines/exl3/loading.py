"""A model onto GPUs by ExLlamaV3, and the generator over it. On the worker's thread, blocking.

What differs from exllamav2: a cache is made before its model is loaded, positions are read rightly, attention is its
own, and a job brings its sampler. Which GPUs there are is said by environment before torch is imported.

The library is imported only in here and only by name: reading this file needs neither torch nor a GPU.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from engines.exl2.folder import ModelFolder
from engines.exl2.loading import (
    MAX_STEP_TOKENS,
    Machine,
    Model,
    OnProgress,
    Weights,
    load_with,
)
from engines.exl2.memory import PAGE_TOKENS, pages_of

BITS = {"q8": 8, "q6": 6, "q4": 4}
"""Of keys and of values."""


def load(model: Model, on_progress: OnProgress) -> Machine:
    """Load everything. Raises EngineError."""
    return load_with(
        "exllamav3", model, lambda gpu: machine(model, weights(model, on_progress), gpu)
    )


def weights(model: Model, on_progress: OnProgress) -> Weights:
    """Load models and caches."""
    share = 1.0 if model.draft is None else 0.9
    main, cache = _one(model, model.folder, lambda done: on_progress(done * share))
    draft_model = draft_cache = None
    if model.draft is not None:
        draft_model, draft_cache = _one(
            model, model.draft, lambda done: on_progress(share + done * (1 - share))
        )
    on_progress(1.0)
    return Weights(main, cache, draft_model, draft_cache)


def _one(model: Model, folder: ModelFolder, on_progress: OnProgress) -> tuple[Any, Any]:
    library: Any = importlib.import_module("exllamav3")
    spec = model.spec
    loaded = library.Model.from_config(library.Config.from_directory(str(folder.path)))
    kind: dict[str, Any] = {"layer_type": library.CacheLayer_fp16}
    if spec.cache != "fp16":
        bits = BITS[spec.cache]
        kind = {"layer_type": library.CacheLayer_quant, "k_bits": bits, "v_bits": bits}
    cache = library.Cache(
        loaded,
        max_num_tokens=pages_of(spec.cache_tokens) * PAGE_TOKENS,
        max_batch_size=spec.slots,
        max_history=model.guesses,
        **kind,
    )
    drafts = folder is not model.folder  # a draft is small: it goes where there is room
    split = None if spec.gpu_split_gib is None or drafts else list(spec.gpu_split_gib)
    loaded.load(
        use_per_device=split,
        tensor_p=spec.tensor_parallel and not drafts,
        max_chunk_size=model.chunk_tokens,
        max_output_size=MAX_STEP_TOKENS * spec.slots,
        max_batch_size=spec.slots,
        callback=lambda done, modules: on_progress(done / max(1, modules)),
    )
    return loaded, cache


def machine(model: Model, loaded: Weights, gpu: str) -> Machine:
    """Return the generator over what was loaded."""
    library: Any = importlib.import_module("exllamav3")
    generator = library.Generator(
        model=loaded.model,
        cache=loaded.cache,
        tokenizer=library.Tokenizer.from_config(loaded.model.config),
        max_batch_size=model.spec.slots,
        max_chunk_size=model.chunk_tokens,
        shared_chunk_size=model.chunk_tokens,
        # A chunk of every prompt between two steps, as exllamav2 does it.
        prefill_cooldown=0,
        max_q_size=MAX_STEP_TOKENS,
        draft_model=loaded.draft_model,
        draft_cache=loaded.draft_cache,
        num_draft_tokens=model.guesses or None,
    )
    return Machine(
        generator,
        "exllamav3's own",
        gpu,
        job=functools.partial(_job, library, model),
        pages_used=lambda: len(generator.pagetable.referenced_pages),
    )


def _job(library: Any, model: Model, choice: Any) -> Any:
    torch: Any = importlib.import_module("torch")
    sampling: Any = importlib.import_module("engines.exl3.sampling")
    return library.Job(
        input_ids=torch.tensor([choice.ids], dtype=torch.long),
        max_new_tokens=choice.new_tokens,
        seed=choice.seed,
        sampler=sampling.Sampling(
            choice.settings, model.folder.vocabulary, choice.steering, guesses=bool(model.guesses)
        ),
        stop_conditions=list(choice.ends),
        identifier=choice,
    )
