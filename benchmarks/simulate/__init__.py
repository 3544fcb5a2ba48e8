"""A simulator that drives the server's own pool, policies, breakers and leases against models of engines
and of providers.

    gpu        what an engine's steps cost and its memory holds, from published figures
    engine     one engine: continuous batching, chunked prefill, a prefix cache; jumps where nothing changes
    traces     recorded loads: Mooncake's JSONL, Azure's CSV
    synthetic  made-up loads: Poisson arrivals, sessions that share prefixes
    run        one load, one policy, one seed: a virtual clock over all of it
    provider   one account at a provider: its latencies, its limits, its outages
    upstream   the same run with accounts instead of engines
    replicas   several routers in front of one fleet, each with its own state
    measures   what came out: goodput, percentiles, intervals over seeds
    capacity   the highest rate at which enough requests meet the objective
    report     the table and the JSON; upstream_report those of accounts

Time is a number, so a run is a pure function of its load, policy and seed.
"""
