"""The router over HTTP: aiohttp's parser in, bytes out, and the only importer of ``aiohttp``.

    connection   one TCP connection: its clocks, its limits, and aiohttp's own errors made ours
    exchange     one request and its answer, as bytes
    long_body    the rest of a long request, read where it stays
    screening    what is refused from the head alone
    routes       which path is whose, as data
    front        match, authenticate, serve; the last resort
    chat, models, admin   the routes; chat has all that a model answers
    run          listeners, signals, draining

aiohttp parses. Its connections, Request and Response objects are left out: they cost more than the rest of this package
together, and their errors are text where clients want OpenAI's error object.
"""
