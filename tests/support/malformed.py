"""A thousand malformed submissions, the same at every run: what each is called, and the call that must be refused.

Each of the kinds below makes its share of variants from a number, so that no two are the same.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forebay import Client
from support.archives import hostile_archives

Attempt = Callable[[Client], object]
Kind = Callable[[int], Attempt]

COUNT = 1000
GOOD = np.linspace(0, 1, 64, dtype=np.float32)


class Exploding:
    """An input whose own code raises when it is looked at."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise self.error("boom \ud800")

    def __repr__(self) -> str:
        raise self.error("no words either")


class ExplodingMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(f"no {key}")

    def __iter__(self) -> Iterator[str]:
        yield "input"

    def __len__(self) -> int:
        return 1


class ExplodingDtype:
    @property
    def dtype(self) -> Any:
        raise ZeroDivisionError("no dtype")


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def pick(values: Sequence[Any], n: int) -> Any:
    return values[n % len(values)]


def predict(value: Any, **terms: Any) -> Attempt:
    return lambda client: client.predict("strict", value, **terms)


WRONG_DTYPES = [np.dtype(code) for code in ("c16", "c8", "M8[D]", "M8[s]", "m8[s]", "S4", "U4", "O", "V8")]
STRANGE_TEXT = ["1", "", "NaN", "\0", "\ud800", "\udcff", "a" * 5000, "[1, 2]", "é" * 64, "\x1b[2J"]
UNLIKE_ARRAYS = [
    None, object(), {1, 2}, print, int, lambda: 0, 1j, range(64), b"\xff" * 64, bytearray(64), dt.datetime(2026, 1, 1), ...,
    iter([1.0]), "x", ["1"] * 64, [None] * 64, [1.0] * 63 + ["x"], [[1.0] * 64], [1.0] * 65, [], [[]], [10**400] * 64,
    [1e39] * 64, {"input": GOOD, "more": GOOD}, {"other": GOOD}, {}, {1: GOOD}, {"\ud800": GOOD}, cyclic(),
    Path("/etc/passwd"), [cyclic()] * 64, np.float32(1), torch.zeros(63), torch.zeros(64, dtype=torch.bfloat16),
    torch.zeros(64).to_sparse(), torch.zeros(2, 64), torch.zeros(64, device="meta"), np.ma.masked_all(64, np.float32),
]  # fmt: skip
EXPLOSIONS = [
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    ZeroDivisionError,
    RecursionError,
    MemoryError,
    AttributeError,
]
BAD_NAMES = [
    "../../x", "..", ".", "/etc/passwd", "a/../b", "strict/../../x", "file:///x", "http://x/y", "strict\0", "", " ", "strict ",
    "a b", "\udcff\udcfe", "\ud800", "名前", "strict@", "@x", "strict/", "strict/0", "strict/-1", "strict/01", "strict/1e3",
    "strict/1@x", "strict@a@b", "strict/1/1", "strict/99999999999999999999", "strict\n", "x" * 101, "%2e%2e%2f", "strict;DROP",
    "' OR 1=1 --", None, 7, 1.5, b"strict", ["strict"], {"strict": 1}, ("strict", 1), object(), np.array(["strict"]), True,
    "sha256:" + "0" * 64, "strict/٣", "strict@" + "a" * 65, "-strict", "_x", "a..b",
]  # fmt: skip
BAD_TERMS: dict[str, list[Any]] = {
    "priority": [-1, 10, 2**70, 1.0, "5", None, True, np.int64(3), float("nan"), [5], object(), "\ud800"],
    "max_attempts": [0, -1, 101, 10**400, 2.0, "3", None, False, [], float("inf"), np.int32(3), {}],
    "deadline": [
        0, -1, -1e308, float("nan"), float("-inf"), float("inf"), 1e300, 10**400, "tomorrow", "60", True, [60], {}, 1j,
        dt.timedelta(0), dt.timedelta(-1), dt.timedelta.max, dt.datetime(2126, 1, 1), dt.datetime(2000, 1, 1, tzinfo=dt.UTC),
        dt.datetime.max.replace(tzinfo=dt.UTC), dt.datetime.min.replace(tzinfo=dt.UTC), dt.date(2126, 1, 1), object(),
    ],
    "queue": [
        "nowhere", "", "CPU", "cpu ", "../cpu", "cpu:3", "\ud800", "\0", "x" * 300, 5, ["cpu"], {"cpu"}, {}, b"cpu", object(),
        True, "forebay.done.x", "*", "名",
    ],
    "idempotency_key": [
        "", "x" * 181, "a\nb", "\0", "\ud800", "\x1b[31m", 5, b"key", ["key"], {}, 1.5, object(), "a\u2028b", True,
    ],
    "metadata": [
        "x", 5, ["a"], {1: 2}, {None: 1}, {"a": object()}, {"a": float("nan")}, {"a": float("inf")}, {"a": b"x"},
        {"a": np.float32("nan")}, {"a": GOOD}, {"a": {1, 2}}, {"a": "\0"}, {"a": "x" * 70_000}, {"a": 1j}, {"a": cyclic()},
        {("a",): 1}, {"a": {"b": {2: 1, "c": object()}}}, {b"a": 1}, object(), ExplodingMapping(),
    ],
}  # fmt: skip
BAD_REGISTRATIONS: list[dict[str, Any]] = [
    {"runtime": "python"}, {"runtime": "python", "options": {"class": 5}}, {"runtime": "python", "options": "x"},
    {"runtime": "python", "options": ["class"]}, {"runtime": "safetensors"}, {"runtime": "../x"}, {"runtime": ["python"]},
    {"runtime": 5}, {"runtime": ""}, {"runtime": "x" * 65}, {}, {"runtime": "Python"},
    *({"runtime": "python", "options": {"class": "a:B"}} | more for more in (
        {"inputs": {"x": {"dtype": "float33", "shape": [1]}}}, {"inputs": {"x": {"dtype": "float32"}}}, {"inputs": {}},
        {"inputs": {"x": {"dtype": "float32", "shape": [-2]}}}, {"inputs": {"x": {"dtype": "float32", "shape": [0]}}},
        {"inputs": {"x": {"dtype": "float32", "shape": "64"}}}, {"inputs": {"x" * 101: {"dtype": "str"}}}, {"inputs": [1]},
        {"inputs": {"\ud800": {"dtype": "str"}}}, {"inputs": {5: {"dtype": "str"}}}, {"inputs": {"x": 5}}, {"outputs": "y"},
        {"inputs": {"x": {"dtype": "float32", "shape": [1], "more": 1}}}, {"outputs": {"y": {"dtype": "O", "shape": [1]}}},
        {"max_batch_size": 0}, {"max_batch_size": 10**9}, {"max_batch_size": 2.0}, {"max_batch_size": "8"},
        {"batch_wait_timeout_s": -1}, {"batch_wait_timeout_s": float("nan")}, {"batch_wait_timeout_s": "1"},
        {"resources": {"gpu": -1}}, {"resources": {"tpu": 1}}, {"resources": {"memory": "much"}}, {"resources": 5},
        {"resources": {"gpu": float("inf")}}, {"resources": {"gpu": 0, "gpu_memory": 1}}, {"metadata": {1: 2}},
        {"metadata": {"a": object()}}, {"metadata": "x"}, {"options": {"class": "a:B", "b": object()}},
    )),
]  # fmt: skip


