"""The HTTP door: what a client does over Python, over HTTP, and nothing else. The only part that imports Starlette."""
