"""``pllm gate``: whether a change made serving slower, larger or later; it says so only where that is certain."""
