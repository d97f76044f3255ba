"""Numbers to Prometheus, through Ray: each node's agent gathers those of its processes and serves them."""

from typing import Any

from ray.util import metrics

from flsys_ray.cloud.meter import SERIES, Series


class RayMeter:
    """A `Meter` on `ray.util.metrics`. Prometheus sees `ray_` and the name; of a counter, `_total` behind it."""

    def __init__(self) -> None:
        self._made = {series: _make(series) for series in SERIES}

    def record(self, series: Series, value: float, *labels: str) -> None:
        """Take one number. It is visible some seconds later."""
        made = self._made[series]
        tags = dict(zip(series.labels, labels, strict=True))
        if series.kind == "counter":
            if value > 0:  # Ray refuses to add nothing
                made.inc(value, tags=tags)
        elif series.kind == "gauge":
            made.set(value, tags=tags)
        else:
            made.observe(value, tags=tags)


def _make(series: Series) -> Any:
    if series.kind == "histogram":
        return metrics.Histogram(series.name, series.about, boundaries=[*series.bounds], tag_keys=series.labels)
    kind = metrics.Counter if series.kind == "counter" else metrics.Gauge
    return kind(series.name, series.about, tag_keys=series.labels)
