"""Where spans go: name `serve.tracing:exporter` as Ray Serve's tracing exporter (docs/service.md).

With OTEL_EXPORTER_OTLP_ENDPOINT set they go to that collector (package opentelemetry-exporter-otlp-proto-http), else as JSON
lines into SEMINAR_SPANS, or `serve/spans` beside Serve's logs: one file a process.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from ray.serve._private.logging_utils import get_serve_logs_dir

from seminar.errors import ConfigError, explain

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
FOLDER = "SEMINAR_SPANS"
DELAY_MS = 1000


def exporter() -> list[SpanProcessor]:
    """What Serve calls in every proxy and replica."""
    target = _collector() if os.environ.get(ENDPOINT) else JsonLines(spans_folder() / f"{os.getpid()}.jsonl")
    return [BatchSpanProcessor(target, schedule_delay_millis=DELAY_MS)]


def spans_folder() -> Path:
    """Where the JSON lines are."""
    return Path(os.environ.get(FOLDER) or Path(get_serve_logs_dir()) / "spans")


def _collector() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        got, fix = "no opentelemetry-exporter-otlp-proto-http", "pip install it, or unset the variable"
        raise ConfigError(explain(ENDPOINT, got=got, expected="the package that speaks OTLP", fix=fix)) from error
    return OTLPSpanExporter()


class JsonLines(SpanExporter):
    """One line a span: its ids in hexadecimal, start in Unix microseconds, duration, attributes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.writelines(json.dumps(fields(span)) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


def fields(span: ReadableSpan) -> dict[str, object]:
    """A span as JSON."""
    context, start_ns, end_ns = span.get_span_context(), span.start_time or 0, span.end_time or 0
    assert context is not None
    return {
        "trace": f"{context.trace_id:032x}",
        "span": f"{context.span_id:016x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "start_us": start_ns // 1000,
        "ms": (end_ns - start_ns) / 1e6,
        "attributes": dict(span.attributes or {}),
    }
