"""What ExLlamaV3's generator calls of its compiled extension and of CUDA, in torch on a CPU.

With it in their place the library's own scheduler, page table and jobs run on a machine without CUDA. Kernels that
compute a model aren't here: see `harness`.
"""

import importlib
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from unittest.mock import MagicMock

import torch

from tests.engines.exl2 import stub_extension


def count_match_tensor(a, b, most):
    return stub_extension.count_match(a, b, most)


def generator_stage_decode(  # noqa: PLR0917 - the extension's signature
    host, width, tables, positions, rope, batch_ids, ids, pages, offsets
):
    """Gather the tables of a decoding batch, and its rows' last tokens, which go into their pages, too."""
    rows = len(tables)
    host.zero_()
    block_index = host[: rows * width].view(rows, width)
    for row, (table, position) in enumerate(zip(tables, positions, strict=True)):
        count = min(width, table.shape[-1])
        block_index[row, :count] = table.view(-1)[:count]
        host[rows * width + row] = position
    if batch_ids is None:
        return
    for row, position in enumerate(positions):
        batch_ids[row, 0] = ids[row][0, position]
        pages[row][0, offsets[row]] = ids[row][0, position]


class _Extension(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_, **__):
            raise NotImplementedError(f"{name} is not in the stub of exllamav3_ext")

        return absent


class _Torch:
    """torch without pinned memory and without waiting for a GPU."""

    cuda = types.SimpleNamespace(synchronize=lambda *_: None)

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def zeros(*size, pin_memory=False, **rest):
        return torch.zeros(*size, **rest)

    @staticmethod
    def empty(*size, pin_memory=False, **rest):
        return torch.empty(*size, **rest)


def install():
    """Take the places of the extension and of Triton; before exllamav3 is imported."""
    if "exllamav3_ext" in sys.modules:
        return
    for name in ("triton", "triton.language"):  # for kernels that nothing here calls
        module = sys.modules[name] = MagicMock()
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
    module = _Extension("exllamav3_ext")
    suffix = EXTENSION_SUFFIXES[0]  # else the library would compile its own
    module.__spec__ = ModuleSpec("exllamav3_ext", MagicMock(), origin=f"/exllamav3_ext{suffix}")
    for function in (count_match_tensor, generator_stage_decode):
        setattr(module, function.__name__, function)
    module.cache_rotate = stub_extension.cache_rotate
    sys.modules["exllamav3_ext"] = module
    for name in ("generator", "job", "pagetable"):
        part = importlib.import_module(f"exllamav3.generator.{name}")
        part.torch = _Torch()
        if hasattr(part, "cuda_sync_active"):
            part.cuda_sync_active = lambda: None
