"""Writes constraints-hashes.txt: the pins of constraints.txt, each with the SHA-256 of its files for Linux, for the image.

    python .ci/hashes.py [INDEX]

INDEX is a package index that answers in JSON (PEP 691); PyPI, when none is named. Run it whenever constraints.txt changes.
"""

import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JSON = "application/vnd.pypi.simple.v1+json"
HEAD = """\
# Made by .ci/hashes.py of constraints.txt: what the image installs must be one of these files.
"""
WHEEL = re.compile(r".+-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl")


def suits(name: str) -> bool:
    """Whether this is a wheel for a CPython from 3.11 on, on Linux with glibc, on x86-64 or 64-bit ARM."""
    tags = WHEEL.fullmatch(name)
    if tags is None:
        return False
    if not re.search(r"any|manylinux.*_(x86_64|aarch64)", tags["platform"]):
        return False
    versions = [int(minor) for minor in re.findall(r"cp3(\d+)", tags["python"])]
    return not versions or any(11 <= minor <= 14 or (tags["abi"] == "abi3" and minor < 11) for minor in versions)


def hashes(index: str, pin: str) -> str:
    """The pin, with the hashes of its wheels; of its source where it has no wheel for us."""
    name, _, version = pin.partition("==")
    project = re.sub(r"[-_.]+", "-", name).lower()
    request = urllib.request.Request(f"{index}/{project}/", headers={"Accept": JSON})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - whoever runs this names the index
        files = json.load(answer)["files"]
    ours = re.compile(
        rf"{project.replace('-', '[-_.]+')}-{re.escape(version)}(-.+\.whl|\.tar\.gz|\.zip)", re.IGNORECASE
    )
    found = [file for file in files if ours.fullmatch(file["filename"])]
    wheels = [file for file in found if suits(file["filename"])]
    known = sorted(file["hashes"]["sha256"] for file in wheels or found)
    if not known:
        raise SystemExit(f"{index} has no file of {pin}")
    return " \\\n    ".join([pin, *(f"--hash=sha256:{one}" for one in known)])


def main() -> None:
    index = (sys.argv[1] if len(sys.argv) > 1 else "https://pypi.org/simple").rstrip("/")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    with ThreadPoolExecutor(8) as threads:
        made = threads.map(lambda pin: hashes(index, pin), pins)
        (ROOT / "constraints-hashes.txt").write_text(HEAD + "\n".join(made) + "\n", encoding="utf-8")


main()
