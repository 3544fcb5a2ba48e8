"""A model onto GPUs: weights, cache, draft, LoRAs, and the generator over them. On the worker's thread, blocking.

Which GPUs there are is said by environment before torch is imported, so a node has none but its own. What the library
would do wrongly without a word is set right or refused: see engines.exl2.folder and engines.exl2.paged_attention.

The library is imported only in here and only by name: reading this file needs neither torch nor a GPU.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from engines import gpus
from engines.base import EngineError
from engines.exl2 import memory, positions
from engines.exl2.folder import Library, ModelFolder, read_folder
from engines.exl2.memory import PAGE_TOKENS, pages_of
from engines.specs import AnyExLlama, ExLlamaV2Spec

MAX_STEP_TOKENS = 8
"""Of one request in one step: what was sampled and what was guessed; the library's own ``max_q_size``."""

PARALLEL = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Glm4ForCausalLM"}
)
"""What 0.3.2 splits over GPUs and computes rightly; Qwen3 it takes, too, and leaves its norms out."""

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

OnProgress = Callable[[float], None]
log = logging.getLogger(__name__)

RELEASE_S = 5.0
"""Until a GPU's memory is free again once a process with tens of GiB there was killed; a second or two as a rule."""

ASK_AGAIN_S = 0.5


class Weights(Struct, frozen=True):
    """What lies on the GPUs."""

    model: Any
    cache: Any
    draft_model: Any = None
    draft_cache: Any = None
    loras: tuple[Any, ...] = ()


class Machine(Struct, frozen=True):
    """A generator that can be iterated, and what differs from one library to the next."""

    generator: Any
    attention: str
    """By what it attends; see paged_attention.install."""
    gpu: str
    """The name of the first one."""
    job: Callable[[Any], Any]
    """Makes the generator's job of a worker.Choice."""
    pages_used: Callable[[], int]
    """Pages that running jobs hold."""


class Model(Struct, frozen=True):
    """What is to be loaded."""

    spec: AnyExLlama
    folder: ModelFolder
    draft: ModelFolder | None = None

    @property
    def context_tokens(self) -> int:
        """Most tokens of a request, guesses not counted."""
        most = min(self.folder.context_tokens, pages_of(self.spec.cache_tokens) * PAGE_TOKENS)
        if self.draft is not None:
            most = min(most, self.draft.context_tokens)
        return min(self.spec.context_tokens or most, most - self.guesses)

    @property
    def guesses(self) -> int:
        """Tokens guessed ahead of each request."""
        guessing = self.draft is not None or _from_text(self.spec)
        return self.spec.draft_tokens if guessing else 0

    @property
    def chunk_tokens(self) -> int:
        """Of a prompt in one go: whole pages."""
        return pages_of(self.spec.prefill_chunk_tokens) * PAGE_TOKENS


def _from_text(spec: AnyExLlama) -> bool:
    """Whether it guesses from what was said."""
    return isinstance(spec, ExLlamaV2Spec) and spec.ngram_draft


def examine(spec: AnyExLlama) -> Model:
    """Read what is to be loaded. Raises EngineError for what can't be served."""
    second = isinstance(spec, ExLlamaV2Spec)
    library: Library = "exllamav2" if second else "exllamav3"
    template = None if spec.template is None else Path(spec.template).expanduser()
    folder = read_folder(Path(spec.model).expanduser(), template, library)
    draft = None
    if spec.draft_model is not None:
        if _from_text(spec):
            raise EngineError("invalid", "draft_model and ngram_draft exclude each other")
        draft = read_folder(Path(spec.draft_model).expanduser(), library=library)
        if draft.vocabulary != folder.vocabulary:
            raise EngineError(
                "invalid",
                f"the draft model has {draft.vocabulary} tokens, the model {folder.vocabulary}: "
                "they must share a vocabulary",
            )
    for one in (folder, draft):
        if one is not None and one.problems:
            raise EngineError("invalid", f"{one.path} can't be served: {'; '.join(one.problems)}")
    if spec.gpu_split_gib is not None and len(spec.gpu_split_gib) != len(spec.gpus):
        raise EngineError(
            "invalid",
            f"gpu_split_gib has {len(spec.gpu_split_gib)} figures for {len(spec.gpus)} gpus",
        )
    if isinstance(spec, ExLlamaV2Spec):
        for lora in spec.loras:
            _check_lora(Path(lora).expanduser())
        if spec.tensor_parallel:
            _check_tensor_parallel(spec, folder)
    return Model(spec, folder, draft)


def _check_lora(path: Path) -> None:
    """Raises EngineError for a folder that can't be loaded. The library would prefer .bin, which can run code."""
    for name in (LORA_CONFIG, LORA_WEIGHTS):
        if not (path / name).is_file():
            raise EngineError("invalid", f"{path} is no LoRA: it has no {name}")


