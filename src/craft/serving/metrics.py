"""What `/metrics` shows, in Prometheus' format; every series exists from the start, also when idle."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from craft.serving.towers import BASE, Towers
from craft.serving.worker import Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server, in a registry of its own.

    Attributes:
        requests: by encoder and HTTP status.
        seconds: from arrival to the end of the answer, by encoder.
        prompt_tokens, image_tokens, answer_tokens: by encoder.
        routed: images of the model "auto", by the encoder that was chosen.
        cancelled: requests whose client left.
    """

    def __init__(self, towers: Towers, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self._towers, self._worker = towers, worker
        by = {"labelnames": ("encoder",), "registry": self.registry}
        self.requests = Counter(
            "craft_requests", "Requests", labelnames=("encoder", "status"), registry=self.registry
        )
        self.seconds = Histogram("craft_request_seconds", "Seconds of a request", buckets=SECONDS, **by)
        self.prompt_tokens = Counter("craft_prompt_tokens", "Tokens of prompts, with images", **by)
        self.image_tokens = Counter("craft_image_tokens", "Visual tokens", **by)
        self.answer_tokens = Counter("craft_answer_tokens", "Tokens of answers", **by)
        self.routed = Counter("craft_routed_images", "Images of the model auto", **by)
        self.cancelled = Counter("craft_cancelled", "Requests whose client left", registry=self.registry)
        self._loaded = Gauge("craft_encoder_loaded", "1 if the encoder is in memory", **by)
        self._gauges = {
            "craft_queue": Gauge("craft_queue", "Requests that wait", registry=self.registry),
            "craft_cache_hits": Gauge(
                "craft_cache_hits", "Images found in the cache", registry=self.registry
            ),
            "craft_cache_misses": Gauge("craft_cache_misses", "Images not found", registry=self.registry),
            "craft_cache_bytes": Gauge("craft_cache_bytes", "Bytes of cached codes", registry=self.registry),
            "craft_encoded_images": Gauge(
                "craft_encoded_images", "Images that a tower read", registry=self.registry
            ),
        }
        self._touch(BASE)

    def _touch(self, encoder: str) -> None:
        for metric in (self.seconds, self.prompt_tokens, self.image_tokens, self.answer_tokens, self.routed):
            metric.labels(encoder)
        self.requests.labels(encoder, "200")

    def page(self) -> bytes:
        """The page of `/metrics`."""
        loaded = self._towers.loaded()
        for name in self._towers.names():
            self._touch(name)
            self._loaded.labels(name).set(name in loaded)
        codes = self._worker.codes
        values = (self._worker.queued, codes.hits, codes.misses, codes.bytes, self._worker.encoded)
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            gauge.set(value)
        return generate_latest(self.registry)
