"""ExLlamaV2 as an engine: one thread owns its dynamic generator, everything around it is this project's own.

The library is archived, so what is taken from it is small: its weights, its kernels, its page table and its loop. Of a
request it sees tokens, a seed, a limit and stop tokens; of an answer it says tokens. Templates, text, stop strings,
tool calls, grammars, penalties, log-probabilities and limits are made here, alike for every engine.

    engine     Engine: requests in, events out, on the event loop
    prompt     a request as tokens and a grammar; on threads
    worker     the thread: starts, cancels, iterates
    steering   what happens to a token's logits between the model and the sampler
    call       tokens as events, back on the loop
    samplers   those that the library has wrong, or too early
    loading    weights, caches, drafts and LoRAs onto GPUs
    positions  rotary positions as they were trained
    paged_attention   the one function of flash-attn that is needed, without flash-attn
    folder, memory    what a model is and needs, without torch and without a GPU; folder reads by rope, stored, tensors

What work costs on this GPU is measured at the first start: engines.calibration, engines.measured.

Source: https://github.com/turboderp-org/exllamav2 (MIT)
"""