def _check_tensor_parallel(spec: ExLlamaV2Spec, folder: ModelFolder) -> None:
    """Raises EngineError for what the library splits wrongly, or only finds out in the middle of a request."""
    said = ""
    if folder.format != "exl2":
        said = f"EXL2 weights, these are {folder.format}"
    elif folder.architecture not in PARALLEL:
        said = f"one of {', '.join(sorted(PARALLEL))}, this is {folder.architecture}"
    elif spec.loras:
        said = "a model without LoRAs"
    elif folder.kv_heads < len(spec.gpus):
        said = f"at most as many GPUs as the model has heads of keys, {folder.kv_heads}"
    if said:
        raise EngineError("unsupported", f"tensor_parallel needs {said}")


def load(model: Model, on_progress: OnProgress) -> Machine:
    """Load everything. Raises EngineError."""
    return load_with(
        "exllamav2", model, lambda gpu: machine(model, weights(model, on_progress), gpu)
    )


def load_with(library: str, model: Model, make: Callable[[str], Machine]) -> Machine:
    """What ``make`` loads with ``library``; it is given the first GPU's name. Raises EngineError, also for what the
    library raises.
    """
    prepare_environment(model.spec)
    try:
        torch: Any = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise EngineError("unsupported", "torch sees no GPU: see docs/exllamav2.md")
        importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "unsupported",
            f"the {library} engine can't be imported: {error}. See docs/exllamav2.md",
        ) from error
    with gpus.turn(model.spec.gpus):
        free = room(torch, model)
        try:
            return make(torch.cuda.get_device_name(0))
        except torch.OutOfMemoryError as error:
            raise out_of_memory(model, free) from error
        except (AssertionError, ValueError, OSError, NotImplementedError) as error:
            raise EngineError("invalid", f"{library} could not load it: {error}") from error
        except RuntimeError as error:
            if "VRAM" in str(error):
                raise out_of_memory(model, free) from error
            raise EngineError("internal", f"{library} could not load it: {error}") from error


def prepare_environment(spec: AnyExLlama) -> None:
    """Say which GPUs there are, and leave the wrong attention out; before torch is imported."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in spec.gpus)
    os.environ["EXLLAMA_NO_SDPA"] = "1"


def room(torch: Any, model: Model) -> int | None:
    """Bytes that are free for the model; None where nobody knows. Raises EngineError where it can't fit.

    A process that has just ended may hold its memory for a moment, so a model that lacks room now is asked about again.
    """
    patience_s = RELEASE_S
    while True:
        free = _free_bytes(torch, model.spec)
        try:
            if warning := memory.demand_room(model.folder, model.spec, free, model.draft):
                log.warning("%s", warning)
        except EngineError:
            if patience_s <= 0:
                raise
            patience_s -= ASK_AGAIN_S
            time.sleep(ASK_AGAIN_S)
        else:
            return free


def _free_bytes(torch: Any, spec: AnyExLlama) -> int | None:
    """What is free on the GPUs before anything is loaded; as torch sees them where the driver's tool is missing."""
    free = memory.free_bytes(spec.gpus)
    if free is not None:
        return free
    try:
        return sum(int(torch.cuda.mem_get_info(at)[0]) for at in range(torch.cuda.device_count()))
    except RuntimeError:
        return None


def out_of_memory(model: Model, free: int | None) -> EngineError:
    """The error of a model that didn't fit into what had been ``free``, with advice."""
    verdict = memory.judge(model.folder, model.spec, free or 0, model.draft)
    said = verdict.advice if free is not None else ""
    said = said or "the GPU is full: set a smaller `cache_tokens`"
    return EngineError("invalid", f"{model.folder.name} doesn't fit: {said}")


def _second(model: Model) -> ExLlamaV2Spec:
    assert isinstance(model.spec, ExLlamaV2Spec), "exllamav3 has its own loader"
    return model.spec


def configuration(model: Model, folder: ModelFolder) -> Any:
    """Return the library's config of a model, with what it would have read wrongly. Raises what it raises."""
    library: Any = importlib.import_module("exllamav2")
    config = library.ExLlamaV2Config(str(folder.path))
    config.rotary_embedding_base = folder.rope_theta
    config.arch_compat_overrides(quiet=True)
    config.no_flash_attn = False  # for windows and soft caps, which our attention has
    config.no_sdpa = True
    config.max_input_len = max(model.chunk_tokens, MAX_STEP_TOKENS * model.spec.slots)
    config.max_attention_size = config.max_input_len**2
    # Its tables of positions end there, and reading beyond them is reading other memory. Loading tries the longest
    # input, and shortens it where the tables are shorter, which the generator would then refuse.
    setattr(config, positions.TRAINED, config.max_seq_len)
    config.max_seq_len = max(model.context_tokens + model.guesses, config.max_input_len)
    return config


