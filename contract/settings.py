"""One frozen object with every setting, read from one table: flag > environment > forebay.toml > default.

Nothing else in Forebay reads the environment. A part that starts another process hands its settings on with
`Settings.as_environment`, so both see the same values whatever they were read from.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forebay.contract.errors import InvalidInput
from forebay.contract.queues import DEFAULT_QUEUES, QueueSpec, parse_bytes
from forebay.contract.references import shown

STACK_FILE = "stack.json"
CONFIG_FILE = "forebay.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its value. Build one with `Settings.load`; durations are seconds, sizes bytes."""

    home: Path
    broker: str
    database: str
    blobs: str
    queues: Mapping[str, QueueSpec]
    lease_s: float
    heartbeat_s: float
    sweep_s: float
    resend_s: float
    retention_s: float
    shutdown_grace_s: float
    load_timeout_s: float
    train_timeout_s: float
    node_wait_s: float
    rendezvous_host: str
    store_timeout_s: float
    outage_timeout_s: float
    max_inline_bytes: int
    max_payload_bytes: int
    model_cache_bytes: int
    child_memory_bytes: int
    torch_threads: int
    device: str
    worker_name: str
    worker_queues: tuple[str, ...]
    allowed_python_models: tuple[str, ...]
    dashboard_host: str
    dashboard_port: int
    metrics_host: str
    metrics_port: int
    operators: tuple[str, ...]
    log_level: str

    @classmethod
    def load(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        config: Path | None = None,
        **flags: Any,
    ) -> Settings:
        """Read all settings; `flags` are by setting name and None means not given.

        `config` is the forebay.toml to read; by default the one in the working folder, else the one in `home`.
        Raises InvalidInput naming the setting, where it came from and its value.
        """
        env = os.environ if environment is None else environment
        unknown = sorted(set(flags) - set(TABLE))
        if unknown:
            raise InvalidInput(f"no setting is called {unknown[0]!r}; there are {', '.join(TABLE)}")
        home = _pick("home", flags, env, {}) or Path(".forebay")
        file = _read_config(config, Path.cwd() / CONFIG_FILE, Path(home).expanduser() / CONFIG_FILE)
        values = {name: _pick(name, flags, env, file) for name in TABLE}
        home = Path(values["home"] or ".forebay").expanduser().absolute()
        for name, setting in TABLE.items():
            if values[name] is None:
                values[name] = setting.default(home)
        return cls(**(values | {"home": home}))

    def as_environment(self) -> dict[str, str]:
        """The settings as environment variables."""
        return {s.variable: s.show(getattr(self, name)) for name, s in TABLE.items()}

    def child_environment(self, **more: str) -> dict[str, str]:
        """The environment for a process started from here: this one's, every setting, and `more` on top."""
        # Threads of torch that wait actively take the cores from those they wait for, as soon as a machine runs more than one
        # process of ours: a step of a small network then takes twenty times as long.
        return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | self.as_environment() | more

    def public(self) -> dict[str, Any]:
        """The settings for a person's eyes: passwords in URLs are masked."""
        shown = {name: s.show(getattr(self, name)) for name, s in TABLE.items()}
        return shown | {name: mask_password(shown[name]) for name in ("broker", "database", "blobs")}

    @property
    def trains_only(self) -> bool:
        """Whether this worker process serves training queues and no others."""
        served = [self.queues[name] for name in self.worker_queues if name in self.queues]
        return bool(served) and all(queue.trains for queue in served)

    def queue(self, name: str) -> QueueSpec:
        """The declared queue of this name; InvalidInput lists those there are."""
        if name not in self.queues:
            raise InvalidInput(f"no queue is called {name!r}; there are {', '.join(self.queues)}")
        return self.queues[name]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: its environment variable, how text becomes its value, and what holds without any."""

    variable: str
    parse: Callable[[Any], Any]
    default: Callable[[Path], Any]
    help: str
    show: Callable[[Any], str] = str


def mask_password(url: str) -> str:
    """The URL with its password replaced by ***, also where it is none or the password holds what belongs escaped."""
    url = re.sub(r"://([^:@/]*):.*@", r"://\1:***@", url, flags=re.DOTALL)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url)


def _pick(name: str, flags: Mapping[str, Any], env: Mapping[str, str], file: Mapping[str, Any]) -> Any:
    setting = TABLE[name]
    for source, value in (
        ("flag", flags.get(name)),
        (setting.variable, env.get(setting.variable) or None),
        (CONFIG_FILE, file.get(name)),
    ):
        if value is None:
            continue
        try:
            return setting.parse(value)
        except InvalidInput as error:
            raise InvalidInput(f"setting {name} (from {source}): {error}") from error
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"setting {name} (from {source}): {value!r} will not do: {error}") from error
    return None


def _read_config(given: Path | None, *places: Path) -> Mapping[str, Any]:
    path = given or next((p for p in places if p.is_file()), None)
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    unknown = sorted(set(content) - set(TABLE))
    if unknown:
        raise InvalidInput(f"{path}: no setting is called {unknown[0]!r}; there are {', '.join(TABLE)}")
    return content


def _embedded_broker(home: Path) -> str:
    """The address of the queue that `forebay up` started in this home, or '' when none did."""
    try:
        return str(json.loads((home / STACK_FILE).read_text(encoding="utf-8"))["broker"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _broker(value: Any) -> str:
    if not str(value).startswith(("redis://", "rediss://")) or not _is_url(str(value)):
        raise InvalidInput(
            f"{mask_password(str(value))!r} is no Redis address; write redis://host:6379/0 or rediss://…"
        )
    return str(value)


def _is_url(text: str) -> bool:
    try:
        port = urlsplit(text).port
    except ValueError:  # whose text would show the password
        return False
    return port is None or port > 0


def _database(value: Any) -> str:
    text = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", str(value))
    if not text.startswith(("sqlite:///", "postgresql+psycopg://")) or not _is_url(text):
        raise InvalidInput(
            f"{mask_password(str(value))!r} is no ledger we know; write sqlite:///path/ledger.db or postgresql://user@host/name"
        )
    return text


def _blobs(value: Any) -> str:
    text = str(value)
    return text if "://" in text else Path(text).expanduser().absolute().as_uri()


_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(value: Any) -> float:
    """`30`, `"45s"`, `"15m"`, `"12h"` or `"30d"` in seconds; InvalidInput otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(ms|s|m|h|d|)\s*", str(value), flags=re.ASCII)
    duration = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < duration < math.inf:
        raise InvalidInput(f"{value!r} is no duration; write seconds, or 45s, 15m, 12h, 30d")
    return duration


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(str(value))
        if not low <= number <= high:
            raise InvalidInput(f"{number} is not between {low} and {high}")
        return number

    return parse


