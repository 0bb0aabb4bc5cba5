"""Which machines a URL of a user may lead to: none in a private network, unless the operator names it."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fsspec.registry import known_implementations

from forebay.contract.errors import InvalidInput
from forebay.datasets.formats.addresses import allow_hosts, check_host
from forebay.datasets.formats.files import absolute, find_files


@pytest.fixture(autouse=True)
def _nothing_allowed() -> Iterator[None]:
    allow_hosts(())
    yield
    allow_hosts(())


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses that names have."""
    known: dict[str, list[str]] = {}

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(f"no {host}")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1",  # noqa: S104
        "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "2002:0a00:0001::1", "224.0.0.1", "255.255.255.255", "::",
        "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "::10.0.0.1", "::ffff:0:a00:1", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", ["http://files.example/a.csv", "simplecache::https://u:p@files.example:8443/a"])
def test_a_host_with_an_address_that_is_not_public_is_refused_whichever_it_is(
    names: dict[str, list[str]], url: str, address: str
) -> None:
    names["files.example"] = ["93.184.215.14", "2606:4700::1111", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"]
    check_host(url)
    names["files.example"].append(address)
    with pytest.raises(InvalidInput, match=r"files\.example.*not public.*allowed_hosts"):
        check_host(url)
    allow_hosts(["Files.Example"])
    check_host(url)
    allow_hosts(["*"])
    check_host(url)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "2852039166", "[fd00:0:0:0:0:0:0:1]"]
)
def test_an_address_in_another_form_is_the_same_address(host: str) -> None:
    with pytest.raises(InvalidInput, match="not public"):
        check_host(f"http://{host}/a.csv")


def test_of_the_protocols_that_fsspec_knows_those_that_name_a_host_are_refused(names: dict[str, list[str]]) -> None:
    refused = set()
    for protocol in known_implementations:
        try:
            check_host(f"{protocol}://files.example/a.csv")
        except InvalidInput:
            refused.add(protocol)
    named = [
        "ftp",
        "sftp",
        "ssh",
        "smb",
        "webdav",
        "webhdfs",
        "hdfs",
        "arrow_hdfs",
        "jupyter",
        "jlab",
        "root",
        "pyscript",
    ]
    assert refused == {*named, "reference", "generic", "dask", "git", "dvc"}


@pytest.mark.parametrize(
    "protocol", ["ftp", "sftp", "ssh", "smb", "webdav", "webhdfs", "hdfs", "jupyter", "root", "of-another-package"]
)
def test_a_host_to_which_connections_cannot_be_checked_has_to_be_allowed_by_name(
    names: dict[str, list[str]], protocol: str
) -> None:
    names["files.example"] = ["93.184.215.14"]  # at the first look: it may have another address at the next
    url = f"simplecache::{protocol}://u:p@files.example/a.csv"
    with pytest.raises(InvalidInput, match=r"nobody can check .*FOREBAY_ALLOWED_HOSTS=files\.example"):
        check_host(url)
    allow_hosts(["files.example"])
    check_host(url)


def test_a_url_whose_address_stands_elsewhere_is_refused_unless_all_hosts_are_allowed() -> None:
    for url in ("reference::https://files.example/refs.json", "generic://a", "git://a/b"):
        allow_hosts(["files.example"])
        with pytest.raises(InvalidInput, match=r"nobody can check .*FOREBAY_ALLOWED_HOSTS=\*"):
            check_host(url)
        allow_hosts(["*"])
        check_host(url)


@pytest.mark.parametrize(
    "url", ["/data/a.csv", "s3://10.0.0.1/a.csv", "file:///127.0.0.1/a", "http://no-such-host.example/a"]
)
def test_what_names_no_host_and_what_has_no_address_is_left_to_whoever_opens_it(
    names: dict[str, list[str]], url: str
) -> None:
    check_host(url)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "[::1]:9", "localhost:9", "169.254.169.254"])
def test_files_are_neither_looked_for_nor_written_there(host: str) -> None:
    for use in (lambda url: find_files(url, [".csv"]), absolute):
        with pytest.raises(InvalidInput, match=r"not public|not a URL"):
            use(f"http://{host}/a.csv")
