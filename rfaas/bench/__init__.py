"""Benchmarks: what an invocation costs, against the bare exchange of the same bytes."""
