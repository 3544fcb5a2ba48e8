"""What a model's folder says of itself, read without torch and without a GPU: config.json, tokenizer, tensor headers.

ExLlamaV2 reads the same files and passes over what it doesn't know; some of that is wrong answers without a word. What
it would read wrongly is found here and either put right when the model is loaded (``rope_theta``) or refused by name.

Source: https://github.com/turboderp-org/exllamav2, exllamav2/config.py and architecture.py at 0.3.2;
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from engines.base import EngineError
from engines.exl2 import stored
from engines.exl2.rope import Rope, rope_of
from engines.exl2.stored import Format, Shape
from engines.exl2.tensors import Tensor, header
from engines.grammar import CALL_END, CALL_START

Library = Literal["exllamav2", "exllamav3"]

ARCHITECTURES = frozenset(
    {
        "CohereForCausalLM", "Cohere2ForCausalLM", "DbrxForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
        "Gemma3ForConditionalGeneration", "GemmoeForCausalLM", "Glm4ForCausalLM", "GPT2LMHeadModel",
        "GPTBigCodeForCausalLM", "GraniteForCausalLM", "IndexForCausalLM", "InternLM2ForCausalLM", "LlamaForCausalLM",
        "LlavaForConditionalGeneration", "MiniCPMForCausalLM", "MistralForCausalLM", "Mistral3ForConditionalGeneration",
        "MixtralForCausalLM", "OrionForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Starcoder2ForCausalLM",
        "YiForCausalLM",
    }
)  # fmt: skip
"""What exllamav2 0.3.2 knows; it takes anything else for a Llama, with a line on standard output."""

DEFAULTS: dict[str, dict[str, int]] = {
    "Gemma3ForConditionalGeneration": {
        "vocab_size": 262_208,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
}
"""What config.json needn't say: transformers' defaults, which exllamav2 has too but for the context."""

ONE_KV_HEAD = "GPTBigCodeForCausalLM"
"""Has one head of keys and values, whatever its config says."""

PIXTRAL = frozenset({"LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"})
"""Known with this way to see alone."""

_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_MOST_PARTS = 10_000


class ModelFolder(Struct, frozen=True, kw_only=True):
    """A model that can be loaded, unless ``problems`` says otherwise."""

    path: Path
    architecture: str
    format: Format
    method: str
    """What config.json says of quantisation; empty for none."""
    dtype: str
    """Of the weights that aren't quantised: ``float16``, ``bfloat16`` or ``float32``."""
    bits: float
    """Of a weight, on average; a head of its own not counted where config.json says it."""
    parameters: int
    weight_bytes: int
    """Of the files' tensors."""
    gpu_bytes: int
    """Of the weights on GPUs, where the embedding isn't unless it is the head, too."""
    layers: int
    hidden: int
    intermediate: int
    """Width within a feed-forward block; 0 where config.json doesn't say."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    rope: Rope
    tied: bool
    """Whether the embedding is the head, too."""
    ends: tuple[int, ...]
    end_names: tuple[str, ...]
    """Of ``ends``; empty where the tokenizer has no name for one."""
    template: str
    template_from: str
    """The file it stands in; empty where there is none."""
    calls: bool
    """Whether template and vocabulary have ``<tool_call>``, so that calls of the model's own choice can be read."""
    names: Mapping[str, str]
    """bos_token and its like, for the template."""
    problems: tuple[str, ...] = ()
    """Why it can't be served."""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def rope_theta(self) -> float:
        """The base of the rotary positions, wherever it stands."""
        return self.rope.theta


def read_folder(
    path: Path, template: Path | None = None, library: Library = "exllamav2"
) -> ModelFolder:
    """Read it; ``template`` replaces the model's own. Raises EngineError("invalid") where it is no model.

    ``library``: whose problems with it are told.
    """
    if not path.is_dir():
        raise EngineError("invalid", f"there is no folder {path}")
    config = _json(path / "config.json")
    if config is None:
        raise EngineError(
            "invalid", f"{path} has no config.json: it is no model's folder{_hint(path)}"
        )
    try:
        return _Reader(path, config, template, library).read()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "invalid", f"{path}/config.json can't be understood: {type(error).__name__} {error}"
        ) from error


def _hint(path: Path) -> str:
    if any(path.glob("*.gguf")):
        return "; a .gguf file is for kind: llamacpp"
    if (path / "adapter_config.json").is_file():
        return "; it is a LoRA adapter: name it under `loras` of the model it was made for"
    if any(path.glob("*/config.json")):
        return "; a folder within it is: name that one"
    return ""


