"""The addresses of our pages. Flower's own stand in flower.urls; where both name one, ours is found first."""

from __future__ import annotations

from tornado.web import url

from forebay.dashboard.pages.actions import CancelJob, RetryJob
from forebay.dashboard.pages.base import STATIC, Assets, FrontDoor
from forebay.dashboard.pages.batch import BatchPage
from forebay.dashboard.pages.batches import BatchesPage
from forebay.dashboard.pages.compare import ComparePage
from forebay.dashboard.pages.devices import DevicesPage
from forebay.dashboard.pages.job import JobPage
from forebay.dashboard.pages.jobs import JobsPage
from forebay.dashboard.pages.models import ModelsPage
from forebay.dashboard.pages.overview import OverviewPage
from forebay.dashboard.pages.run import RunPage
from forebay.dashboard.pages.training import TrainingPage
from forebay.dashboard.pages.version import VersionPage

JOB_ID = "([0-9a-f]{32})"
NAME, VERSION = "([A-Za-z0-9][A-Za-z0-9._-]{0,99})", "([1-9][0-9]{0,8})"

ROUTES = [
    url(r"/", FrontDoor),
    url(r"/overview", OverviewPage, name="overview"),
    url(r"/jobs", JobsPage, name="jobs"),
    url(rf"/jobs/{JOB_ID}", JobPage, name="job"),
    url(rf"/jobs/{JOB_ID}/cancel", CancelJob, name="cancel"),
    url(rf"/jobs/{JOB_ID}/retry", RetryJob, name="retry"),
    url(r"/batches", BatchesPage, name="batches"),
    url(rf"/batches/{JOB_ID}", BatchPage, name="batch"),
    url(rf"/batches/{JOB_ID}/cancel", CancelJob, {"page": "batch"}, name="batch-cancel"),
    url(rf"/batches/{JOB_ID}/retry", RetryJob, {"page": "batch"}, name="batch-retry"),
    url(r"/training", TrainingPage, name="training"),
    url(r"/training/compare", ComparePage, name="compare"),
    url(rf"/training/{JOB_ID}", RunPage, name="run"),
    url(rf"/training/{JOB_ID}/cancel", CancelJob, {"page": "run"}, name="run-cancel"),
    url(rf"/training/{JOB_ID}/retry", RetryJob, {"page": "run"}, name="run-retry"),
    url(r"/models", ModelsPage, name="models"),
    url(rf"/models/{NAME}/{VERSION}", VersionPage, name="version"),
    url(r"/devices", DevicesPage, name="devices"),
    url(r"/assets/(.+)", Assets, {"path": str(STATIC)}, name="assets"),
]
