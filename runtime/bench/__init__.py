"""``pllm bench``: how fast an artifact serves here. Definitions are those of ``vllm bench serve``."""
