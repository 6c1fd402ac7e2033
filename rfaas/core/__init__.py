"""Decisions: pure state machines.  Events and a time go in, answers come out; no I/O."""
