"""Counters that a server shows as Prometheus text, all its processes added up."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def total(text: str, counter: str) -> int:
    return sum(int(sample.value) for sample in _samples(text, counter))


def by_position(text: str, counter: str, tokens: int) -> list[int]:
    """[tokens] of a counter for each draft position."""
    found = [0] * tokens
    for sample in _samples(text, counter):
        found[int(sample.labels["position"])] += int(sample.value)
    return found


def _samples(text: str, counter: str) -> Iterator[Sample]:
    return (sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == counter)
