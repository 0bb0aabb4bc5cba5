"""Every setting, declared once. Precedence: flag > environment > forebay.toml > default.

Nothing else in Forebay reads the environment. A part that starts another process passes its settings on with
`Settings.as_environment`, so both see the same values whatever they were read from.
"""

# ruff: noqa: RUF009 - every call of _setting makes a field of its own
from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from forebay.contract.errors import InvalidInput
from forebay.contract.job import claimant
from forebay.contract.queues import DEFAULT_QUEUES, QueueSpec
from forebay.contract.setting_kinds import (
    BlobStore,
    Broker,
    Bytes,
    Database,
    Device,
    Folder,
    Kind,
    Names,
    Places,
    Port,
    Queues,
    Seconds,
    Text,
    between,
    one_of,
)

STACK_FILE = "stack.json"
ALMOST = 0.9  # of difflib's similarity: a name with a letter wrong or missing
CONFIG_FILE = "forebay.toml"
PREFIX = "FOREBAY_"  # of every setting's environment variable


def _of_stack(name: str, otherwise: Callable[[Path], str]) -> Callable[[Path], str]:
    """This setting as the stack has it that runs in the home: who is not told otherwise uses the same ledger, queue and blobs."""

    def default(home: Path) -> str:
        try:
            return str(json.loads((home / STACK_FILE).read_text(encoding="utf-8"))[name])
        except (OSError, ValueError, KeyError, TypeError):
            return otherwise(home)

    return default


