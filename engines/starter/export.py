"""Writing the model: a Hugging Face folder in float16, and a GGUF file.

Decides the metadata that ExLlamaV2 and llama.cpp read. `rope_theta` stands at the top level of
config.json because ExLlamaV2 looks nowhere else; the GGUF's query and key rows are reordered
because llama.cpp rotates neighbouring pairs where Hugging Face rotates halves.
"""

# ruff: noqa: PLC0415 - heavy or mutual imports stand where they are needed

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.starter.model import Llama, Shape
from engines.starter.template import END, SPECIAL, STOP, TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "Nenya starter model"
_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


SHARPNESS = 3.0
"""Logits are scaled by this before shipping: drawn at OpenAI's default temperature of 1, so small a model missed one
sum in seven; its answers at temperature 1 are now those it gave at a third. Greedy answers stay as they are."""


def sharpen(model: Llama, factor: float) -> None:
    """Scale all logits, in place: the last norm's weights stand before the tied head alone."""
    with torch.no_grad():
        model.norm.weight.mul_(factor)


def config(shape: Shape, tok: Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.inter,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions, "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta, "rope_scaling": None, "vocab_size": shape.vocab,
        "bos_token_id": tok.token_to_id(STOP), "eos_token_id": tok.token_to_id(END),
        "pad_token_id": tok.token_to_id(STOP), "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "float16",
        "initializer_range": 0.02,
    }  # fmt: skip


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_hf(folder: Path, model: Llama, tok: Tokenizer) -> None:
    """The Hugging Face folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{k}": v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    settings = config(model.shape, tok)
    _write_json(folder / "config.json", settings)
    ends = [settings["eos_token_id"], settings["bos_token_id"]]
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": ends}
    _write_json(folder / "generation_config.json", generation | {"pad_token_id": ends[1]})
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": STOP, "eos_token": END,
            "pad_token": STOP, "add_bos_token": False, "add_eos_token": False,
            "clean_up_tokenization_spaces": False, "model_max_length": model.shape.positions,
            "chat_template": TEMPLATE,
        },
    )  # fmt: skip


def load_hf(folder: Path) -> Llama:
    """The model back from its Hugging Face folder, to check or to continue it."""
    from safetensors.torch import load_file

    c = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        vocab=c["vocab_size"], hidden=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"],
        inter=c["intermediate_size"], positions=c["max_position_embeddings"],
        theta=c["rope_theta"], eps=c["rms_norm_eps"],
    )  # fmt: skip
    model = Llama(shape)
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    model.eval()
    return model


def _pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows reordered from rotary halves to neighbouring pairs."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def _gguf_tensor(name: str, weight: torch.Tensor, shape: Shape) -> tuple[str, NDArray[np.float32]]:
    values: NDArray[np.float32] = weight.detach().float().numpy()
    if name == "embed_tokens.weight":
        return "token_embd.weight", values
    if name == "norm.weight":
        return "output_norm.weight", values
    _, layer, rest = name.split(".", 2)
    module = rest.removesuffix(".weight")
    if module.endswith("q_proj"):
        values = _pairs(values, shape.heads)
    if module.endswith("k_proj"):
        values = _pairs(values, shape.kv_heads)
    return f"blk.{layer}.{_GGUF_NAMES[module]}.weight", values


def _add_header(writer: Any, shape: Shape, gguf_type: int) -> None:
    writer.add_name(NAME)
    writer.add_license("Apache-2.0")
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inter)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf_type)


def _add_tokenizer(writer: Any, tok: Tokenizer) -> None:
    import gguf

    data = json.loads(tok.to_str())
    ids = tok.get_vocab(with_added_tokens=True)
    by_id = {i: token for token, i in ids.items()}
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    for added in data["added_tokens"]:
        special = added["special"]
        kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        kinds[added["content"]] = kind
    tokens = [by_id[i] for i in range(len(ids))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[token] for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ids[SPECIAL[0]])
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[SPECIAL[0]])
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(TEMPLATE)


def save_gguf(path: Path, model: Llama, tok: Tokenizer, kind: str = "q8_0") -> None:
    """The GGUF file; `kind` is q8_0 to ship, f16 or f32 to compare."""
    import gguf

    files = gguf.LlamaFileType
    types = {"q8_0": files.MOSTLY_Q8_0, "f16": files.MOSTLY_F16, "f32": files.ALL_F32}
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_header(writer, model.shape, types[kind])
    _add_tokenizer(writer, tok)
    for name, weight in model.state_dict().items():
        tensor, values = _gguf_tensor(name, weight, model.shape)
        if values.ndim == 1 or kind == "f32":
            writer.add_tensor(tensor, np.ascontiguousarray(values))
        elif kind == "f16":
            writer.add_tensor(tensor, values.astype(np.float16))
        else:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor, gguf.quants.quantize(values, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
