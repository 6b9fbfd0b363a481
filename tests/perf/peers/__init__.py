"""pllm beside other engines: the same prompts and weights, in turn, on one machine. ``make bench-peers`` runs it."""
