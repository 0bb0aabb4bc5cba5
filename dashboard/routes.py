"""The addresses of our pages. Flower's own stand in flower.urls; where both name one, ours is found first."""

from __future__ import annotations

from tornado.web import url

from forebay.dashboard.actions import CancelJob, RetryJob
from forebay.dashboard.batch_page import BatchPage
from forebay.dashboard.batches_page import BatchesPage
from forebay.dashboard.devices_page import DevicesPage
from forebay.dashboard.job_page import JobPage
from forebay.dashboard.jobs_page import JobsPage
from forebay.dashboard.models_page import ModelsPage
from forebay.dashboard.overview_page import OverviewPage
from forebay.dashboard.pages import STATIC, Assets, FrontDoor

JOB_ID = "([0-9a-f]{32})"

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
    url(r"/models", ModelsPage, name="models"),
    url(r"/devices", DevicesPage, name="devices"),
    url(r"/assets/(.+)", Assets, {"path": str(STATIC)}, name="assets"),
]