class _Reader:
    def __init__(
        self, path: Path, config: dict[str, Any], template: Path | None, library: Library
    ) -> None:
        self._path = path
        self._library = library
        self._config = config
        self._text = config.get("text_config") or {}
        self._template_file = template
        self._architecture = self._named_architecture()
        self._problems: list[str] = []
        self._warnings: list[str] = []

    def read(self) -> ModelFolder:
        self._check_architecture()
        every = self._tensors()
        tensors = stored.of_text(every)
        quantized = self._config.get("quantization_config") or {}
        method = quantized.get("quant_method")
        kind = self._format(tensors, method)
        shape = self._shape()
        self._problems += stored.flaws(tensors, shape)
        bits = float(quantized.get("bits") or stored.quantized_bits(tensors) or 16)
        rope = rope_of(self._config, self._architecture)
        if self._library == "exllamav2":
            self._problems += rope.problems
            self._warnings += rope.warnings
        tokenizer = _json(self._path / "tokenizer_config.json") or {}
        added = self._added()
        ends = self._ends(tokenizer, added, shape.vocabulary)
        template, template_from = self._template(tokenizer)
        return ModelFolder(
            path=self._path,
            architecture=self._architecture,
            format=kind,
            method=method or "",
            dtype=stored.dtype_of(tensors),
            bits=bits,
            parameters=stored.parameters_of(every, bits),
            weight_bytes=sum(one.size for one in every.values()),
            gpu_bytes=stored.gpu_bytes(tensors),
            layers=shape.layers,
            hidden=shape.hidden,
            intermediate=int(self._get("intermediate_size", "n_inner") or 0),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocabulary=shape.vocabulary,
            context_tokens=self._number(
                "max_sequence_length",
                "model_max_length",
                "max_position_embeddings",
                "max_seq_len",
                "n_positions",
                called="max_position_embeddings",
            ),
            rope=rope,
            tied=stored.is_tied(tensors),
            ends=ends,
            end_names=tuple(added.get(end, "") for end in ends),
            template=template,
            template_from=template_from,
            calls=CALL_START in template and {CALL_START, CALL_END} <= {*added.values()},
            names=_names(tokenizer),
            problems=tuple(self._problems),
            warnings=tuple(self._warnings),
        )

    def _get(self, *names: str) -> Any:
        for source in (self._config, self._text, DEFAULTS.get(self._architecture, {})):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return None

    def _number(self, *names: str, called: str = "") -> int:
        value = self._get(*names)
        if value is None:
            self._problems.append(f"config.json has no {called or names[0]}")
            return 0
        return int(value)

    def _named_architecture(self) -> str:
        named = self._config.get("architectures") or []
        return str(named[0]) if len(named) == 1 else ""

    def _check_architecture(self) -> None:
        if not self._architecture:
            count = len(self._config.get("architectures") or [])
            self._problems.append(f"config.json names {count} architectures, not one")
        if self._library == "exllamav3":  # it knows what it doesn't know
            return
        if self._architecture and self._architecture not in ARCHITECTURES:
            self._problems.append(
                f"exllamav2 doesn't know {self._architecture}; it would take it for a Llama and answer nonsense"
            )
        self._check_seeing()

    def _check_seeing(self) -> None:
        """What the library insists on of a model that also sees, though only its text is served."""
        seeing = self._config.get("vision_config")
        kind = (seeing or {}).get("model_type")
        if self._architecture in PIXTRAL and kind != "pixtral":
            self._problems.append(
                f"exllamav2 knows {self._architecture} with Pixtral's vision alone; it would take it for a Llama"
            )
        if seeing is None and self._architecture.startswith("Qwen2") and "VL" in self._architecture:
            self._problems.append("config.json has no vision_config, without which exllamav2 fails")
        if seeing is not None and not (self._path / "preprocessor_config.json").is_file():
            self._problems.append(
                "there is no preprocessor_config.json, without which exllamav2 doesn't load a model that also sees"
            )

    def _shape(self) -> Shape:
        if not (self._path / "tokenizer.json").is_file():
            self._problems.append(
                "there is no tokenizer.json; transformers writes one: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        hidden = self._number("hidden_size", "d_model", "n_embd")
        heads = self._number("num_attention_heads", "n_heads", "n_head")
        inner = self._config.get("attn_config") or {}
        kv_heads = int(self._get("num_key_value_heads") or inner.get("kv_n_heads") or heads)
        if self._architecture == ONE_KV_HEAD:
            kv_heads = 1
        if kv_heads and heads % kv_heads:
            self._problems.append(
                f"{heads} attention heads can't share {kv_heads} heads of keys and values"
            )
        return Shape(
            layers=self._number("num_hidden_layers", "n_layers", "n_layer"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(self._get("head_dim") or hidden // max(1, heads)),
            vocabulary=self._number("vocab_size"),
        )

    def _format(self, tensors: Mapping[str, Tensor], method: str | None) -> Format:
        kind = stored.format_of(tensors, method)
        if self._library == "exllamav3":
            if kind not in {"exl3", "fp16"}:
                self._problems.append(f"it is an {kind.upper()} model; exllamav3 can't read it")
        elif kind == "exl3":
            self._problems.append(
                "it is an EXL3 model, for kind: exllamav3; exllamav2 can't read it"
            )
        elif kind == "other":
            self._problems.append(f"exllamav2 can't read weights quantised by {method}")
        elif odd := stored.unreadable(tensors):
            self._problems.append(f"exllamav2 can't read tensors of type {odd}")
        return kind

    def _added(self) -> dict[int, str]:
        """The names of the tokenizer's added tokens, control tokens among them."""
        added = (_json(self._path / "tokenizer.json") or {}).get("added_tokens") or []
        return {int(token["id"]): str(token["content"]) for token in added}

    def _ends(
        self, tokenizer: Mapping[str, Any], added: Mapping[int, str], vocabulary: int
    ) -> tuple[int, ...]:
        """Every token that ends a turn; exllamav2 keeps the first alone."""
        generation = _json(self._path / "generation_config.json") or {}
        found: list[int] = []
        for value in (generation.get("eos_token_id"), self._get("eos_token_id")):
            found += value if isinstance(value, list) else [value] if value is not None else []
        named = _content(tokenizer.get("eos_token"))
        if named:
            found += [id_ for id_, text in added.items() if text == named]
        ends = tuple(dict.fromkeys(int(end) for end in found))
        if not ends:
            self._problems.append(
                "no file says which token ends an answer: add eos_token_id to generation_config.json"
            )
        beyond = [end for end in ends if not 0 <= end < vocabulary]
        if beyond and vocabulary:
            self._problems.append(
                f"the token {beyond[0]} should end an answer, and the vocabulary has {vocabulary}: "
                "see eos_token_id in generation_config.json and config.json"
            )
        return ends

    def _template(self, tokenizer: Mapping[str, Any]) -> tuple[str, str]:
        """The template, and the file it is from."""
        own = self._template_file or self._path / "chat_template.jinja"
        if self._template_file is not None or own.is_file():
            return _text(own), own.name
        for name, said in (
            ("chat_template.json", _json(self._path / "chat_template.json") or {}),
            ("tokenizer_config.json", tokenizer),
        ):
            template = said.get("chat_template")
            if isinstance(template, list):
                named = {entry["name"]: entry["template"] for entry in template}
                template = named.get("tool_use") or named.get("default")
            if template:
                return str(template), name
        self._warnings.append(
            "it has no chat template: only /v1/completions, or set `template:` to a file"
        )
        return "", ""

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of its files, those that the index doesn't name left out."""
        files = {file.name: file for file in sorted(self._path.glob("*.safetensors"))}
        index = _json(self._path / "model.safetensors.index.json") or {}
        listed: dict[str, str] = index.get("weight_map") or {}
        named = set(listed.values())
        missing = sorted(named - files.keys()) or sorted(_gaps(files))
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self._problems.append(
                f"{missing[0]}{others} of its files are missing: download it again"
            )
        if not files:
            old = " (only .bin files, which can run code; convert them)"
            hint = old if any(self._path.glob("*.bin")) else ""
            self._problems.append(f"there are no .safetensors files{hint}")
        found: dict[str, Tensor] = {}
        whole = not missing
        for name in sorted(named & files.keys()) or files:
            try:
                found.update(header(files[name]))
            except (OSError, ValueError) as error:
                whole = False
                self._problems.append(f"{name} {error}")
        lost = sorted(listed.keys() - found.keys()) if whole else []
        if lost:
            self._problems.append(
                f"{len(lost)} tensors of its index are in no file, {lost[0]} first: download it again"
            )
        return found


def _gaps(files: Mapping[str, Path]) -> set[str]:
    """Names that model-00001-of-00003.safetensors and its like promise and that aren't there."""
    promised = set()
    for name in files:
        parts = _PART.fullmatch(name)
        if parts is not None:
            width = len(parts[3])
            promised |= {
                f"{parts[1]}-{at:0{width}}-of-{parts[3]}.safetensors"
                for at in range(1, min(int(parts[3]), _MOST_PARTS) + 1)
            }
    return promised - files.keys()


def _names(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {key: _content(tokenizer.get(key)) for key in keys}


def _content(token: Any) -> str:
    """A token of tokenizer_config.json: text, or an object with it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _text(path: Path) -> str:
    """Raises EngineError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EngineError("invalid", f"{path} can't be read: {error}") from error


def _json(path: Path) -> dict[str, Any] | None:
    """Raises EngineError where the file is there and can't be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineError("invalid", f"{path} can't be read: {error}") from error
    return value if isinstance(value, dict) else None
