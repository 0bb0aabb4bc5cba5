"""HTTPS by `forebay serve --certfile --keyfile`."""

import http.client
import json
import ssl
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from forebay.api.server import serve
from forebay.contract.errors import ForebayError
from forebay.contract.settings import Settings
from forebay.storage.ledger.connection import Ledger
from support.api import serve_command


@pytest.fixture
def settings(sqlite_ledger: Ledger, tmp_path: Path) -> Settings:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    return Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, which is its own authority, and its key."""
    made = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made


def test_with_a_certificate_it_answers_by_tls_only(
    settings: Settings, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    certfile, keyfile = map(str, certificate)
    options = ("--certfile", certfile, "--keyfile", keyfile)
    with serve_command(settings, tmp_path / "api.log", *options) as served:
        assert served.url == f"https://127.0.0.1:{served.port}"
        trusted = ssl.create_default_context(cafile=certfile)
        with closing(http.client.HTTPSConnection("localhost", served.port, timeout=60, context=trusted)) as client:
            for _ in range(2):  # on one connection
                client.request("GET", "/api/v1/jobs")
                assert json.loads(client.getresponse().read()) == {"jobs": [], "next": None}
        stranger = http.client.HTTPSConnection("localhost", served.port, timeout=60)
        with closing(stranger), pytest.raises(ssl.SSLCertVerificationError):
            stranger.request("GET", "/healthz")
        plain = http.client.HTTPConnection("localhost", served.port, timeout=60)
        with closing(plain), pytest.raises((http.client.HTTPException, OSError)):
            _ = plain.request("GET", "/healthz"), plain.getresponse()


def test_a_certificate_or_key_that_cannot_be_used_is_named(settings: Settings, certificate: tuple[Path, Path]) -> None:
    certfile, keyfile = certificate
    missing = keyfile.with_name("missing.pem")
    for given in ((missing, keyfile), (certfile, missing), (keyfile, certfile), (certfile, None), (None, keyfile)):
        with pytest.raises(ForebayError, match="cannot serve TLS with") as refused:
            serve(settings, "127.0.0.1", 0, *given)
        assert str(next(path for path in given if path)) in str(refused.value)
