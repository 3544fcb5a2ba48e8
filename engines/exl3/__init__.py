"""ExLlamaV3 behind the same engine: engines.exl2 with other weights and another generator.

    loading    a model onto GPUs, and the form of a job
    sampling   the sampler of a job: the same filter and the same samplers, on the logits as they come

Source: https://github.com/turboderp-org/exllamav3 (MIT), 1.6.5
"""
