"""What a gateway counts, for Prometheus. No label names a tenant, a user or a log."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lag_integrations.chat.response import ModelResponse

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lag_requests", "Requests.", ("route", "status"), registry=self._registry
        )
        self.running = Gauge("lag_answers_running", "Answers being made.", registry=self._registry)
        self._first = Histogram(
            "lag_first_token_seconds",
            "Seconds from the call to the first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._recall = Histogram(
            "lag_recall_seconds", "Seconds of recall.", buckets=_SECONDS, registry=self._registry
        )
        self._tokens = Counter(
            "lag_tokens", "Tokens, by what they cost.", ("kind",), registry=self._registry
        )
        self._logs = Counter(
            "lag_logs_used", "Logs that answers were given.", ("form",), registry=self._registry
        )
        self._runs = Counter(
            "lag_runs_captured", "Runs that became logs.", ("outcome",), registry=self._registry
        )

    def request(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def answered(self, response: ModelResponse) -> None:
        """Count what an answer took and was given."""
        generation, context = response.generation, response.context
        if generation.time_to_first_token:
            self._first.observe(generation.time_to_first_token + sum(context.timings.values()))
        self._recall.observe(context.timings.get("recall", 0.0))
        read = response.read_tokens - response.cached_tokens
        for kind, count in (
            ("read", read),
            ("cached", response.cached_tokens),
            ("written", len(generation.token_ids)),
        ):
            self._tokens.labels(kind).inc(max(0, count))
        self._logs.labels("kv").inc(len(context.as_kv))
        self._logs.labels("text").inc(len(context.as_text))

    def captured(self, outcome: str) -> None:
        """Count a run that became a log."""
        self._runs.labels(outcome).inc()

    def text(self) -> bytes:
        """Return all counters in Prometheus' text form."""
        return generate_latest(self._registry)
