"""What a model's folder says of itself, read without torch and without a GPU: config.json, tokenizer, tensor headers.

ExLlamaV2 reads the same files and passes over what it doesn't know; some of that is wrong answers without a word. What
it would read wrongly is found here and either put right when the model is loaded (``rope_theta``) or refused by name.

Source: https://github.com/turboderp-org/exllamav2, exllamav2/config.py and architecture.py at 0.3.2;
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from engines.base import EngineError

Format = Literal["exl2", "fp16", "gptq"]

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

DEFAULT_THETA = {"Gemma3ForConditionalGeneration": 1e6}
"""Where exllamav2's own default is not 10000."""

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Of a safetensors file, as its own library has it."""

_DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_LENGTH = struct.Struct("<Q")


class ModelFolder(Struct, frozen=True, kw_only=True):
    """A model that can be loaded, unless ``problems`` says otherwise."""

    path: Path
    architecture: str
    format: Format
    bits: float
    """Of a weight, on average."""
    parameters: int
    weight_bytes: int
    embedding_bytes: int
    """Of ``weight_bytes``; these stay in the machine's own memory."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    rope_theta: float
    theta_at_top: bool
    """Whether exllamav2 reads it by itself."""
    ends: tuple[int, ...]
    template: str
    names: Mapping[str, str]
    """bos_token and its like, for the template."""
    problems: tuple[str, ...] = ()
    """Why it can't be served."""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def read_folder(path: Path, template: Path | None = None) -> ModelFolder:
    """Read it; ``template`` replaces the model's own. Raises EngineError("invalid") where it is no model."""
    if not path.is_dir():
        raise EngineError("invalid", f"there is no folder {path}")
    config = _json(path / "config.json")
    if config is None:
        hint = "; a .gguf file is for kind: llamacpp" if any(path.glob("*.gguf")) else ""
        raise EngineError("invalid", f"{path} has no config.json: it is no model's folder{hint}")
    try:
        return _Reader(path, config, template).read()
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "invalid", f"{path}/config.json can't be understood: {type(error).__name__} {error}"
        ) from error


