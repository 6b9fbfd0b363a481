"""The quantities that are compared, and which way is better."""

from dataclasses import dataclass

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """``scale`` turns what workers answer (seconds, bytes, shares) into ``unit``. ``compared``: a peer has it too."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0
    compared: bool = True


METRICS = {
    metric.name: metric
    for metric in (
        Metric("decode_rate", "decode", "tokens/s", True),
        Metric("first_token", "first token", "s", False),
        Metric("output_rate", "output", "tokens/s", True),
        Metric("cold_ready", "cold to ready", "s", False),
        Metric("cold_first_token", "cold to first token", "s", False),
        Metric("server_ready", "server: cold to ready", "s", False, compared=False),
        Metric("server_first_token", "server: cold to first token", "s", False, compared=False),
        Metric("peak_rss", "peak RSS", "MB", False, 1e-6),
        Metric("server_peak_rss", "server: peak RSS", "MB", False, 1e-6, compared=False),
        Metric("kv_pool", "of that, KV pool", "MB", False, 1e-6, compared=False),
        Metric("kv_utilisation", "KV utilisation", "%", True, 100.0, compared=False),
    )
}
"""By the names that workers use, in the order of the table."""
