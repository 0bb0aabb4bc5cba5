"""Settings: who wins, what is refused and how, and that a child process sees what its parent saw."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.queues import DEFAULT_QUEUES
from forebay.contract.setting_kinds import mask_password, seconds
from forebay.contract.settings import SETTINGS, STACK_FILE, Settings

# Per setting: text as a flag or variable, the same as TOML, and the value both become.
SAMPLES: dict[str, list[tuple[str, str, Any]]] = {
    "broker": [
        ("redis://one:1/0", '"redis://one:1/0"', "redis://one:1/0"),
        ("rediss://two", '"rediss://two"', "rediss://two"),
        ("redis://:pw@three:6380/1", '"redis://:pw@three:6380/1"', "redis://:pw@three:6380/1"),
    ],
    "database": [
        ("sqlite:////a/l.db", '"sqlite:////a/l.db"', "sqlite:////a/l.db"),
        ("postgresql://u@h/d", '"postgresql://u@h/d"', "postgresql+psycopg://u@h/d"),
        ("postgres://u@h:5/d", '"postgres://u@h:5/d"', "postgresql+psycopg://u@h:5/d"),
    ],
    "blobs": [
        ("/b/one", '"/b/one"', "file:///b/one"),
        ("s3://bucket/x", '"s3://bucket/x"', "s3://bucket/x"),
        ("file:///b/three", '"file:///b/three"', "file:///b/three"),
    ],
    "lease_s": [("45s", '"45s"', 45.0), ("15m", '"15m"', 900.0), ("7", "7", 7.0)],
    "heartbeat_s": [("500ms", '"500ms"', 0.5), ("2", "2", 2.0), ("3.5", "3.5", 3.5)],
    "sweep_s": [("1h", '"1h"', 3600.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "resend_s": [("1m", '"1m"', 60.0), ("2", "2", 2.0), ("1e-3", "0.001", 0.001)],
    "blob_grace_s": [("2h", '"2h"', 7200.0), ("90m", '"90m"', 5400.0), ("3", "3", 3.0)],
    "retention_s": [("30d", '"30d"', 2592000.0), ("12h", '"12h"', 43200.0), ("3", "3", 3.0)],
    "shutdown_grace_s": [("1m", '"1m"', 60.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "store_timeout_s": [("1h", '"1h"', 3600.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "load_timeout_s": [("1h", '"1h"', 3600.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "train_timeout_s": [("2h", '"2h"', 7200.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "node_wait_s": [("5m", '"5m"', 300.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "rendezvous_host": [("10.0.0.1", '"10.0.0.1"', "10.0.0.1"), ("h2", '"h2"', "h2"), ("h3", '"h3"', "h3")],
    "outage_timeout_s": [("10m", '"10m"', 600.0), ("2", "2", 2.0), ("3", "3", 3.0)],
    "max_inline_bytes": [("1KiB", '"1KiB"', 1024), ("2", "2", 2), ("0", "0", 0)],
    "max_payload_bytes": [("1MB", '"1MB"', 1_000_000), ("2", "2", 2), ("3", "3", 3)],
    "model_cache_bytes": [("2GiB", '"2GiB"', 2**31), ("2", "2", 2), ("3", "3", 3)],
    "child_memory_bytes": [("8GiB", '"8GiB"', 2**33), ("2", "2", 2), ("3", "3", 3)],
    "torch_threads": [("1", "1", 1), ("2", "2", 2), ("1024", "1024", 1024)],
    "preload": [("torch, numpy", '["torch", "numpy"]', ("torch", "numpy")), ("d", '"d"', ("d",)), (",", "[]", ())],
    "device": [("cuda:1", '"cuda:1"', "cuda:1"), ("cuda:2", '"cuda:2"', "cuda:2"), ("cuda:3", '"cuda:3"', "cuda:3")],
    "worker_queues": [("cpu", '"cpu"', ("cpu",)), ("gpu,x", '["gpu", "x"]', ("gpu", "x")), ("y", '["y"]', ("y",))],
    "worker_run": [("0a1b2c3d", '"0a1b2c3d"', "0a1b2c3d"), ("b", '"b"', "b"), ("c", '"c"', "c")],
    "worker_name": [("a@h", '"a@h"', "a@h"), ("b@h", '"b@h"', "b@h"), ("c@h", '"c@h"', "c@h")],
    "allowed_endpoints": [
        ("http://a/v1, https://b KEY", '["http://a/v1", "https://b KEY"]', ("http://a/v1", "https://b KEY")),
        ("http://c", '["http://c"]', ("http://c",)),
        (",", "[]", ()),
    ],
    "allowed_hosts": [("a.b, c", '["a.b", "c"]', ("a.b", "c")), ("*", '"*"', ("*",)), (",", "[]", ())],
    "allowed_python_models": [
        ("a.b, c", '["a.b", "c"]', ("a.b", "c")),
        ("d", '"d"', ("d",)),
        (",", "[]", ()),
    ],
    "api_host": [("10.0.0.1", '"10.0.0.1"', "10.0.0.1"), ("h2", '"h2"', "h2"), ("h3", '"h3"', "h3")],
    "api_port": [("1", "1", 1), ("2", "2", 2), ("0", "0", 0)],
    "api_paths": [("/a, s3://b/c", '["/a", "s3://b/c"]', ("/a", "s3://b/c")), ("/d", '"/d"', ("/d",)), (",", "[]", ())],
    "api_origins": [
        ("https://a, http://b", '["https://a", "http://b"]', ("https://a", "http://b")),
        ("https://c", '"https://c"', ("https://c",)),
        (",", "[]", ()),
    ],
    "api_max_file_bytes": [("1KiB", '"1KiB"', 1024), ("2", "2", 2), ("3", "3", 3)],
    "api_max_batch_lines": [("1", "1", 1), ("2", "2", 2), ("3", "3", 3)],
    "api_max_body_bytes": [("1KiB", '"1KiB"', 1024), ("2", "2", 2), ("3", "3", 3)],
    "dashboard_host": [("0.0.0.0", '"0.0.0.0"', "0.0.0.0"), ("h2", '"h2"', "h2"), ("h3", '"h3"', "h3")],  # noqa: S104
    "dashboard_port": [("1", "1", 1), ("2", "2", 2), ("0", "0", 0)],
    "metrics_host": [("0.0.0.0", '"0.0.0.0"', "0.0.0.0"), ("h2", '"h2"', "h2"), ("h3", '"h3"', "h3")],  # noqa: S104
    "metrics_port": [("1", "1", 1), ("2", "2", 2), ("0", "0", 0)],
    "operators": [
        ("ada, bob", '["ada", "bob"]', ("ada", "bob")),
        ("c@d.example", '"c@d.example"', ("c@d.example",)),
        (",", "[]", ()),
    ],
    "log_level": [("DEBUG", '"DEBUG"', "debug"), ("error", '"error"', "error"), ("warning", '"warning"', "warning")],
}


def config(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_has_samples() -> None:
    assert set(SAMPLES) == set(SETTINGS) - {"home", "queues"}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(name: str, tmp_path: Path) -> None:
    (flag, _, by_flag), (variable, _, by_variable), (_, toml, by_file) = SAMPLES[name]
    path = config(tmp_path, f"{name} = {toml}")
    env = {SETTINGS[name].variable: variable}
    home = {"home": tmp_path}
    assert getattr(Settings.load(env, config=path, **home, **{name: flag}), name) == by_flag
    assert getattr(Settings.load(env, config=path, **home, **{name: None}), name) == by_variable
    assert getattr(Settings.load({}, config=path, **home), name) == by_file
    assert getattr(Settings.load({SETTINGS[name].variable: ""}, config=path, **home), name) == by_file
    assert getattr(Settings.load({}, **home), name) == SETTINGS[name].default_in(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "toml", "value"), [(n, *s) for n, samples in SAMPLES.items() for s in samples]
)
def test_a_value_means_the_same_from_every_source(name: str, text: str, toml: str, value: Any, tmp_path: Path) -> None:
    path = config(tmp_path, f"{name} = {toml}")
    assert getattr(Settings.load({}, home=tmp_path, **{name: text}), name) == value
    assert getattr(Settings.load({SETTINGS[name].variable: text}, home=tmp_path), name) == value
    assert getattr(Settings.load({}, home=tmp_path, config=path), name) == value


BAD = [
    ("broker", "http://host"),
    ("broker", "localhost:6379"),
    ("broker", "redis://host:port"),
    ("broker", "redis://[half"),
    ("database", "mysql://u@h/d"),
    ("database", "ledger.db"),
    ("database", "postgresql://u@h:port/d"),
    ("lease_s", "soon"),
    ("lease_s", "-1"),
    ("lease_s", "0"),
    ("lease_s", "1 week"),
    ("lease_s", "1e999"),
    ("lease_s", "inf"),
    ("heartbeat_s", "nan"),
    ("retention_s", "1,5h"),
    ("max_inline_bytes", "2Gi"),
    ("max_payload_bytes", "-5"),
    ("model_cache_bytes", "much"),
    ("torch_threads", "two"),
    ("torch_threads", "-3"),
    ("torch_threads", "1025"),
    ("device", "gpu"),
    ("device", "cuda"),
    ("dashboard_port", "65536"),
    ("dashboard_port", "http"),
    ("log_level", "loud"),
    ("queues", "cpu"),
    ("queues", "[]"),
    ("queues", "{}"),
    ("queues", '{"cpu": {"cores": 8}}'),
    ("queues", '{"CPU": {}}'),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_with_setting_source_and_value(name: str, value: str, tmp_path: Path) -> None:
    variable = SETTINGS[name].variable
    shown = {'{"cpu": {"cores": 8}}': "cores", '{"CPU": {}}': "CPU"}.get(value, value)
    for source, load in (
        ("flag", lambda: Settings.load({}, home=tmp_path, **{name: value})),
        (variable, lambda: Settings.load({variable: value}, home=tmp_path)),
        (
            "forebay.toml",
            lambda: Settings.load({}, home=tmp_path, config=config(tmp_path, f"{name} = {json.dumps(value)}")),
        ),
    ):
        with pytest.raises(InvalidInput) as caught:
            load()
        assert f"setting {name} (from {source})" in str(caught.value)
        assert shown in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["lease_s = true", "lease_s = []", "lease_s = nan", "lease_s = inf", "torch_threads = 1.5", "torch_threads = true",
     "max_inline_bytes = false", "allowed_python_models = 5", "allowed_python_models = [1]", "home = 5",
     "queues = 5", "queues = {cpu = 8}", "queues = {cpu = {kinds = ['nap']}}", "device = 0", "log_level = 1"],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_in_the_file_is_refused_by_name(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = line.split(" ")[0]
    with pytest.raises(InvalidInput, match=rf"setting {name} \(from forebay.toml\)"):
        Settings.load({}, config=config(tmp_path, line))


@pytest.mark.parametrize("bad", ["redis://:geheim@[half", "redis://:geheim@host:port", "http://u:geheim@host"])
def test_no_message_shows_a_password(bad: str, tmp_path: Path) -> None:
    for name in ("broker", "database"):
        with pytest.raises(InvalidInput) as caught:
            Settings.load({}, home=tmp_path, **{name: bad})
        assert "geheim" not in str(caught.value)


def test_a_setting_that_is_not_there_is_refused_as_a_flag_and_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no setting is called 'leese_s'.*lease_s"):
        Settings.load({}, home=tmp_path, leese_s=3)
    with pytest.raises(InvalidInput, match=r"some\.toml: no setting is called 'leese_s'.*lease_s"):
        Settings.load({}, home=tmp_path, config=config(tmp_path, "leese_s = 3"))


def test_a_variable_that_is_almost_one_of_ours_is_refused_with_the_one_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is called 'FOREBAY_BROKR'; did you mean FOREBAY_BROKER\?"):
        Settings.load({"FOREBAY_BROKR": "redis://h/0"}, home=tmp_path)
    with pytest.raises(InvalidInput, match=r"is called 'FOREBAY_lease_s'; did you mean FOREBAY_LEASE_S\?"):
        Settings.load({"FOREBAY_lease_s": "3"}, home=tmp_path)
    assert Settings.load({"FOREBAY_BROKR": "", "FOREBAYS": "x"}, home=tmp_path).broker == ""


def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone(tmp_path: Path) -> None:
    address = "tcp://10.0.0.1:8000"
    names = ("SERVICE_HOST", "PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR", "REDIS_SERVICE_PORT", "REDIS_PORT_6379_TCP")
    Settings.load({f"FOREBAY_{name}": address for name in names}, home=tmp_path)


def test_the_home_in_a_folder_above_is_found_and_its_config_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Settings.load({}).home == below / ".forebay"
    (tmp_path / ".forebay").mkdir()
    (tmp_path / "forebay.toml").write_text("torch_threads = 3")
    found = Settings.load({})
    assert (found.home, found.torch_threads) == (tmp_path / ".forebay", 3)
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / ".forebay").stat().st_uid + 1)
    assert Settings.load({}).home == below / ".forebay"


@pytest.mark.parametrize("text", ["lease_s = ", "\x00", "[queues", "lease_s = 1\nlease_s = 2"])
def test_a_file_that_is_no_toml_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read .*some\.toml"):
        Settings.load({}, home=tmp_path, config=config(tmp_path, text))


def test_a_file_that_was_asked_for_and_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read .*absent\.toml"):
        Settings.load({}, home=tmp_path, config=tmp_path / "absent.toml")


def test_a_folder_that_the_user_may_not_enter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root, as which tests may run, is let in everywhere
    with pytest.raises(InvalidInput, match=r"may not look for .*forebay\.toml: work in a folder that it may enter"):
        Settings.load({}, home=tmp_path)


def test_the_working_folders_file_wins_over_the_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    (home / "forebay.toml").write_text("torch_threads = 1")
    assert Settings.load({}, home=home).torch_threads == 1
    (here / "forebay.toml").write_text("torch_threads = 2")
    assert Settings.load({}, home=home).torch_threads == 2


def test_a_home_below_the_users_own_folder_has_its_file_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "forebay.toml").write_text("torch_threads = 3")
    settings = Settings.load({"FOREBAY_HOME": "~/stack"})
    assert (settings.home, settings.torch_threads) == (tmp_path / "stack", 3)


def test_without_anything_all_lies_below_dot_forebay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load({})
    assert settings.home == tmp_path / ".forebay"
    assert settings.database == f"sqlite:///{tmp_path}/.forebay/ledger.db"
    assert settings.blobs == f"file://{tmp_path}/.forebay/blobs"
    assert settings.queues == DEFAULT_QUEUES
    assert settings.broker == ""
    assert list(tmp_path.iterdir()) == []


def test_the_process_environment_is_what_is_read_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREBAY_TORCH_THREADS", "9")
    assert Settings.load().torch_threads == 9


@pytest.mark.parametrize(
    ("name", "running", "other"),
    [
        ("broker", "redis://:pw@127.0.0.1:7777/0", "redis://other"),
        ("database", "postgresql+psycopg://forebay@db/forebay", "sqlite:////tmp/other.db"),
        ("blobs", "s3://bucket/blobs", "file:///tmp/other"),
    ],
)
def test_whoever_names_none_uses_what_the_stack_in_its_home_uses(
    name: str, running: str, other: str, tmp_path: Path
) -> None:
    (tmp_path / STACK_FILE).write_text(json.dumps({name: running}))
    assert getattr(Settings.load({}, home=tmp_path), name) == running
    assert getattr(Settings.load({f"FOREBAY_{name.upper()}": other}, home=tmp_path), name) == other


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "not json"])
def test_a_stack_file_that_says_nothing_changes_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / STACK_FILE).write_text(content)
    settings = Settings.load({}, home=tmp_path)
    assert (settings.broker, settings.database) == ("", f"sqlite:///{tmp_path}/ledger.db")


def texts() -> st.SearchStrategy[dict[str, str]]:
    one_of = {name: st.sampled_from([text for text, _, _ in samples]) for name, samples in SAMPLES.items()}
    return st.fixed_dictionaries({}, optional=one_of)


@given(texts(), st.floats(min_value=1e-300, max_value=1e300))
def test_a_child_process_sees_what_its_parent_saw(flags: dict[str, str], lease: float) -> None:
    home = Path("/nowhere/home")
    for settings in (
        Settings.load({}, home=home, **flags),
        Settings.load({}, home=home, **(flags | {"lease_s": lease})),
    ):
        environment = settings.as_environment()
        assert all(isinstance(value, str) for value in environment.values())
        assert Settings.load(environment) == settings


def test_a_child_process_sees_declared_queues_and_no_file_gets_in_between(tmp_path: Path) -> None:
    large = "[queues.gpu-large]\ngpu = 2\ngpu_memory = '80GiB'\nkinds = ['batch', 'train']\nmax_queue_size = 9\n"
    tables = f"{large}[queues.cpu]\ncpu = 4\n"
    parent = Settings.load({}, home=tmp_path, config=config(tmp_path, tables), allowed_python_models=())
    assert parent.queue("gpu-large").capacity.gpu_memory == 80 * 2**30
    (tmp_path / "forebay.toml").write_text("allowed_python_models = ['os']\ntorch_threads = 7\n")
    child = Settings.load(parent.as_environment())
    assert child == parent
    assert child.allowed_python_models == ()


def test_an_unknown_queue_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no queue is called 'tpu'; there are cpu, gpu"):
        Settings.load({}, home=tmp_path).queue("tpu")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://user:p@w/:x@host/0", "redis://user:***@host/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("postgresql+psycopg://u:pw@h:5432/d", "postgresql+psycopg://u:***@h:5432/d"),
        ("postgresql+psycopg://h/d?password=pw&x=1", "postgresql+psycopg://h/d?password=***&x=1"),
        ("sqlite:////a@b:c/l.db", "sqlite:////a@b:c/l.db"),
        ("redis://:pw@[half", "redis://:***@[half"),
        ("", ""),
    ],
)
def test_a_password_is_masked_and_nothing_else_is(url: str, masked: str) -> None:
    assert mask_password(url) == masked


@given(st.text())
def test_any_text_is_a_positive_finite_duration_or_refused(text: str) -> None:
    try:
        value = seconds(text)
    except InvalidInput:
        return
    assert 0 < value < float("inf")


def test_loading_changes_neither_the_environment_nor_the_disk(tmp_path: Path) -> None:
    before = dict(os.environ)
    Settings.load(home=tmp_path / "new")
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


def test_a_machine_serves_remote_queues_only_where_an_endpoint_is_allowed() -> None:
    without = Settings.load({})
    allowed = Settings.load({"FOREBAY_ALLOWED_ENDPOINTS": "http://gpu7:8000/v1"})
    names = [{queue.name for queue in settings.served_by_default(0)} for settings in (without, allowed)]
    assert names[1] - names[0] == {"remote"}
    assert {"cpu", "train"} <= names[0]
    assert "gpu" in {queue.name for queue in allowed.served_by_default(1)} - names[1]