def _setting(default: Any, help: str, without: str = "") -> Any:
    """A field of Settings; `default` is a value, or a function of the home folder. `without` says in words what holds then."""
    return field(metadata={"default": default, "help": help, "without": without})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its value. Build one with `Settings.load`; durations are seconds, sizes bytes."""

    home: Folder = _setting(Path(".forebay"), "folder with the embedded stack's data; found in the folders above too")
    broker: Broker = _setting(
        _of_stack("broker", lambda _: ""), "Redis or Valkey address", "the embedded stack's in `home`"
    )
    database: Database = _setting(
        _of_stack("database", lambda home: f"sqlite:///{home / 'ledger.db'}"),
        "the ledger, in SQLite or PostgreSQL",
        "`sqlite:///<home>/ledger.db`",
    )
    blobs: BlobStore = _setting(
        _of_stack("blobs", lambda home: (home / "blobs").as_uri()),
        "folder or fsspec URL for models and large payloads",
        "`file://<home>/blobs`",
    )
    queues: Queues = _setting(
        DEFAULT_QUEUES, "queues with their capacities", ", ".join(f"`{name}`" for name in DEFAULT_QUEUES)
    )
    lease_s: Seconds = _setting(30.0, "how long a claim holds without a heartbeat")
    heartbeat_s: Seconds = _setting(10.0, "how often a worker renews its leases")
    sweep_s: Seconds = _setting(5.0, "how often each worker sweeps the ledger")
    resend_s: Seconds = _setting(10.0, "age at which a job whose queue is empty in Redis is sent again")
    retention_s: Seconds = _setting(30 * 86400.0, "how long finished jobs are kept")
    blob_grace_s: Seconds = _setting(
        86400.0, "how long a blob that nothing refers to is kept; no submit may take longer"
    )
    shutdown_grace_s: Seconds = _setting(45.0, "time a worker that is told to stop has for its last batch")
    load_timeout_s: Seconds = _setting(1800.0, "how long loading one model version may take")
    train_timeout_s: Seconds = _setting(1800.0, "how long a trainer may be silent before it is killed")
    node_wait_s: Seconds = _setting(600.0, "how long a run on several machines waits for the others")
    rendezvous_host: Text = _setting("", "this machine's address for the other machines of a run", "the machine's name")
    store_timeout_s: Seconds = _setting(600.0, "how long reading or writing a piece of a batch's files may take")
    outage_timeout_s: Seconds = _setting(600.0, "how long results wait for the ledger or a full blob store")
    max_inline_bytes: Bytes = _setting(64 * 2**10, "payloads above this go to the blob store")
    max_payload_bytes: Bytes = _setting(64 * 2**20, "inputs above this are refused")
    model_cache_bytes: Bytes = _setting(
        0, "budget for the models that one child holds", "half the memory; 85 % of a GPU's"
    )
    child_memory_bytes: Bytes = _setting(
        0, "memory that one child may take for itself", "80 % of the machine's or container's"
    )
    torch_threads: Annotated[int, between(0, 1024)] = _setting(0, "torch threads per child", "cores / children")
    preload: Names = _setting(("torch",), "modules that a child imports before its first job")
    device: Device = _setting("cpu", "the device of one worker process", "set by `forebay worker`")
    worker_name: Text = _setting(
        "", "the name of one worker process", "`cpu@host`, `gpu0@host`, `train@host`, set by `forebay worker`"
    )
    worker_run: Text = _setting("", "which start of that process it is", "the process sets it itself")
    worker_queues: Names = _setting(
        (), "the queues that one worker process claims jobs from", "set by `forebay worker`"
    )
    allowed_python_models: Names = _setting((), "import paths that `python` and `safetensors` models may use")
    allowed_hosts: Names = _setting(
        (), "hosts that URLs of inputs may name though their addresses are private, or cannot be checked; `*` is all"
    )
    allowed_endpoints: Names = _setting(
        (), "URLs that `openai` models may be at, each with the variables of the keys that may be sent there"
    )
    dashboard_host: Text = _setting("127.0.0.1", "address the dashboard listens on")
    dashboard_port: Port = _setting(
        5555, "the dashboard's port; 0 takes a free one, and so does `forebay up` when it is in use"
    )
    api_host: Text = _setting("127.0.0.1", "address `forebay serve` listens on")
    api_port: Port = _setting(
        8000, "the port of `forebay serve`; 0 takes a free one, and so does `forebay up` when it is in use"
    )
    api_origins: Names = _setting((), "origins whose pages may send requests, such as `https://app.example`")
    api_max_body_bytes: Bytes = _setting(64 * 2**20, "requests with a larger body are refused")
    api_max_file_bytes: Bytes = _setting(200 * 2**20, "uploads of files that are larger are refused")
    api_max_batch_lines: Annotated[int, between(1, 10_000_000)] = _setting(
        50_000, "batches over HTTP of files with more requests are refused"
    )
    api_paths: Places = _setting(
        (), "folders, and beginnings of URLs, that requests over HTTP may have jobs read from and write to"
    )
    metrics_host: Text = _setting("127.0.0.1", "address workers serve `/metrics`, `/healthz` and `/readyz` on")
    metrics_port: Port = _setting(
        0, "port of a machine's first worker; the next worker takes the next port", "workers do not listen"
    )
    operators: Names = _setting((), "which of the dashboard's users may cancel and retry jobs")
    log_level: Annotated[str, one_of("debug", "info", "warning", "error")] = _setting(
        "info", "the lowest level of the lines that are written to the log"
    )

    @classmethod
    def load(
        cls, environment: Mapping[str, str] | None = None, *, config: Path | None = None, **flags: Any
    ) -> Settings:
        """Read all settings; `flags` are by setting name and None means not given.

        `config` is the forebay.toml to read; by default the one in the working folder, else beside `home`, else in it.
        Raises InvalidInput naming the setting, where it came from and its value. A name that no setting has is refused too, and
        so is a variable that is almost one of ours; any other that begins so may be somebody else's, as Kubernetes sets them.
        """
        env = os.environ if environment is None else environment
        _refuse_unknown("setting", flags, SETTINGS)
        known = [setting.variable for setting in SETTINGS.values()]
        given = [name for name, value in env.items() if name.startswith(PREFIX) and value]
        _refuse_unknown(
            "setting's variable", [n for n in given if get_close_matches(n.upper(), known, 1, ALMOST)], known
        )
        try:
            default_home = _nearest_home()
            home = (_given("home", flags, env, {}) or default_home).expanduser()
            file = _read_config(config, *(folder / CONFIG_FILE for folder in (Path.cwd(), home.parent, home)))
        except PermissionError as error:
            raise InvalidInput(
                f"this user may not look for {error.filename}: work in a folder that it may enter"
            ) from error
        values = {name: _given(name, flags, env, file) for name in SETTINGS}
        home = (values["home"] or default_home).expanduser().absolute()
        defaults = {name: setting.default_in(home) for name, setting in SETTINGS.items() if values[name] is None}
        return cls(**values | defaults | {"home": home})

    def as_environment(self) -> dict[str, str]:
        """The settings as environment variables."""
        return {setting.variable: setting.kind.dump(getattr(self, name)) for name, setting in SETTINGS.items()}

    def child_environment(self, **more: str) -> dict[str, str]:
        """The environment for a process started from here: this one's, every setting, and `more` on top."""
        # Torch's threads wait actively by default, and so take the cores from those they wait for as soon as a machine runs
        # more than one process of ours: a step of a small network then takes twenty times as long.
        return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | self.as_environment() | more

    @property
    def alive_s(self) -> float:
        """How old the last heartbeat of a worker that lives may be."""
        return 3 * self.heartbeat_s

    @property
    def claimant(self) -> str:
        """Who claims jobs: this start of the worker process, for another may have its name."""
        return claimant(self.worker_name, self.worker_run) if self.worker_run else self.worker_name

    @property
    def trains_only(self) -> bool:
        """Whether this worker process serves training queues and no others."""
        served = [self.queues[name] for name in self.worker_queues if name in self.queues]
        return bool(served) and all(queue.trains for queue in served)

    @property
    def remote_only(self) -> bool:
        """Whether this worker process serves remote queues and no others."""
        served = [self.queues[name] for name in self.worker_queues if name in self.queues]
        return bool(served) and all(queue.remote for queue in served)

    def served_by_default(self, gpus: int) -> list[QueueSpec]:
        """The queues that workers of a machine with so many GPUs serve when none are named; remote ones need an endpoint."""
        queues = self.queues.values()
        return [q for q in queues if q.capacity.gpu <= gpus and (self.allowed_endpoints or not q.remote)]

    def queue(self, name: str) -> QueueSpec:
        """The declared queue of this name; InvalidInput, listing those declared, when there is none."""
        if name not in self.queues:
            raise InvalidInput(f"no queue is called {name!r}; there are {', '.join(self.queues)}")
        return self.queues[name]


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of Settings, as it is read. Its environment variable is FOREBAY_ and its name."""

    variable: str
    kind: Kind
    default: Any
    help: str
    without: str

    def default_in(self, home: Path) -> Any:
        """Its value when nothing is given, with this home folder."""
        return self.default(home) if callable(self.default) else self.default


_KINDS = {name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()}
SETTINGS: Mapping[str, Setting] = {
    field.name: Setting(f"{PREFIX}{field.name.upper()}", _KINDS[field.name], **field.metadata)
    for field in fields(Settings)
}


def inherited() -> dict[str, str]:
    """The environment that a process started now would inherit."""
    return dict(os.environ)


def _nearest_home() -> Path:
    """The home in the working folder or in one above it; where there is none, the one that would be made here.

    Another user's does not count: whoever may write to a folder above could have put it there.
    """
    name: Path = SETTINGS["home"].default
    for folder in (Path.cwd(), *Path.cwd().parents):
        with suppress(OSError):
            if (folder / name).stat().st_uid == os.getuid():
                return folder / name
    return name


def _refuse_unknown(what: str, names: Iterable[str], known: Collection[str], where: str = "") -> None:
    unknown = min(set(names) - set(known), default=None)
    if unknown is not None:
        alike = unknown.upper() if what.endswith("variable") else unknown
        nearest = get_close_matches(alike, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
        raise InvalidInput(f"{where}no {what} is called {unknown!r}; {hint}")


def _given(name: str, flags: Mapping[str, Any], env: Mapping[str, str], file: Mapping[str, Any]) -> Any:
    """The setting's value from the first source that has one, or None."""
    setting = SETTINGS[name]
    variable = env.get(setting.variable) or None
    for source, value in (("flag", flags.get(name)), (setting.variable, variable), (CONFIG_FILE, file.get(name))):
        if value is None:
            continue
        try:
            return setting.kind.parse(value)
        except InvalidInput as error:
            raise InvalidInput(f"setting {name} (from {source}): {error}") from error
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"setting {name} (from {source}): {value!r} is not valid: {error}") from error
    return None


def _read_config(given: Path | None, *places: Path) -> Mapping[str, Any]:
    path = given or next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    _refuse_unknown("setting", content, SETTINGS, f"{path}: ")
    return content
