"""HTTP/1.1 towards providers: connections and their pool, where they may lead, and what answers mean.

It is not a general client. It sends one kind of request (a POST with a body that is in memory) and relays what
comes back; everything that such a request doesn't need (redirects, cookies, proxies, compression) is refused
instead of handled.
"""
