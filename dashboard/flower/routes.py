"""Our routes. Flower's own are in flower.urls; where both have one, ours is found first."""

from __future__ import annotations

from tornado.web import url

from forebay.dashboard.flower.probes import Health, Metrics, Ready
from forebay.dashboard.pages.actions import CancelJob, RetryJob
from forebay.dashboard.pages.base import STATIC, Assets, HomePage
from forebay.dashboard.pages.batch import BatchPage
from forebay.dashboard.pages.compare import ComparePage
from forebay.dashboard.pages.devices import DevicesPage
from forebay.dashboard.pages.job import JobPage
from forebay.dashboard.pages.lists import BatchesPage, JobsPage, TrainingPage
from forebay.dashboard.pages.models import ModelsPage
from forebay.dashboard.pages.overview import OverviewPage
from forebay.dashboard.pages.run import RunPage
from forebay.dashboard.pages.tune import TunePage
from forebay.dashboard.pages.version import VersionPage

JOB_ID = "([0-9a-f]{32})"
NAME, VERSION = "([A-Za-z0-9][A-Za-z0-9._-]{0,99})", "([1-9][0-9]{0,8})"

ROUTES = [
    url(r"/healthz", Health, name="healthz"),
    url(r"/readyz", Ready, name="readyz"),
    url(r"/metrics", Metrics, name="forebay-metrics"),
    url(r"/", HomePage),
    url(r"/overview", OverviewPage, name="overview"),
    url(r"/jobs", JobsPage, name="jobs"),
    url(rf"/jobs/{JOB_ID}", JobPage, name="job"),
    url(r"/batches", BatchesPage, name="batches"),
    url(rf"/batches/{JOB_ID}", BatchPage, name="batch"),
    url(r"/training", TrainingPage, name="training"),
    url(r"/training/compare", ComparePage, name="compare"),
    url(rf"/training/{JOB_ID}", RunPage, name="run"),
    url(rf"/tuning/{JOB_ID}", TunePage, name="tune"),
    url(r"/models", ModelsPage, name="models"),
    url(rf"/models/{NAME}/{VERSION}", VersionPage, name="version"),
    url(r"/devices", DevicesPage, name="devices"),
    url(r"/assets/(.+)", Assets, {"path": str(STATIC)}, name="assets"),
    *(
        url(rf"/{folder}/{JOB_ID}/{name}", handler, {"page": page}, name=f"{page}-{name}")
        for folder, page in (("jobs", "job"), ("batches", "batch"), ("training", "run"), ("tuning", "tune"))
        for name, handler in (("cancel", CancelJob), ("retry", RetryJob))
    ),
]
