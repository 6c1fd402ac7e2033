"""The client library: sessions, leases, calls."""

from __future__ import annotations

from rfaas.client.lease import Lease
from rfaas.client.session import Session, connect

__all__ = ["Lease", "Session", "connect"]
