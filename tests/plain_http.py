"""Requests each on a connection of its own, as ``httpx.get()`` makes them. That reads the certificates of all of the
world's authorities each time, which takes far longer than what a test's server does for the request."""

import httpx

_client = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
get, head, post = _client.get, _client.head, _client.post
