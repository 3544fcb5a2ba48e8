"""GPU classes: what an 8 B model with grouped-query attention costs on them, from published figures.

The model is Llama 3.1 8B: 16 GFLOP a token and half a MFLOP more for each token before it (4 x 4096 x 32 layers); 128
KiB of keys and values a token (32 layers x 8 heads x 128 x 2 x 2 bytes).

Source: NVIDIA's data sheets of the H100 SXM (989 TFLOP/s, 3.35 TB/s) and the GeForce RTX 4090 (165 TFLOP/s dense with
32-bit sums, 1.0 TB/s); Meta's model card; vLLM's defaults for batch and chunk.
"""

from __future__ import annotations

import msgspec

from router.load import Costs


class Gpu(msgspec.Struct, frozen=True):
    """One engine's hardware and settings."""

    name: str
    costs: Costs
    kv_tokens: int
    chunk_tokens: int
    slots: int
    prompt_step_s: float = 0.0
    """What a step that reads a prompt costs beside its tokens."""
    overhead_s: float = 0.0
    """What lies between client and engine, in a time to first token."""


GPUS = {
    "80gb": Gpu(
        name="H100 80 GB, 8 B in 16 bits",
        # 45 % of the peak in prefill and 35 % in attention; 80 % of the bandwidth in decode.
        costs=Costs(
            prefill_token_s=1 / 27_800,
            attention_s=1.5e-9,
            step_s=0.007,
            request_s=5e-5,
            context_s=4.9e-8,
        ),
        kv_tokens=400_000,  # 90 % of 80 GB, less 16 GB of weights and 4 GB of activations
        chunk_tokens=8192,  # vLLM's default on an H100
        slots=256,
    ),
    "24gb": Gpu(
        name="RTX 4090 24 GB, 8 B in 4.5 bits",
        # Half of the peak, as weights are unpacked first; 4.5 GB of weights at 0.8 TB/s.
        costs=Costs(
            prefill_token_s=1 / 5_100,
            attention_s=6.6e-9,
            step_s=0.0056,
            request_s=1e-4,
            context_s=1.6e-7,
        ),
        kv_tokens=126_000,  # 22 GB, less 4.5 GB of weights and 1 GB of activations
        chunk_tokens=2048,
        slots=128,
    ),
}