def _device(value: Any) -> str:
    if not re.fullmatch(r"cpu|cuda:\d+", str(value)):
        raise InvalidInput(f"{value!r} is no device; write cpu or cuda:0")
    return str(value)


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    if not all(isinstance(part, str) for part in parts):
        raise InvalidInput(f"{value!r} is no list of names")
    return tuple(p.strip() for p in parts if p.strip())


def _show_names(names: tuple[str, ...]) -> str:
    return ",".join(names) or ","  # an empty variable would count as not given


def _queues(value: Any) -> Mapping[str, QueueSpec]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not value:
        raise InvalidInput(
            f"{shown(value)} will not do: write tables such as [queues.gpu-large] with gpu = 1, gpu_memory = '80GiB'"
        )
    return {name: QueueSpec.parse(name, spec) for name, spec in value.items()}


def _show_queues(queues: Mapping[str, QueueSpec]) -> str:
    return json.dumps({name: queue.as_dict() for name, queue in queues.items()})


def _choice(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if str(value).lower() not in words:
            raise InvalidInput(f"{value!r} is none of {', '.join(words)}")
        return str(value).lower()

    return parse


TABLE: dict[str, Setting] = {
    "home": Setting("FOREBAY_HOME", Path, lambda _: None, "folder with the embedded stack's data"),
    "broker": Setting("FOREBAY_BROKER", _broker, _embedded_broker, "Redis or Valkey address"),
    "database": Setting(
        "FOREBAY_DATABASE", _database, lambda h: f"sqlite:///{h / 'ledger.db'}", "the ledger's address"
    ),
    "blobs": Setting(
        "FOREBAY_BLOBS", _blobs, lambda h: (h / "blobs").as_uri(), "folder or fsspec URL for large payloads"
    ),
    "queues": Setting("FOREBAY_QUEUES", _queues, lambda _: DEFAULT_QUEUES, "queues with capacities", _show_queues),
    "lease_s": Setting("FOREBAY_LEASE_S", seconds, lambda _: 30.0, "how long a claim holds without a heartbeat"),
    "heartbeat_s": Setting("FOREBAY_HEARTBEAT_S", seconds, lambda _: 10.0, "how often a worker renews its leases"),
    "sweep_s": Setting("FOREBAY_SWEEP_S", seconds, lambda _: 5.0, "how often each worker sweeps the ledger"),
    "resend_s": Setting(
        "FOREBAY_RESEND_S", seconds, lambda _: 10.0, "age at which a job with no message is sent again"
    ),
    "retention_s": Setting("FOREBAY_RETENTION", seconds, lambda _: 30 * 86400.0, "how long finished jobs are kept"),
    "shutdown_grace_s": Setting(
        "FOREBAY_SHUTDOWN_GRACE", seconds, lambda _: 45.0, "what a worker that is told to stop has for its last batch"
    ),
    "load_timeout_s": Setting(
        "FOREBAY_LOAD_TIMEOUT", seconds, lambda _: 1800.0, "how long loading one model version may take"
    ),
    "train_timeout_s": Setting(
        "FOREBAY_TRAIN_TIMEOUT",
        seconds,
        lambda _: 1800.0,
        "how long a trainer may say nothing before it counts as hung",
    ),
    "node_wait_s": Setting(
        "FOREBAY_NODE_WAIT",
        seconds,
        lambda _: 600.0,
        "how long a training run waits for the machines that it asked for",
    ),
    "rendezvous_host": Setting(
        "FOREBAY_RENDEZVOUS_HOST", str, lambda _: "", "this machine's address for the others of a run; '': its name"
    ),
    "store_timeout_s": Setting(
        "FOREBAY_STORE_TIMEOUT",
        seconds,
        lambda _: 600.0,
        "how long reading or writing a piece of a batch's files may take",
    ),
    "outage_timeout_s": Setting(
        "FOREBAY_OUTAGE_PATIENCE", seconds, lambda _: 600.0, "how long results wait for the ledger or a full blob store"
    ),
    "max_inline_bytes": Setting(
        "FOREBAY_MAX_INLINE_BYTES", parse_bytes, lambda _: 65536, "payloads above this go to the blob store"
    ),
    "max_payload_bytes": Setting(
        "FOREBAY_MAX_PAYLOAD_BYTES", parse_bytes, lambda _: 8 * 2**20, "payloads above this are refused"
    ),
    "model_cache_bytes": Setting(
        "FOREBAY_MODEL_CACHE_BYTES",
        parse_bytes,
        lambda _: 0,
        "budget for loaded models per child; 0: a share of the device",
    ),
    "child_memory_bytes": Setting(
        "FOREBAY_CHILD_MEMORY_BYTES", parse_bytes, lambda _: 0, "memory one child may take for itself; 0: no limit"
    ),
    "torch_threads": Setting(
        "FOREBAY_TORCH_THREADS", _whole(0, 1024), lambda _: 0, "torch threads per child; 0: cores / children"
    ),
    "device": Setting("FOREBAY_DEVICE", _device, lambda _: "cpu", "the device of one worker process: cpu, cuda:0, …"),
    "worker_name": Setting("FOREBAY_WORKER_NAME", str, lambda _: "", "the name of one worker process; '': device@host"),
    "worker_queues": Setting(
        "FOREBAY_WORKER_QUEUES",
        _names,
        lambda _: (),
        "the queues that one worker process claims jobs from; none: any",
        _show_names,
    ),
    "allowed_python_models": Setting(
        "FOREBAY_ALLOWED_PYTHON_MODELS",
        _names,
        lambda _: (),
        "import paths that python and safetensors models may use",
        _show_names,
    ),
    "dashboard_host": Setting("FOREBAY_DASHBOARD_HOST", str, lambda _: "127.0.0.1", "where the dashboard listens"),
    "dashboard_port": Setting(
        "FOREBAY_DASHBOARD_PORT", _whole(0, 65535), lambda _: 5555, "the dashboard's port; 0: any"
    ),
    "metrics_host": Setting(
        "FOREBAY_METRICS_HOST", str, lambda _: "127.0.0.1", "where workers serve /metrics, /healthz and /readyz"
    ),
    "metrics_port": Setting(
        "FOREBAY_METRICS_PORT",
        _whole(0, 65535),
        lambda _: 0,
        "port of the first worker's, the next worker takes the next one; 0: none",
    ),
    "operators": Setting(
        "FOREBAY_OPERATORS",
        _names,
        lambda _: (),
        "who of the dashboard's users may cancel and retry jobs",
        _show_names,
    ),
    "log_level": Setting(
        "FOREBAY_LOG_LEVEL", _choice("debug", "info", "warning", "error"), lambda _: "info", "log level"
    ),
}
