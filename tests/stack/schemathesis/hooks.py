"""Bodies that schemathesis does not know by itself."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson", "application/ndjson")
def lines(context, value):
    records = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@schemathesis.deserializer("application/x-ndjson")
def records(context, response):
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.deserializer("application/octet-stream")
def value(context, response):
    return response.content.decode("latin-1")


@schemathesis.hook
def before_call(context, case, kwargs):
    """A read that waits for a size that never comes waits for a moment, not for ten seconds."""
    if case.query and "min_size" in case.query:
        case.query.setdefault("timeout", "50ms")
