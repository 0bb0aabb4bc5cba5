"""docker-compose.yml, .env.example, the Dockerfile and CI's workflow, checked without running them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from forebay.contract.settings import SETTINGS
from support.command_lines import parse

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SECRET = re.compile(r"PASSWORD|AUTH|SECRET|TOKEN|KEY")


def variables(text: str) -> set[str]:
    """The names in ${NAME}, ${NAME:-default} and ${NAME:?message}; a doubled dollar is no variable."""
    return set(re.findall(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)", text))


def our_commands() -> list[tuple[str, list[str]]]:
    """Every command line of the image: what a service runs, and what its health check runs."""
    lines = [(name, service["command"]) for name, service in OURS.items()]
    for name, service in OURS.items():
        test = service.get("healthcheck", {}).get("test")
        if test:
            assert test[:2] == ["CMD", "forebay"], f"{name}: {test}"
            lines.append((f"{name}-health", test[2:]))
    return lines


@pytest.mark.parametrize(
    ("file", "schema"), [("docker-compose.yml", "compose-spec"), (".github/workflows/ci.yml", "github-workflows")]
)
def test_the_file_follows_its_schema(file: str, schema: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*check, str(ROOT / file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_names_no_version() -> None:
    assert "version" not in COMPOSE


def test_hooks_and_workflow_run_what_a_developer_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split()[-1] for hook in hooks] == ["lint", "type"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["checks"]["steps"]]


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in our_commands()])
def test_every_command_is_one_the_cli_takes(words: list[str]) -> None:
    parse(words)


def test_a_command_the_cli_does_not_know_is_caught() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["worker", "--no-such-option"])


def test_every_forebay_variable_is_a_setting() -> None:
    used = {name for service in OURS.values() for name in service["environment"] if name.startswith("FOREBAY_")}
    assert used
    assert used <= {setting.variable for setting in SETTINGS.values()}


def test_passwords_come_from_the_environment_and_have_no_default() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{name} is {value}"
    for password in re.findall(r"://[^:@/\s]*:(\$\{[^}]*\}|[^@\s]+)@", TEXT):
        assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", password), password
    for name in filter(SECRET.search, variables(TEXT)):
        assert not re.search(rf"\$\{{{name}:?-", TEXT), f"{name} has a default"


def test_no_password_is_on_a_command_line() -> None:
    for name, service in SERVICES.items():
        asked = [service.get("command", []), service.get("healthcheck", {}).get("test", [])]
        assert not [words for words in variables(str(asked)) if SECRET.search(words)], name


def test_redis_takes_its_password_from_its_environment(tmp_path: Path) -> None:
    """The service's command, with an entry point that shows what it is given."""
    entry = tmp_path / "docker-entrypoint.sh"
    entry.write_text('#!/bin/sh\necho "$@"\ncat\n')
    entry.chmod(0o700)
    command = [word.replace("$$", "$") for word in SERVICES["redis"]["command"]]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDISCLI_AUTH": "secret"}
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == "redis-server -"
    assert {"requirepass secret", "maxmemory-policy noeviction", "appendonly yes"} <= set(told)


def test_every_service_has_limits_of_memory_and_processes() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"\d+g|\$\{[A-Z_]+:-\d+g\}", service["mem_limit"]), name
        assert service["pids_limit"] > 0, name


def test_the_example_environment_names_every_variable_and_no_other() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    offered = dict(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", example, flags=re.MULTILINE))
    assert set(offered) == variables(TEXT)
    assert not {name for name, value in offered.items() if SECRET.search(name) and value}


def test_a_gpu_worker_is_asked_for_and_reserves_its_devices() -> None:
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert not [name for name, service in SERVICES.items() if name != "worker-gpu" and "deploy" in service]


def test_every_service_has_a_health_check_or_runs_once() -> None:
    for name, service in SERVICES.items():
        runs_once = service["restart"] == "no"
        assert runs_once != ("healthcheck" in service), name


def test_what_a_service_waits_for_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            runs_once = SERVICES[other]["restart"] == "no"
            condition = "service_completed_successfully" if runs_once else "service_healthy"
            assert wait["condition"] == condition, f"{name} waits for {other}"


def test_only_http_and_the_dashboard_are_published_and_those_on_loopback() -> None:
    assert [(name, service["ports"]) for name, service in SERVICES.items() if "ports" in service] == [
        ("dashboard", ["127.0.0.1:5555:5555"]),
        ("api", ["127.0.0.1:8000:8000"]),
    ]


def test_every_service_has_a_read_only_root_and_only_declared_volumes() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"]), name


def test_the_image_does_not_run_as_root() -> None:
    final = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)[-1]
    users = re.findall(r"^USER\s+(\S+)", final, flags=re.MULTILINE)
    assert users, "the final stage names no user"
    assert users[-1].partition(":")[0] not in ("root", "0")
    assert 'ENTRYPOINT ["forebay"]' in final


def test_every_pin_has_the_hashes_of_its_files() -> None:
    pins, hashed = ((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "constraints-hashes.txt"))
    blocks = re.findall(r"^(\S+==\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", hashed, re.MULTILINE)
    assert [pin for pin, _ in blocks] == [line for line in pins.splitlines() if not line.startswith("#")], (
        "run .ci/hashes.py after a change of constraints.txt"
    )
    assert sum(block.count("--hash") for _, block in blocks) == hashed.count("--hash")


def test_an_image_that_needs_torch_gets_it_before_the_packages_that_are_held_to_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def needs_torch(extra: str) -> bool:
        nested = [name for each in extras[extra] for name in re.findall(r"^forebay\[(.+)\]$", each)]
        below = [one for names in nested for one in names.split(",")]
        return any(re.match(r"(torch|sentence-transformers)\b(?!metrics)", each) for each in extras[extra]) or any(
            map(needs_torch, below)
        )

    [listed] = re.findall(r"^ +(\*,worker,.*)\) \\$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {part.strip("*,") for part in listed.split("|")} == {extra for extra in extras if needs_torch(extra)}


def test_the_image_gets_everything_the_wheel_is_built_from() -> None:
    copied = set(re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    copied = {word for line in copied for word in line.split()}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    links = {link.name for link in (ROOT / "src" / "forebay").iterdir() if link.is_symlink()}
    assert links | {"src", "pyproject.toml", "README.md", "constraints.txt", "constraints-hashes.txt"} == copied
    assert copied == set(re.findall(r"^!(\S+)$", ignored, re.MULTILINE))
