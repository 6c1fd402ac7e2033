"""Starting processes: workers from the zygote, private executors from a client."""
