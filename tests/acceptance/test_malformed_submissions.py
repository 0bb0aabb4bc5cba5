"""A thousand malformed submissions: each is refused with an error of ours, and nothing of any is left anywhere."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from forebay import Client, ForebayError
from support import malformed
from support.user import User, family

STRICT = {"input": {"dtype": "float32", "shape": [64], "nan": False}}


@pytest.fixture(scope="module")
def client(user: User, client: Client, digits_pt2: Path) -> Client:
    """With `strict`, which takes finite numbers only, `loose`, which takes anything, and the key `taken`."""
    client.models.register("strict", digits_pt2, inputs=STRICT)
    client.models.register("loose", runtime="python", options={"class": "support.models:Echo"})
    client.predict("strict", malformed.GOOD, idempotency_key="taken").result(120)
    return client


def left_behind(user: User) -> Counter[str]:
    """How many rows every table of the ledger has, and how many files the blob store."""
    with closing(sqlite3.connect(f"file:{user.home / 'ledger.db'}?mode=ro", uri=True)) as ledger:
        tables = ("jobs", "models", "model_versions", "model_aliases")
        counts = {table: ledger.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608
    return Counter(counts | {"blobs": sum(path.is_file() for path in (user.home / "blobs").glob("[0-9a-f][0-9a-f]/*"))})


def test_a_thousand_malformed_submissions_are_refused_and_leave_nothing_behind(
    user, client, digits_pt2, tmp_path, direct
):
    submissions = malformed.submissions(digits_pt2, tmp_path)
    assert len(submissions) == malformed.COUNT
    before = left_behind(user)
    workers = sorted(process.pid for process in family(user.stack()["processes"]["worker"]))

    problems = [problem for name, attempt in submissions if (problem := problem_with(client, name, attempt))]
    assert not problems, "\n".join(problems)
    assert left_behind(user) == before
    assert sorted(process.pid for process in family(user.stack()["processes"]["worker"])) == workers
    result = client.predict("strict", malformed.GOOD).result(120)
    np.testing.assert_allclose(result, direct(malformed.GOOD[None])[0], atol=1e-5)
    assert client.predict("loose", "still here").result(120) == "still here"


def problem_with(client: Client, name: str, attempt: malformed.Attempt) -> str:
    """Why a submission was not refused as it should be; '' when it was."""
    try:
        got = attempt(client)
    except ForebayError as error:
        text = str(error)
        if not text.isprintable() and not text.replace("\n", " ").isprintable():
            return f"{name}: {text!r} is not printable"
        return "" if 10 <= len(text) <= 1000 else f"{name}: {len(text)} characters: {text[:200]!r}"
    except BaseException as error:  # noqa: BLE001 - the test's point: whatever else is raised is wrong
        return f"{name}: {type(error).__name__}: {str(error)[:200]!a}"
    return f"{name}: was accepted: {got!r:.100}"
