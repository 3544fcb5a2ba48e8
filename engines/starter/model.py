"""The network: a plain Llama in PyTorch, only as large as training needs.

Decides the sizes. Module names follow Hugging Face's, so that saving needs no renaming. The head
is tied to the embedding and is applied only where an answer is learnt, which saves a fifth of the
work.
"""

# mypy: disable-error-code="misc, no-any-return, untyped-decorator"
# (PyTorch is untyped here: its classes are Any to mypy.)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """All sizes of the model."""

    vocab: int = 1536
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    inter: int = 448
    positions: int = 4096
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


class Norm(nn.Module):
    """RMS norm with a learnt scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Scales each vector to unit mean square."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, as Hugging Face lays them out."""
    dim = shape.head_dim
    inverse = 1.0 / (shape.theta ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.outer(torch.arange(shape.positions).float(), inverse)
    both = torch.cat((angles, angles), -1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns queries or keys by their position."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    """Causal attention with grouped keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dim = shape.head_dim
        kv = shape.kv_heads * self.dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(shape.heads * self.dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mixes each position with those before it."""
        rows, length, _ = x.shape
        q = rotate(self.q_proj(x).view(rows, length, -1, self.dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(rows, length, -1, self.dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(rows, length, -1, self.dim).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class Feed(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inter, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inter, bias=False)
        self.down_proj = nn.Linear(shape.inter, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Widens, gates, narrows."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Feed(shape)
        self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention, then feed-forward, each added to what came in."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.eps)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, 0, 0.02 / math.sqrt(2 * shape.layers) if last else 0.02)

    def forward(self, ids: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits at every position, or only where the flat mask `where` is set."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = x.flatten(0, 1)[where] if where is not None else x
        return self.norm(x) @ self.embed_tokens.weight.T
