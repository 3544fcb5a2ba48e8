"""The starter model: a very small Llama that ships with Nenya, so that a fresh machine can chat.

It lies beside this file in two formats: `starter.gguf` for llama.cpp and the folder `hf/` for
ExLlamaV2. MODEL_CARD.md says what it can do; `train.py` makes it, `evaluate.py` measures it.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def gguf_path() -> Path:
    """The model as one GGUF file (q8_0), as llama.cpp loads it."""
    return _HERE / "starter.gguf"


def hf_path() -> Path:
    """The model as a Hugging Face folder (float16), as ExLlamaV2 loads it."""
    return _HERE / "hf"
