"""The one error tree. Every error that reaches a user is a ForebayError that says what was wrong and what to do."""

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class ForebayError(Exception):
    """Something went wrong in Forebay."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or type(self).__name__)


class Transient(ForebayError):
    """Something is unavailable for now; the same request may succeed later.

    A runtime's `load` or `predict` may raise it: the job is then queued again for later, instead of failing; not before `wait_s`
    seconds, and at the cost of none of its attempts unless it is `counted`.
    """

    def __init__(self, message: str | None = None, *, wait_s: float = 0.0, counted: bool = True) -> None:
        super().__init__(message)
        self.wait_s, self.counted = wait_s, counted


class InvalidInput(ForebayError, ValueError):
    """The input, an argument or a setting is not valid; nothing was stored."""


class PayloadTooLarge(InvalidInput):
    """The input is larger than the hard limit; send a reference or a batch job instead."""


class ModelNotFound(ForebayError, LookupError):
    """No such model, version or alias is registered."""


class NoQueueFits(ForebayError):
    """No queue has the capacity that the model version asks for."""


class QueueFull(ForebayError):
    """The queue holds as many jobs as it may; try again later.

    `depth` jobs wait in `queue`, which accepts `maximum`. `retry_after_s` estimates when there will be room, by how fast its
    jobs have ended lately; None when none have ended, or when there will never be room.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        queue: str = "",
        depth: int = 0,
        maximum: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.queue = queue
        self.depth = depth
        self.maximum = maximum
        self.retry_after_s = retry_after_s


class JobNotFound(ForebayError, LookupError):
    """No job has this id."""


class JobFailed(ForebayError):
    """The job failed; `type` and `reason` are those of the error in the worker."""

    def __init__(self, message: str | None = None, *, type: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.type = type
        self.reason = reason


class JobCanceled(ForebayError):
    """The job was canceled before it finished."""


class JobExpired(ForebayError):
    """The job's deadline passed before it started."""


class IllegalTransition(ForebayError):
    """The job's state does not allow this change."""


class ResultTimeout(ForebayError, TimeoutError):
    """The result did not arrive in time; the job continues."""


class BrokerUnavailable(Transient, ConnectionError):
    """Redis cannot be reached."""


class LedgerUnavailable(Transient, ConnectionError):
    """The database cannot be reached; nothing was written."""


class OutcomeUnknown(LedgerUnavailable):
    """Whether the database has done what was asked is not known: its answer was lost, and it has not answered since.

    Of a submit, `job_ids` are the jobs that may be there: look them up once the database answers.
    """

    def __init__(self, message: str | None = None, *, job_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.job_ids = job_ids


class LedgerOutdated(LedgerUnavailable):
    """The database's tables are missing or older than this Forebay."""


class BlobUnavailable(Transient, ConnectionError):
    """The blob store cannot be reached or has no room."""


class BlobStoreFull(BlobUnavailable):
    """The blob store has no room."""


class StoreUnavailable(Transient):
    """The store of a batch's input or output does not respond."""


class BlobMissing(ForebayError, LookupError):
    """The blob store responds, but has no such blob."""


class BlobCorrupt(ForebayError):
    """A blob's content does not match the checksum in its name."""


class ModelRefused(ForebayError):
    """The artifact cannot be loaded safely, or its code is not on the operator's list."""


class ModelLoadFailed(ForebayError):
    """The model version could not be built or warmed up."""


class EndpointUnavailable(Transient, ConnectionError):
    """The server that runs the model cannot be reached, is busy, or fails."""


class EndpointError(ForebayError):
    """The server that runs the model refuses the request, with this HTTP status and in its own words."""

    def __init__(self, message: str | None = None, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class WorkerLost(ForebayError):
    """The process that ran the job died."""


class TimedOut(ForebayError, TimeoutError):
    """The model was not done with the row within its `timeout_s`."""


class DeviceNotFound(ForebayError):
    """This machine lacks the device the queue needs."""


class MissingExtra(ForebayError, ImportError):
    """An optional part of Forebay is not installed; `extras` name what brings it, when one of Forebay's does."""

    def __init__(self, message: str | None = None, *extras: str) -> None:
        super().__init__(f"{message}: {install_extras(*extras)}" if message and extras else message)


def install_extras(*extras: str) -> str:
    """How to add extras to a Forebay that is installed: pip finds it there, and does not look for it in an index."""
    return f"pip install 'forebay[{','.join(dict.fromkeys(extras))}]' where Forebay is installed"


def without_frames(error: E) -> E:
    """The error, to be kept as a value: the frames that it was raised in would keep alive all that they hold."""
    each: BaseException | None = error
    while each is not None and each.__traceback__ is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