def weights(model: Model, on_progress: OnProgress) -> Weights:
    """Load models and caches."""
    spec = _second(model)
    share = 1.0 if model.draft is None else 0.9
    main, cache = _one(model, model.folder, lambda done: on_progress(done * share))
    draft_model = draft_cache = None
    if model.draft is not None:
        draft_model, draft_cache = _one(
            model, model.draft, lambda done: on_progress(share + done * (1 - share))
        )
    loras = tuple(_lora(main, Path(lora).expanduser()) for lora in spec.loras)
    on_progress(1.0)
    return Weights(main, cache, draft_model, draft_cache, loras)


def _lora(loaded: Any, path: Path) -> Any:
    library: Any = importlib.import_module("exllamav2")
    return library.ExLlamaV2Lora(loaded, str(path / LORA_CONFIG), str(path / LORA_WEIGHTS))


def _one(model: Model, folder: ModelFolder, on_progress: OnProgress) -> tuple[Any, Any]:
    """Load one model and make its cache. The order differs: filling GPUs in turn, the cache grows with the layers."""
    library: Any = importlib.import_module("exllamav2")
    positions.install()
    spec = _second(model)
    names = {"fp16": "", "q8": "_Q8", "q6": "_Q6", "q4": "_Q4"}
    kind = getattr(library, f"ExLlamaV2Cache{names[spec.cache]}")
    tokens = pages_of(spec.cache_tokens) * PAGE_TOKENS

    def told(done: int, modules: int) -> Iterator[None]:
        on_progress(done / modules)
        yield

    loaded = library.ExLlamaV2(configuration(model, folder))
    drafts = folder is not model.folder  # a draft is small: it goes where there is room
    split = None if spec.gpu_split_gib is None or drafts else list(spec.gpu_split_gib)
    if spec.tensor_parallel and not drafts:
        _ready_for_tensor_parallel(loaded)
        steps = loaded.load_tp_gen(
            split, callback_gen=told, expect_cache_tokens=tokens, expect_cache_base=kind
        )
        _run(steps)
        return loaded, library.ExLlamaV2Cache_TP(loaded, base=kind, max_seq_len=tokens)
    if split is not None:
        _run(loaded.load_gen(split, callback_gen=told))
        return loaded, kind(loaded, max_seq_len=tokens)
    cache = kind(loaded, max_seq_len=tokens, lazy=True)
    _run(loaded.load_autosplit_gen(cache, callback_gen=told))
    return loaded, cache


def _ready_for_tensor_parallel(loaded: Any) -> None:
    """Raises EngineError. What is split calls flash-attn from C++; nothing can stand in for it there."""
    attention: Any = importlib.import_module("engines.exl2.paged_attention")
    if not attention.has_flash_attn():
        raise EngineError("unsupported", "tensor_parallel needs flash-attn 2.5.7 or newer")
    if any(getattr(module, "sliding_window", 0) for module in loaded.modules):
        raise EngineError("unsupported", "tensor_parallel can't keep this model's attention window")


def _run(steps: Iterator[Any]) -> None:
    for _ in steps:
        pass


def machine(model: Model, loaded: Weights, gpu: str) -> Machine:
    """Return the generator over what was loaded."""
    attention: Any = importlib.import_module("engines.exl2.paged_attention")
    generators: Any = importlib.import_module("exllamav2.generator")
    library: Any = importlib.import_module("exllamav2")
    by = attention.install()
    generator = generators.ExLlamaV2DynamicGenerator(
        model=loaded.model,
        cache=loaded.cache,
        tokenizer=library.ExLlamaV2Tokenizer(loaded.model.config),
        max_batch_size=model.spec.slots,
        max_chunk_size=model.chunk_tokens,
        max_q_size=MAX_STEP_TOKENS,
        draft_model=loaded.draft_model,
        draft_cache=loaded.draft_cache,
        num_draft_tokens=model.guesses or 4,
        use_ngram_draft=_from_text(model.spec),
        paged=True,
    )
    if loaded.loras:
        generator.set_loras(list(loaded.loras))
    return Machine(
        generator,
        by,
        gpu,
        job=functools.partial(_job, generators, generator.num_draft_tokens),
        pages_used=lambda: len(generator.referenced_pages),
    )


def _job(generators: Any, guesses: int, choice: Any) -> Any:
    torch: Any = importlib.import_module("torch")
    return generators.ExLlamaV2DynamicJob(
        input_ids=torch.tensor([choice.ids], dtype=torch.long),
        # The library stops so many tokens short of it, to have room for guesses.
        max_new_tokens=choice.new_tokens + guesses,
        seed=choice.seed,
        gen_settings=generators.ExLlamaV2Sampler.Settings(**choice.settings),
        stop_conditions=list(choice.ends),
        filters=None if choice.steering is None else [choice.steering],
        identifier=choice,
    )
