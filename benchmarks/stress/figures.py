"""What is made of samples: shares, rates and percentiles."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.stress.load import Sample

__all__ = ["Metrics", "latencies", "percentile", "share", "strange", "throughput"]

Metrics = dict[str, float | None]


def share(samples: Iterable[Sample]) -> float | None:
    """Per cent of them that were answered 200; None if there are none."""
    answers = [sample.status == 200 for sample in samples]
    return 100 * sum(answers) / len(answers) if answers else None


def throughput(samples: Iterable[Sample], begun: float, end: float) -> float:
    """Answers 200 a second between two moments."""
    good = sum(sample.status == 200 and begun <= sample.over < end for sample in samples)
    return good / (end - begun)


def percentile(samples: Iterable[Sample], per_cent: int) -> float | None:
    """Milliseconds in which so many per cent of the answers 200 came; None if there are too few."""
    times = [1000 * (sample.over - sample.begun) for sample in samples if sample.status == 200]
    if len(times) < 2:
        return None
    return statistics.quantiles(times, n=100, method="inclusive")[per_cent - 1]


def strange(samples: Iterable[Sample]) -> float:
    """How many of them were answered something else than 200 and 503, or not at all."""
    return sum(sample.status not in (200, 503) for sample in samples)


def latencies(samples: Iterable[Sample], prefix: str = "") -> Metrics:
    """The percentiles 50, 95 and 99, and how many times the first the last is."""
    samples = list(samples)
    middle, tail, last = (percentile(samples, per_cent) for per_cent in (50, 95, 99))
    spread = last / middle if last and middle else None
    return {
        f"{prefix}p50": middle,
        f"{prefix}p95": tail,
        f"{prefix}p99": last,
        f"{prefix}spread": spread,
    }
