"""Roles: the thin asyncio shells that `rfaas serve` runs.  Roles never import roles."""
