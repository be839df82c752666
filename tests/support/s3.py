"""A server that speaks S3 over HTTP, for tests of --artifacts s3://...: localbucket, whose buckets are folders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from localbucket import S3Handler


@contextmanager
def serve(buckets: Path) -> Iterator[dict[str, str]]:
    """Serves the folders in `buckets` as buckets; the environment in which S3's clients find them."""
    handler = type("Handler", (S3Handler,), {"data_root": buckets})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
                "AWS_ACCESS_KEY_ID": "tester",
                "AWS_SECRET_ACCESS_KEY": "any",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.shutdown()
            thread.join()
