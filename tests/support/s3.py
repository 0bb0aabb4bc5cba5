"""An S3 bucket on loopback, for this process and those that it starts."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import s3fs
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer


@contextmanager
def open_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its URL; the variables say where it is and who asks."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3_backends.reset()  # which all servers of this process share
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