def wrong_dtype(n: int) -> Attempt:
    return predict(np.zeros(64, pick(WRONG_DTYPES, n)))


def wrong_shape(n: int) -> Attempt:
    shape = pick([(), (0,), (1,), (63,), (65,), (64, 1), (1, 64), (8, 8), (0, 64), (64, 0), (1,) * 30, (2, 64)], n)
    as_batch = n % 2 == 1 and shape[1:] != (64,)  # which would be a batch indeed
    return predict(np.zeros(shape, np.float32), batched=as_batch)


def not_finite(n: int) -> Attempt:
    row = GOOD.copy()
    row[n % 64] = pick([np.nan, np.inf, -np.inf], n)
    return predict(row) if n % 2 else predict(row.tolist())


def text_for_an_array(n: int) -> Attempt:
    text = pick(STRANGE_TEXT, n)
    return predict(pick([text, text.encode("utf-8", "replace"), [text] * 64, {"input": text}], n // len(STRANGE_TEXT)))


def nothing_like_an_array(n: int) -> Attempt:
    return predict(pick(UNLIKE_ARRAYS, n))


def exploding(n: int) -> Attempt:
    bomb: Any = Exploding(pick(EXPLOSIONS, n))
    shapes = [bomb, {"input": bomb}, [bomb] * 64, ExplodingMapping(), ExplodingDtype()]
    model = "loose" if n % 2 else "strict"
    return lambda client: client.predict(model, pick(shapes, n // 2))


def too_large(n: int) -> Attempt:
    size = 64 * 2**20 + 1 + n
    value = pick(
        [lambda: b"\0" * size, lambda: np.zeros(size, np.uint8), lambda: "x" * size, lambda: [b"\0" * 2**20] * 65], n
    )
    return lambda client: client.predict("loose", value())


def unknown_model(n: int) -> Attempt:
    name = pick([f"nobody-{n}", f"strict/{n + 2}", f"strict@alias{n}", f"nobody-{n}/1", f"nobody-{n}@x"], n)
    return lambda client: client.predict(name, GOOD)


def forged_reference(n: int) -> Attempt:
    name = pick(BAD_NAMES, n)
    calls: list[Attempt] = [
        lambda client: client.predict(name, GOOD),
        lambda client: client.predict_many(name, [GOOD]),
        lambda client: client.models.get(name),
        lambda client: client.models.delete(name),
    ]
    return pick(calls, n // len(BAD_NAMES))


def forged_id(n: int) -> Attempt:
    ids: list[Any] = [
        "../../x",
        "0" * 31,
        "0" * 33,
        "g" * 32,
        "\ud800" * 32,
        "0" * 32 + "\n",
        "",
        None,
        5,
        b"0" * 32,
        ["0"],
        "A" * 32,
    ]
    id = pick(ids, n)
    return pick([lambda client: client.job(id), lambda client: client.jobs(before=id or 5)], n // len(ids))


def bad_term(name: str) -> Kind:
    def make(n: int) -> Attempt:
        terms = {name: pick(BAD_TERMS[name], n)}
        if n % 2:
            return lambda client: client.predict_many("strict", [GOOD], **terms)
        return predict(GOOD, **terms)

    return make


def one_bad_among_good(n: int) -> Attempt:
    rows: list[Any] = [GOOD] * 5
    rows[n % 5] = pick([GOOD[:63], np.full(64, 1e300), None, np.full(64, np.nan, np.float32), "x"], n)
    return lambda client: client.predict_many("strict", iter(rows) if n % 2 else rows)


def no_list_of_inputs(n: int) -> Attempt:
    values: list[Any] = [
        GOOD[0],
        np.array(1.0),
        5,
        None,
        "text",
        b"bytes",
        {"input": GOOD},
        object(),
        GOOD,
        1.5,
        torch.tensor(1.0),
    ]
    return lambda client: client.predict_many("strict", pick(values, n))


def key_of_another_request(n: int) -> Attempt:
    return predict(np.full(64, n, np.float32), idempotency_key="taken")


def bad_registration(n: int) -> Attempt:
    return lambda client: client.models.register("refused", **pick(BAD_REGISTRATIONS, n))


def bad_name_to_register(n: int) -> Attempt:
    names = [name for name in BAD_NAMES if name not in ("strict/99999999999999999999",)]
    return lambda client: client.models.register(pick(names, n), runtime="python", options={"class": "a:B"})


def bad_path(n: int) -> Attempt:
    paths: list[Any] = [
        "/nowhere/x.pt2", "\0", "x" * 5000, "~nobody-of-this-name/x", "\ud800.pt2", "/dev/null", 5, b"x", ["x.pt2"],
        "/proc/self/mem", "/etc/passwd", "", object(),
    ]  # fmt: skip
    return lambda client: client.models.register("refused", pick(paths, n))


def bad_search(n: int) -> Attempt:
    calls: list[Callable[[Any], object]] = [
        lambda client: client.jobs(state="lost"),
        lambda client: client.jobs(state=5),
        lambda client: client.jobs(kind="\ud800"),
        lambda client: client.jobs(model=5),
        lambda client: client.jobs(metadata=5),
        lambda client: client.jobs(limit=0),
        lambda client: client.jobs(limit=True),
        lambda client: client.jobs(limit=10**9),
        lambda client: client.models.list("../x"),
        lambda client: client.models.set_alias("strict", "../x", 1),
        lambda client: client.models.set_alias("strict", "x", True),
        lambda client: client.models.set_alias("strict", "x", 99),
        lambda client: client.models.search(inputs=5),
        lambda client: client.models.search(metadata={1: 1}),
    ]
    return pick(calls, n)


SHARES: dict[str, tuple[Kind, int]] = {
    "wrong dtype": (wrong_dtype, 22),
    "wrong shape": (wrong_shape, 24),
    "NaN or inf": (not_finite, 100),
    "text for an array": (text_for_an_array, 40),
    "nothing like an array": (nothing_like_an_array, len(UNLIKE_ARRAYS)),
    "exploding": (exploding, 56),
    "too large": (too_large, 20),
    "unknown model": (unknown_model, 25),
    "forged reference": (forged_reference, 4 * len(BAD_NAMES)),
    "forged id": (forged_id, 24),
    **{f"bad {name}": (bad_term(name), 2 * len(values)) for name, values in BAD_TERMS.items()},
    "one bad among good": (one_bad_among_good, 25),
    "no list of inputs": (no_list_of_inputs, 11),
    "key of another request": (key_of_another_request, 20),
    "bad registration": (bad_registration, len(BAD_REGISTRATIONS)),
    "bad name to register": (bad_name_to_register, len(BAD_NAMES) - 1),
    "bad path": (bad_path, 13),
    "bad search": (bad_search, 14),
}


def submissions(good: Path, folder: Path) -> list[tuple[str, Attempt]]:
    """All of them; the last kind, hostile archives, fills up to the thousand."""
    made = [(f"{kind} {n}", make(n)) for kind, (make, count) in SHARES.items() for n in range(count)]
    archives = itertools.islice(hostile_archives(good, folder), COUNT - len(made))
    return made + [
        (f"archive {path.name}", lambda client, p=path: client.models.register("refused", p)) for path in archives
    ]
