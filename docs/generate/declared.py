"""The pages of what is declared in one place: settings and metrics."""

from __future__ import annotations

from typing import Any

from docs.generate.text import listed, sentence

from forebay.contract.metrics.declared import API, LEDGER, PREFIX, WORKER, Metric
from forebay.contract.queues import format_bytes, parse_bytes
from forebay.contract.setting_kinds import seconds
from forebay.contract.settings import SETTINGS, Setting

DURATIONS = {86400: "d", 3600: "h", 60: "m", 1: "s"}


def settings() -> str:
    """The page of settings."""
    sections = [_setting(name, setting) for name, setting in SETTINGS.items()]
    return "\n\n".join([SETTINGS_HEAD.strip(), *sections])


def metrics() -> str:
    """The page of metrics."""
    parts = [("Of workers", WORKER), ("Of the ledger", LEDGER), ("Of HTTP", API)]
    text = METRICS_HEAD.strip()
    for title, part in parts:
        text += f"\n\n## {title}"
        for name, metric in part.items():
            text += "\n\n" + _metric(name, metric)
    return text


def _setting(name: str, setting: Setting) -> str:
    lines = [f"## {name}", "", sentence(setting.help), ""]
    lines += [f"- Variable: `{setting.variable}`", f"- Value: {setting.kind.expected}"]
    lines += [f"- Default: {setting.without or _value(setting)}"]
    return "\n".join(lines)


def _value(setting: Setting) -> str:
    value: Any = setting.default
    if setting.kind.parse is seconds:
        unit = next(unit for unit in DURATIONS if value % unit == 0)
        return f"`{value / unit:g}{DURATIONS[unit]}`"
    if setting.kind.parse is parse_bytes:
        return f"`{format_bytes(value).replace(' ', '')}`"
    return f"`{setting.kind.dump(value)}`" if value != () else "none"


def _metric(name: str, metric: Metric) -> str:
    labels = (*(("worker",) if name in WORKER else ()), *metric.labels)
    lines = [f"### {PREFIX}{name}", "", metric.help, "", f"- Kind: {metric.kind}"]
    lines += [f"- Labels: {listed(labels)}"] if labels else []
    lines += [f"- Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}"] if metric.buckets else []
    return "\n".join(lines)


SETTINGS_HEAD = """
# Settings

Every setting of Forebay, for whoever runs it. A setting comes from an argument of `Settings.load` (an option of a command, where
it has one), an environment variable, `forebay.toml` or the default, in that order. An empty variable counts as not given.
[Settings and queues](../how-to/settings-and-queues.md) says where `forebay.toml` lies, and how queues are declared.
"""
METRICS_HEAD = """
# Metrics

Every metric of Forebay, for whoever writes alerts and panels. The unit is part of the name. A histogram has `_bucket`, `_sum` and
`_count`. The dashboard's `/metrics` shows the metrics of workers and of the ledger, a worker's `/metrics` its own, and
`forebay serve` those of HTTP. [Monitor it](../how-to/monitor.md) says how to scrape them.
"""
