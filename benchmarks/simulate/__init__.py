"""A simulator that drives the server's own pool, policies, breakers and leases against models of engines.

    gpu        what an engine's steps cost and its memory holds, from published figures
    engine     one engine: continuous batching, chunked prefill, a prefix cache; jumps where nothing changes
    traces     recorded loads: Mooncake's JSONL, Azure's CSV
    synthetic  made-up loads: Poisson arrivals, sessions that share prefixes
    run        one load, one policy, one seed: a virtual clock over all of it
    measures   what came out: goodput, percentiles, intervals over seeds
    capacity   the highest rate at which enough requests meet the objective
    report     the table and the JSON

Time is a number, so a run is a pure function of its load, policy and seed.
"""
