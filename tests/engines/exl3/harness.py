"""The exllamav3 engine on a CPU: everything of it and of the library but the kernels and the model, without a GPU.

The model is the one of exllamav2's harness, a Llama in plain torch over pages. The page table, the prefix cache,
chunked prefill, jobs and guessing ahead are the library's; its config and tokenizer read the folder. HARNESS_FAULT is
the same.
"""

from types import SimpleNamespace

from engines.exl2 import loading as shared
from engines.exl2 import paged_attention
from engines.exl3 import loading
from tests.engines.exl2 import harness
from tests.engines.exl3 import stub

stub.install()


class Cache(harness.Cache):
    """The library's half-precision cache, as its page table and jobs use it."""

    initialized = True
    recurrent_state_cls = None
    max_history = 0

    def __init__(self, shape, tokens):
        super().__init__(shape, tokens)
        self.max_num_tokens = tokens
        self.model = None

    def copy_page(self, target, from_page, to_page, count):
        self.copy_states(target, from_page * 256, count, to_page * 256, count, 0, 1, 0, 1)

    def get_all_tensors(self):
        return [tensor.view(-1, 256, *tensor.shape[2:]) for tensor in self.all_tensors()]


class Model(harness.Llama):
    """What the generator calls of ExLlamaV3: forward passes over pages."""

    loaded_tp = False
    output_device = "cpu"

    def __init__(self, folder, config):
        shape = SimpleNamespace(
            model_dir=str(folder.path), num_key_value_heads=folder.kv_heads,
            head_dim=folder.head_dim, num_hidden_layers=folder.layers, norm_eps=1e-5,
            rotary_embedding_base=folder.rope_theta, max_seq_len=folder.context_tokens,
        )  # fmt: skip
        super().__init__(shape)
        self.shape, self.config = shape, config
        self.caps = {}
        self.draft_verifier_params = {}

    def attention(self):
        return paged_attention.masked

    def forward(self, input_ids, params):
        return self._over_pages(input_ids, params, prefill=False)["logits"]

    def prefill(self, input_ids, params):
        self._over_pages(input_ids, params, prefill=True)

    def _over_pages(self, input_ids, params, *, prefill):
        pages = SimpleNamespace(
            block_index=params["block_table"], cache_seqlens=params["cache_seqlens"]
        )
        own, self.config = self.config, self.shape  # of the model in plain torch
        try:
            return self.forward_chunk(input_ids, pages, params["cache"], preprocess_only=prefill)
        finally:
            self.config = own

    def get_cache_layers(self):
        return []

    def prefetch_tokens(self, tokens):
        pass


def load(model, on_progress):
    """As engines.exl3.loading.load, onto a CPU."""
    import exllamav3

    tokens = shared.pages_of(model.spec.cache_tokens) * shared.PAGE_TOKENS

    def one(folder):
        made = Model(folder, exllamav3.Config.from_directory(str(folder.path)))
        cache = Cache(made.shape, tokens)
        cache.model = made
        return made, cache

    weights = shared.Weights(*one(model.folder))
    if model.draft is not None:
        weights = shared.Weights(weights.model, weights.cache, *one(model.draft))
    machine = loading.machine(model, weights, "a CPU")
    on_progress(1.0)
    return machine