class _Reader:
    def __init__(self, path: Path, config: dict[str, Any], template: Path | None) -> None:
        self._path = path
        self._config = config
        self._text = config.get("text_config") or {}
        self._template_file = template
        self._problems: list[str] = []
        self._warnings: list[str] = []

    def read(self) -> ModelFolder:
        tensors = dict(self._tensors())
        kind = self._format(tensors)
        weight_bytes = sum(size for size, _ in tensors.values())
        heads = self._number("num_attention_heads", "n_heads", "n_head")
        hidden = self._number("hidden_size", "d_model", "n_embd")
        head_dim = self._get("head_dim") or hidden // max(1, heads)
        theta, at_top = self._theta()
        tokenizer = _json(self._path / "tokenizer_config.json") or {}
        parameters = sum(count for _, count in tensors.values())
        quantized = self._config.get("quantization_config") or {}
        return ModelFolder(
            path=self._path,
            architecture=self._architecture(),
            format=kind,
            bits=float(quantized.get("bits") or 16),
            parameters=parameters,
            weight_bytes=weight_bytes,
            embedding_bytes=sum(
                size for name, (size, _) in tensors.items() if "embed_tokens" in name
            ),
            layers=self._number("num_hidden_layers", "n_layers", "n_layer"),
            hidden=hidden,
            heads=heads,
            kv_heads=self._get("num_key_value_heads") or heads,
            head_dim=head_dim,
            vocabulary=self._vocabulary(),
            context_tokens=self._number(
                "max_sequence_length", "max_position_embeddings", "max_seq_len", "n_positions"
            ),
            rope_theta=theta,
            theta_at_top=at_top,
            ends=self._ends(tokenizer),
            template=self._template(tokenizer),
            names=_names(tokenizer),
            problems=tuple(self._problems),
            warnings=tuple(self._warnings),
        )

    def _get(self, *names: str) -> Any:
        for source in (self._config, self._text):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return None

    def _number(self, *names: str) -> int:
        value = self._get(*names)
        if value is None:
            self._problems.append(f"config.json has no {names[0]}")
            return 0
        return int(value)

    def _architecture(self) -> str:
        named = self._config.get("architectures") or []
        if len(named) != 1:
            self._problems.append(f"config.json names {len(named)} architectures, not one")
            return ""
        architecture = str(named[0])
        if architecture not in ARCHITECTURES:
            self._problems.append(
                f"exllamav2 doesn't know {architecture}; it would take it for a Llama and answer nonsense"
            )
        return architecture

    def _vocabulary(self) -> int:
        if not (self._path / "tokenizer.json").is_file():
            self._problems.append(
                "there is no tokenizer.json; transformers writes one: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        return self._number("vocab_size")

    def _theta(self) -> tuple[float, bool]:
        """The base of the rotary positions, and whether exllamav2 finds it."""
        default = DEFAULT_THETA.get(self._architecture_name, 10_000.0)
        top = self._get("rope_theta")
        if top is not None:
            self._scaling()
            return float(top), True
        inner = self._get("rope_parameters") or {}
        if inner.get("rope_type", "default") != "default":
            self._problems.append(
                f"its positions are scaled ({inner['rope_type']}) under rope_parameters, as transformers 5 writes it, "
                "where exllamav2 doesn't look: put rope_theta and rope_scaling at the top of config.json"
            )
        theta = float(inner.get("rope_theta") or default)
        if theta != default:
            self._warnings.append(
                f"rope_theta {theta:g} stands under rope_parameters, where exllamav2 doesn't look; "
                "it is set when the model is loaded"
            )
        return theta, theta == default

    @property
    def _architecture_name(self) -> str:
        return str((self._config.get("architectures") or [""])[0])

    def _scaling(self) -> None:
        scaling = self._get("rope_scaling") or {}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in {"default", "linear", "su", "longrope", "yarn", "llama3", "mrope"}:
            self._problems.append(f"exllamav2 doesn't know the rope_scaling {kind!r}")
        if scaling.get("rope_type") and scaling.get("type"):
            self._problems.append("rope_scaling has both `type` and `rope_type`: remove one")

    def _ends(self, tokenizer: dict[str, Any]) -> tuple[int, ...]:
        """Every token that ends a turn; exllamav2 keeps the first alone."""
        generation = _json(self._path / "generation_config.json") or {}
        found: list[int] = []
        for value in (generation.get("eos_token_id"), self._get("eos_token_id")):
            found += value if isinstance(value, list) else [value] if value is not None else []
        named = _content(tokenizer.get("eos_token"))
        if named:
            found += [id_ for id_, text in self._added() if text == named]
        ends = tuple(dict.fromkeys(int(end) for end in found))
        if not ends:
            self._problems.append(
                "no file says which token ends an answer: add eos_token_id to generation_config.json"
            )
        return ends

    def _added(self) -> Iterator[tuple[int, str]]:
        for token in (_json(self._path / "tokenizer.json") or {}).get("added_tokens") or []:
            yield token["id"], token["content"]

    def _template(self, tokenizer: dict[str, Any]) -> str:
        if self._template_file is not None:
            return self._template_file.read_text(encoding="utf-8")
        own = self._path / "chat_template.jinja"
        if own.is_file():
            return own.read_text(encoding="utf-8")
        listed = (_json(self._path / "chat_template.json") or {}).get("chat_template")
        template = listed or tokenizer.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("tool_use") or named.get("default")
        if not template:
            self._warnings.append(
                "it has no chat template: only /v1/completions, or set `template:` to a file"
            )
        return template or ""

    def _format(self, tensors: Mapping[str, tuple[int, int]]) -> Format:
        if any(name.endswith(".q_weight") for name in tensors):
            return "exl2"
        method = (self._config.get("quantization_config") or {}).get("quant_method")
        if any(name.endswith(".qweight") for name in tensors):
            if method not in {None, "gptq"}:
                self._problems.append(f"exllamav2 can't read weights quantised by {method}")
            return "gptq"
        if method is not None:
            self._problems.append(f"exllamav2 can't read weights quantised by {method}")
        return "fp16"

    def _tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Each tensor's name, bytes and elements."""
        files = sorted(self._path.glob("*.safetensors"))
        index = _json(self._path / "model.safetensors.index.json") or {}
        present = {file.name for file in files}
        missing = sorted(set((index.get("weight_map") or {}).values()) - present)
        if missing:
            self._problems.append(f"{len(missing)} of its files are missing: {missing[0]}, ...")
        if not files:
            old = " (only .bin files, which can run code; convert them)"
            hint = old if any(self._path.glob("*.bin")) else ""
            self._problems.append(f"there are no .safetensors files{hint}")
        for file in files:
            try:
                yield from _header(file)
            except (OSError, ValueError) as error:
                self._problems.append(f"{file.name}: {error}")


def _header(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Raises ValueError where the file isn't whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError("is no safetensors file; is it a pointer of Git LFS?")
        header = json.loads(opened.read(length))
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        if _LENGTH.size + length + end > size:
            raise ValueError("is cut short: download it again")
        width = _DTYPE_BYTES.get(tensor["dtype"], 1)
        yield name, (end - begin, (end - begin) // width)


def _names(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {key: _content(tokenizer.get(key)) for key in keys}


def _content(token: Any) -> str:
    """A token of tokenizer_config.json: text, or an object with it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _json(path: Path) -> dict[str, Any] | None:
    """Raises EngineError where the file is there and can't be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineError("invalid", f"{path} can't be read: {error}") from error
    return value if isinstance(value, dict) else None
