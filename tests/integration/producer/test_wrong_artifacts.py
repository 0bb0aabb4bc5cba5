"""Python, the command and HTTP say the same of a file that is not served, and store nothing of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import Client, InvalidInput
from support.api import RunningApi, running_api
from support.commands import Shell
from support.wrong_artifacts import FILES, FOLDERS, write

SOME = ("state.pth", "whole.pt", "script.pt", "svc.pkl", "llama.gguf", "model.tar.gz", "what.xyz")


@pytest.fixture
def api(shell: Shell) -> Iterator[RunningApi]:
    with Client() as client, running_api(client.settings) as api:
        yield api


def test_python_the_command_and_http_say_the_same(shell: Shell, api: RunningApi, tmp_path: Path) -> None:
    for name in SOME:
        path = write(tmp_path, name)
        with Client() as client, pytest.raises(InvalidInput) as told:
            client.models.register("net", path)
        printed = shell.error("models", "register", "net", str(path))
        assert " ".join(printed.split()) == " ".join(f"error: {told.value}".split())
        assert len(printed.splitlines()) == len(str(told.value).splitlines())
        head = f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{json.dumps({"name": "net"})}'
        head += f'\r\n--b\r\nContent-Disposition: form-data; name="artifact"; filename="{name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + b"\r\n--b--\r\n"
        answer = api.ask("POST", "/api/v1/models", body, {"Content-Type": "multipart/form-data; boundary=b"})
        assert (answer.status, answer.json["detail"]) == (422, str(told.value))
    with Client() as client:
        assert client.models.list() == []


def test_the_table_is_long_enough() -> None:
    assert len(FILES) + len(FOLDERS) >= 30
