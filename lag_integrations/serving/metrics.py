"""What a gateway counts, for Prometheus. No label names a tenant, a user or a log."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lag_integrations.chat.reply import Reply

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

    def answered(self, reply: Reply) -> None:
        """Count what an answer took and was given."""
        report, usage = reply.report(), reply.usage
        if usage["completion_tokens"]:
            self._first.observe(report["timings"]["time_to_first_token"])
        self._recall.observe(report["timings"]["recall"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for kind, count in (
            ("read", usage["prompt_tokens"] - cached),
            ("cached", cached),
            ("written", usage["completion_tokens"]),
        ):
            self._tokens.labels(kind).inc(max(0, count))
        as_text = len(report["read_as_text"])
        self._logs.labels("kv").inc(len(report["log_ids"]) - as_text)
        self._logs.labels("text").inc(as_text)

    def captured(self, outcome: str) -> None:
        """Count a run that became a log."""
        self._runs.labels(outcome).inc()

    def text(self) -> bytes:
        """Return all counters in Prometheus' text form."""
        return generate_latest(self._registry)
