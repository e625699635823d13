"""Numbers for Prometheus, of one server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from videonsa.server.errors import Gone, refusal
from videonsa.server.jobs import Done

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_TOGETHER = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of requests and tokens, and gauges that are asked for when they are read."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        """Begin at zero.

        Args:
            gauges: what is true at the moment, by name.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "videonsa_requests",
            "Chat completions: answered, left by the client, or refused with a status.",
            ["outcome"],
            registry=self._registry,
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached = self._counter("cached_tokens", "Tokens of prompts that were read before.")
        self._answer = self._counter("answer_tokens", "Tokens of answers.")
        self._first = Histogram(
            "videonsa_first_token_seconds",
            "From asking the session to the first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._together = Histogram(
            "videonsa_answered_together",
            "Questions that were answered side by side.",
            buckets=_TOGETHER,
            registry=self._registry,
        )
        for name, value in gauges.items():
            told = name.replace("_", " ").capitalize()
            Gauge(f"videonsa_{name}", f"{told}.", registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request that has no answer by how it ends."""
        try:
            yield
        except Exception as error:
            outcome = "left" if isinstance(error, Gone) else str(refusal(error).status)
            self._requests.labels(outcome).inc()
            raise
        except BaseException:  # who waits was cancelled
            self._requests.labels("left").inc()
            raise

    def answered(self, done: Done) -> None:
        """Count a request that is answered, and what it took."""
        self._requests.labels("answered").inc()
        self._prompt.inc(done.answer.usage.prompt_tokens)
        self._cached.inc(done.cached_tokens)
        self._answer.inc(done.answer.new_tokens)
        self._first.observe(done.answer.first_token_seconds)
        self._together.observe(done.together)

    def _counter(self, name: str, told: str) -> Counter:
        return Counter(f"videonsa_{name}", told, registry=self._registry)
