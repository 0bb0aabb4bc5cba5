"""Forebay: asynchronous, queue-based batch inference for teams with a few models and a few GPUs."""

from forebay.contract.errors import (
    BrokerUnavailable,
    ForebayError,
    InvalidInput,
    JobCanceled,
    JobExpired,
    JobFailed,
    JobNotFound,
    LedgerUnavailable,
    ModelNotFound,
    NoQueueFits,
    PayloadTooLarge,
    QueueFull,
    ResultTimeout,
)
from forebay.contract.job import JobInfo, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.producer.job import Job, as_completed, wait

__all__ = [
    "BrokerUnavailable",
    "Client",
    "ForebayError",
    "InvalidInput",
    "Job",
    "JobCanceled",
    "JobExpired",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "LedgerUnavailable",
    "ModelNotFound",
    "ModelVersion",
    "NoQueueFits",
    "PayloadTooLarge",
    "QueueFull",
    "ResultTimeout",
    "Settings",
    "as_completed",
    "wait",
]
