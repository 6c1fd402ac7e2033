"""Control links: msgpack frames between processes, blocking (`link`) and asyncio (`aio`).

Both speak over a Unix socket here; a new kind of link brings its own `connect`
and `listen` and leaves the frames, and all code above them, as they are.
"""
