"""The output folder, on the disk and in a store that is none, and which errors of a store may pass."""

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest

from forebay import InvalidInput
from forebay.contract.errors import StoreUnavailable, Transient
from forebay.datasets.formats.files import store_errors
from forebay.datasets.writing.folder import MANIFEST, OutputFolder


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out") if request.param == "disk" else f"memory://{tmp_path}/out")


def written(folder: OutputFolder, name: str, data: bytes) -> None:
    with folder.create(name) as sink:
        sink.write(data)


def test_a_part_is_put_in_place_once_and_doing_it_again_does_no_harm(folder: OutputFolder) -> None:
    assert folder.claim("b1", "asked") is None
    written(folder, "_temporary/one", b"rows")
    assert folder.names() == set()
    assert folder.place("_temporary/one", "part-1.parquet")
    assert folder.place("_temporary/one", "part-1.parquet"), "another worker has just done it"
    assert not folder.place("_temporary/two", "_errors/part-2.parquet"), "it is nowhere"
    written(folder, "_temporary/two", b"errors")
    assert folder.place("_temporary/two", "_errors/part-2.parquet")
    assert folder.names() == {"part-1.parquet", "_errors/part-2.parquet"}
    assert folder.read("part-1.parquet") == b"rows"


def test_a_folder_belongs_to_the_batch_that_claimed_it_first_and_to_nobody_when_it_holds_other_files(
    folder: OutputFolder,
) -> None:
    assert folder.claim("b1", "asked") is None
    assert OutputFolder(folder.url).claim("b2", "asked") == {"batch": "b1", "request": "asked"}
    folder.release("b2")
    assert folder.marker(), "it is not that one's to give up"
    folder.release("b1")
    folder.write(MANIFEST, b"{}")
    with pytest.raises(InvalidInput, match="is not an empty folder"):
        folder.claim("b3", "asked")
    folder.remove([MANIFEST, "never"])
    folder.clear_temporary("b1")
    folder.clear_temporary("b1")
    assert folder.manifest() is None


class Refused(Exception):
    """An answer with an HTTP status, as aiohttp, botocore or requests tell it."""

    def __init__(self, **carried: Any) -> None:
        super().__init__("slow down")
        self.__dict__ |= carried


Broken = type("EndpointConnectionError", (type("ConnectionError", (Exception,), {}),), {})
Response = type("Response", (), {"status_code": 500})
PASSING = [
    OSError("an answer that makes no sense"), Refused(status=503), Refused(status=429), Refused(code="500"),
    Refused(response={"ResponseMetadata": {"HTTPStatusCode": 503}}), Refused(response=Response()), Broken("no route"),
]  # fmt: skip
FINAL = [
    FileNotFoundError("gone"), PermissionError("not yours"), OSError(errno.EIO, "its number tells"), Refused(status=403),
    Refused(code="NoSuchBucket"), ValueError("no Parquet"), InvalidInput("ours"), Transient("ours"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_a_store_may_get_over_is_told_with_its_url_and_may_pass(error: Exception) -> None:
    with (
        pytest.raises(StoreUnavailable, match=r"s3://b/k.*: the store does not answer: .*") as caught,
        store_errors("s3://b/k"),
    ):
        raise error
    assert isinstance(caught.value, Transient)
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_all_else_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, store_errors("s3://b/k"):
        raise error
    assert caught.value is error


def test_a_store_that_fails_while_a_part_is_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(f"memory://{tmp_path}/out")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the store is on fire")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "mv", refuse)
    written(folder, "_temporary/one", b"rows")
    with pytest.raises(StoreUnavailable, match="the store is on fire"):
        folder.place("_temporary/one", "part-1.parquet")
