"""The resource manager's HTTP API, metrics and dashboard.

    server.py    sockets, TLS, bounds: bytes to requests and back (h11)
    access.py    keys and what each may do
    api.py       the routes: a table, and who answers (Microdot)
    openapi.py   the document of that table
    metrics.py   the text for Prometheus
    live.py      what the dashboard shows, once a second
    page/        the dashboard itself

All of it runs in the resource manager's own loop and asks it by `view.View`
alone.  Nothing here is on the path of a lease: where HTTP fails, or is flooded,
leases go on.
"""
