"""OpenAI's HTTP API, and vLLM's additions to it, as types and translations. Nothing else knows its field names."""
