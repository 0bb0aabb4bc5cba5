"""Metric names and what is written about them: the rules of the field, the page, Grafana, alerts and KEDA."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from forebay.contract.metrics.declared import API, LEDGER, METRICS, PREFIX, WORKER
from forebay.contract.metrics.exposition import api_families, expose, ledger_families, worker_families
from forebay.contract.metrics.statistics import Statistics

DOCS = Path(__file__).resolve().parents[3] / "docs"
UNITS = ("_seconds", "_bytes", "_ratio", "_total", "_rows", "_cores")
COUNTS = {"jobs", "queue_jobs", "queue_workers", "worker_children", "messages_held", "jobs_in_flight", "worker_up", "worker_info",
          "ledger_up", "http_requests_in_flight", "training_epoch", "training_loss", "training_rows_per_second",
          "model_drift_psi", "model_drifted_columns"}  # fmt: skip
NAME = re.compile(r"\b(?:forebay|flower)_[a-z0-9_]+")
BRACES = re.compile(r"(\b(?:forebay|flower)_[a-z0-9_]+)\{([^}]*)\}")
FLOWERS = {"flower_events_total", "flower_worker_online"}


def sample(name: str) -> dict[str, set[str]]:
    """The sample names of a metric with their labels."""
    metric = METRICS[name]
    labels = {*metric.labels, *(("worker",) if name in WORKER else ())}
    full = PREFIX + name
    if metric.kind != "histogram":
        return {full: labels}
    return {f"{full}_bucket": labels | {"le"}, f"{full}_sum": labels, f"{full}_count": labels}


SAMPLES = {full: labels for name in METRICS for full, labels in sample(name).items()}


def queries() -> Iterator[tuple[str, str]]:
    """Every PromQL expression in docs/monitoring, with where it stands."""
    grafana = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    for panel in grafana["panels"]:
        for target in panel.get("targets", []):
            yield f"grafana: {panel['title']}", target["expr"]
    for group in yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alerts: {rule['alert']}", rule["expr"]
    for trigger in yaml.safe_load((DOCS / "monitoring" / "keda.yml").read_text())["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]


def faults(query: str) -> list[str]:
    """What in a query does not exist: metrics, their labels, and labels that are grouped by."""
    wrong = [name for name in NAME.findall(query) if name not in SAMPLES and name not in FLOWERS]
    for name, matchers in BRACES.findall(query):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        wrong += [f"{name}{{{label}}}" for label in sorted(used - SAMPLES.get(name, used))]
    there = {label for name in NAME.findall(query) for label in SAMPLES.get(name, set())}
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        wrong += [f"by {label}" for label in (part.strip() for part in group.split(",")) if label not in there]
    if query.count("(") != query.count(")") or query.count("{") != query.count("}"):
        wrong.append("a bracket that is not closed")
    for name in re.findall(r"(?:rate|increase)\((\w+)", query):
        if not name.endswith(("_total", "_bucket", "_sum", "_count")):
            wrong.append(f"a rate of {name}, which is no counter")
    return wrong


@pytest.mark.parametrize("name", METRICS)
def test_a_name_says_its_unit_and_a_counter_that_it_is_one(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert name.endswith(UNITS) or name in COUNTS
    assert name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")
    assert metric.kind == "gauge" or name in {*WORKER, *API}


def test_what_is_exposed_parses_and_has_the_declared_names_and_labels() -> None:
    statistics = Statistics()
    for name, metric in {**WORKER, **API}.items():
        labels = [f'{label}\'s "value"\n' for label in metric.labels]
        if metric.kind == "counter":
            statistics.count(name, *labels, by=3)
        elif metric.kind == "gauge":
            statistics.set(name, 4, *labels)
        else:
            statistics.observe(name, metric.buckets[1], *labels, times=5)
    values = {name: {tuple(metric.labels): 1.0} for name, metric in LEDGER.items()}
    text = expose(
        [*ledger_families(values), *worker_families({"w1": (statistics, True)}), *api_families(statistics)]
    ).decode()
    seen: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation == METRICS[_named(family)].help
        for one in family.samples:
            seen.setdefault(one.name, set()).update(one.labels)
    assert seen == SAMPLES


def _named(family: Any) -> str:
    name: str = family.name.removeprefix(PREFIX)
    return f"{name}_total" if family.type == "counter" else name


def test_a_histograms_buckets_add_up() -> None:
    statistics = Statistics()
    for rows in (1, 2, 3, 5000):
        statistics.observe("batch_rows", rows, "digits", "1")
    text = expose(worker_families({"w1": (statistics, True)})).decode()
    buckets = re.findall(r'forebay_batch_rows_bucket\{le="([^"]+)".*\} (\S+)', text)
    assert buckets[0] == ("1.0", "1.0")
    assert [float(count) for _, count in buckets] == [1, 2, *[3] * 9, 4]
    assert buckets[-1][0] == "+Inf"


def test_a_silent_worker_keeps_its_counters_and_loses_its_gauges() -> None:
    statistics = Statistics()
    statistics.count("child_deaths_total", by=2)
    statistics.set("messages_held", 9)
    text = expose(worker_families({"w1": (statistics, False)})).decode()
    assert 'forebay_child_deaths_total{worker="w1"} 2.0' in text
    assert 'forebay_messages_held{worker="w1"}' not in text


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_what_a_query_names_exists(where: str, query: str) -> None:
    assert faults(query) == [], where


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("forebay_no_such_total", "forebay_no_such_total"),
        ("forebay_batch_rows", "forebay_batch_rows"),
        ('forebay_jobs{queue="x"}', "forebay_jobs{queue}"),
        ("sum by (queue) (forebay_jobs)", "by queue"),
        ("rate(forebay_queue_backlog_seconds[5m])", "a rate of forebay_queue_backlog_seconds, which is no counter"),
        ("sum (forebay_jobs", "a bracket that is not closed"),
    ],
)
def test_a_query_that_is_wrong_is_seen(query: str, fault: str) -> None:
    assert faults(query) == [fault]


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    (group,) = yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) >= 10
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


def test_the_grafana_dashboard_can_be_imported_and_nothing_overlaps() -> None:
    dashboard = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_keda_scales_on_how_long_jobs_wait() -> None:
    scaled = yaml.safe_load((DOCS / "monitoring" / "keda.yml").read_text())
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    first = scaled["spec"]["triggers"][0]
    assert first["type"] == "prometheus"
    assert "forebay_queue_backlog_seconds" in first["metadata"]["query"]
    assert {"serverAddress", "query", "threshold"} <= set(first["metadata"])
