"""Quantiles of measured latencies."""

from collections.abc import Sequence


def latency_summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return the number of calls and the quantiles of their latencies.

    Args:
        seconds: one latency for each call, at least one, in any order.

    Returns:
        ``calls``, then ``min_us``, ``p50_us``, ``p90_us``, ``p99_us``, ``p999_us``
        and ``max_us``, in microseconds, by the nearest-rank method.
    """
    ordered = sorted(seconds)
    count = len(ordered)
    figures: dict[str, float] = {"calls": count, "min_us": ordered[0] * 1e6}
    for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        rank = max(1, -(-int(quantile * 1000) * count // 1000))
        figures[f"{name}_us"] = ordered[rank - 1] * 1e6
    figures["max_us"] = ordered[-1] * 1e6
    return figures | {n: round(v, 1) for n, v in figures.items() if n != "calls"}
