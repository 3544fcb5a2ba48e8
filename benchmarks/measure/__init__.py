"""A load put on a running server that speaks OpenAI's API, and what it measures there.

    lengths     how long prompts and answers are, by distribution
    schedule    when requests are due: even, Poisson, rising, recorded
    sessions    what is asked: single requests or conversations, made up or recorded
    prompts     text of a wanted number of tokens, shared where prompts share a beginning
    client      one request on the wire and what it told, piece by piece
    preflight   the server looked at before any load: is it there, which model, how many tokens is a word
    drive       open and closed loops, their end, and the look at the client itself
    saturation  when a load is more than the server can take
    search      the highest rate that meets an objective
    records     one request's times and counts, and the columns that keep many
    slo         objectives in words, and whether they are met
    figures     what came out of a stage
    numbers     intervals, trends, and tests of difference
    result      the JSON that every benchmark writes, the simulator too
    compare     two results: what changed, and whether that is noise
    calibrate   costs of an engine from a measured run, for the simulator
    console, sheets, page, plots   the table, the CSV and JSON lines, the HTML

Times of a request count from when it was due, not from when it was sent, so that a server that stalls the client
can't hide what it did to those who would have come meanwhile (coordinated omission); both are kept.
"""
