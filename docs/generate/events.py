"""Every event that Forebay logs, declared once: what it means, and what to do about it.

Its level and its fields are those of the calls that log it. The page docs/reference/log-events.md is made from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogEvent:
    """What an event means, and what an operator does about it, if anything."""

    meaning: str
    remedy: str = ""


EVENTS: Mapping[str, LogEvent] = {
    "announce_failed": LogEvent("Redis did not take the announcement of results. Clients find them by polling.",
        "See whether Redis answers."),
    "api_ready": LogEvent("`forebay serve` listens, at `url`."),
    "api_stopped": LogEvent("`forebay serve` has stopped in good order."),
    "attempt_done": LogEvent("An attempt of a job of this `kind` is over. `state` is succeeded, failed, stopped (canceled), "
        "postponed, released (queued again) or lost (the lease was lost)."),
    "attempt_lost": LogEvent("A trainer crashed, hung or was killed, or reading a shard took more memory than a child may have. "
        "The job was `freed`, to run again, or has `failed`; `reason` has the signal or status and the last lines, or the "
        "file.", "`signal 9` is usually memory that ran out."),
    "attempt_failed": LogEvent("An attempt met an error that is not one of Forebay's. Its job failed with it.",
        "Read the traceback."),
    "batch_done": LogEvent("The jobs that a child was handed together ran: jobs by outcome (`stopped`: canceled, or past their "
        "deadline; `postponed`: a transient error), rows, forward passes and seconds. `attempt` above 1 is a repeat. At the "
        "level debug when all succeeded within 0.1 s."),
    "batch_failed": LogEvent("A batch was given up: too many bad rows, failed shards, or a file that cannot be read or written.",
        "Read `reason`, put it right, then run `forebay jobs retry`."),
    "batch_not_advanced": LogEvent("A shard has ended, but the batch it belongs to could not be brought forward. The next shard "
        "or a sweep does it.", "See whether the ledger and the output's store answer."),
    "batch_succeeded": LogEvent("The manifest of a batch is written."),
    "blobs_full": LogEvent("A large result waits for room in the blob store, up to `outage_timeout_s`, while further jobs run. "
        "Said once until none waits.", "Make room."),
    "blobs_removed": LogEvent("So many `blobs` of so many `bytes`, which nothing had referred to for `blob_grace_s`, were "
        "removed."),
    "blobs_shared": LogEvent("Several ledgers have blobs in this store, so none is removed.",
        "Do what `remedy` says."),
    "broker_connected": LogEvent("Redis answers (again): the worker listens, or the dashboard receives events."),
    "broker_unreachable": LogEvent("Redis does not answer, or refuses (a read-only replica, no disk, no right). Tried again "
        "until it does; said once per outage.", "See whether Redis answers."),
    "buffer_returned": LogEvent("A stopping worker put so many `messages` back into Redis."),
    "cancel_unknown": LogEvent("A child could not ask which jobs are to stop, and went on.",
        "See whether the ledger answers."),
    "ceiling_lifted": LogEvent("A larger batch fitted where memory had run out before."),
    "ceiling_unknown": LogEvent("A child could not ask what batch size fits, and went on with what it knew.",
        "See whether the ledger answers."),
    "checkpoint_saved": LogEvent("A checkpoint is in the blob store."),
    "checkpoint_unusable": LogEvent("A checkpoint's blob is gone or damaged. Training goes on from the one before it.",
        "Find out who deletes in the blob store."),
    "child_failed": LogEvent("A child could not be set up, and was ended instead of being given jobs.",
        "Read the traceback: ledger, blobs or torch."),
    "child_killed": LogEvent("The worker killed a child. `reason` names the limit that was exceeded.", "`timeout_s` and "
        "`load_timeout_s`: look at the model. `store_timeout_s`: look at the store of the batch's files. `shutdown_grace_s`: "
        "the batch was long, and its jobs run elsewhere."),
    "child_loss_unrecorded": LogEvent("A child died, and the ledger could not be told. The leases of its jobs lapse, and they "
        "run again.", "See whether the ledger answers."),
    "child_lost": LogEvent("A child died with so many jobs. They were `freed`, to run again, or have `failed`.",
        "`signal 9` is usually memory that ran out: take a smaller `max_batch_size` or fewer children."),
    "child_output_unread": LogEvent("A child's output could not be read.", "Report it."),
    "child_ready": LogEvent("A child has imported torch and can take jobs."),
    "commit_answer_lost": LogEvent("The connection broke while a commit was under way. The ledger was asked, and `committed` "
        "says what came of it.", "If frequent, look at the network between here and the database."),
    "connection_silent": LogEvent("PostgreSQL had answered, or never received, a statement that this process waited for. The "
        "connection was cut, and another one taken.",
        "If frequent, find out what drops packets between here and the database."),
    "dashboard_ready": LogEvent("The dashboard listens, at `url`."),
    "dashboard_stopped": LogEvent("The dashboard has stopped in good order."),
    "drift_not_watched": LogEvent("What this model serves could not be compared with its reference. Its jobs are not touched.",
        "Read the traceback, and report it."),
    "event_rejected": LogEvent("An event in Redis could not be decoded or has a field of a wrong type, and was dropped. One "
        "line in 10 s at most.", "Find out who else writes there."),
    "housekeeping_failed": LogEvent("A heartbeat, a renewal of leases (`what=renew`) or a sweep failed, and is tried again. At "
        "the level error, with a traceback, when the error is not one of Forebay's.",
        "See whether the ledger answers. Leases lapse after `lease_s`."),
    "http_request": LogEvent("A request was answered; `key` names the API key, where there are any. At the level debug for "
        "`/healthz`, `/readyz` and `/metrics`."),
    "http_request_failed": LogEvent("The server was to blame for a failed request. The line has the reason, of which the client "
        "is told nothing but the request's `id`.", "Do what the reason says."),
    "job_cancel_requested": LogEvent("An operator asked in the dashboard for a running job to stop."),
    "job_canceled": LogEvent("An operator canceled a job in the dashboard."),
    "job_retried": LogEvent("An operator had a job run again from the dashboard."),
    "jobs_postponed": LogEvent("So many jobs met a transient error (`reason` of the first). They are tried again, each after a "
        "wait of up to `longest_s`.", "If it stays, see what `reason` names."),
    "jobs_released": LogEvent("A stopping child gave back what it had claimed and not run. It does not count as an attempt."),
    "joining_unknown": LogEvent("A child could not ask which jobs may join those that generate text, and went on without.",
        "See whether the ledger answers."),
    "junk_dropped": LogEvent("Something in Redis was not a message of Forebay's.",
        "Find out who else writes there. Give Forebay a Redis of its own."),
    "large_result_done": LogEvent("A result that waited for room is stored, or its job was canceled or is tried again."),
    "large_results_delayed": LogEvent("Results that wait for room in the blob store could not be looked after. They are kept, "
        "and tried again.", "See whether the ledger answers."),
    "lease_lost": LogEvent("Results, or jobs not run yet (`dropped=unrun`), were dropped, because the jobs had been given to "
        "others meanwhile.",
        "The worker hung, or could not reach the ledger, for longer than `lease_s`: find out why."),
    "ledger_available": LogEvent("The dashboard reads the ledger again."),
    "ledger_awaited": LogEvent("A child waits for the ledger with its results, up to `outage_timeout_s`.",
        "See whether the ledger answers."),
    "ledger_silent": LogEvent("The watch over connections to PostgreSQL could not ask it what it is at work on. It asks again."),
    "ledger_unavailable": LogEvent("The ledger did not answer. In the dashboard: pages show the last data they read, and "
        "`/metrics` shows `forebay_ledger_up 0`; logged once per outage. In a client: asking for results, or marking jobs to be "
        "sent again, failed; the results are asked for again, and a sweep sends the jobs.",
        "See whether the ledger answers."),
    "message_callback_failed": LogEvent("Celery's bookkeeping of one message failed. Its jobs are not touched.",
        "Report it."),
    "message_not_returned": LogEvent("A stopping worker could not put a message back into Redis. A sweep sends its jobs again."),
    "messages_not_restored": LogEvent("Messages that a worker held could not be put back into Redis. A sweep sends their jobs "
        "again."),
    "metrics_ready": LogEvent("The worker answers `/metrics`, `/healthz` and `/readyz` at `url`."),
    "metrics_request_failed": LogEvent("A request to the worker's metrics port broke off."),
    "misplaced_key_not_renamed": LogEvent("A key with the name of one of Forebay's has another type, and Redis refused to "
        "rename it.", "Rename or delete the key."),
    "misplaced_key_renamed": LogEvent("A key with the name of one of Forebay's had another type. It is now "
        "`forebay.misplaced.<key>`.", "Find out who else writes there. Give Forebay a Redis of its own."),
    "model_away": LogEvent("A model could not be loaded for now. Its jobs wait, at the cost of no attempt.",
        "See what `error` names: mostly the blob store."),
    "model_benchmarked": LogEvent("A benchmark has ended well."),
    "model_compressed": LogEvent("A compressed version of a model is registered, as `made`."),
    "model_converted": LogEvent("A converted version of a model is registered, as `version`."),
    "model_evaluated": LogEvent("An evaluation has ended well."),
    "model_evicted": LogEvent("The least recently used model made room for another.",
        "If frequent, raise `model_cache_bytes`, or give models queues of their own."),
    "model_exceeds_budget": LogEvent("One model alone is larger than `model_cache_bytes`. It is used all the same.",
        "Raise `model_cache_bytes`, or use a larger machine."),
    "model_loaded": LogEvent("A model is in memory. `warm` says whether it was warmed up."),
    "model_trained": LogEvent("A training run has ended well and is registered as `model`."),
    "model_unusable": LogEvent("A model cannot be loaded. Its jobs failed with this error.",
        "Mend the model or move the alias, then run `forebay jobs retry`."),
    "no_last_message": LogEvent("A stopping worker found no last message on its connection, which is as it should be."),
    "onnx_without_cuda": LogEvent("onnxruntime on this machine has no CUDA: the model runs on the CPU.",
        "Install onnxruntime-gpu."),
    "orphan_ended": LogEvent("A process that a killed part, or a killed stack of this folder, had left behind was ended."),
    "out_of_memory": LogEvent("So many `rows` did not fit. Batches of this model are cut to `ceiling` rows on this kind of "
        "device, for every worker.", "If it stays, register with a smaller `max_batch_size`."),
    "output_not_cleared": LogEvent("Temporary files of a batch that has ended could not be removed from its output folder. The "
        "results are not touched.", "Remove them, or give the worker the right to."),
    "part_not_placed": LogEvent("A finished part of a batch's output could not be renamed. Whoever ends the batch tries again.",
        "See whether the output's store answers."),
    "pool_task_failed": LogEvent("A child could not claim jobs or store what became of them, mostly because the ledger did not "
        "answer.", "See whether the ledger answers."),
    "process_died": LogEvent("A process of `forebay worker` or `forebay up` ended by itself; `status` says how. It is started "
        "again after `again_in_s`.", "Read the lines above it, or its log."),
    "process_killed": LogEvent("A process of `forebay worker` or `forebay up` did not stop within `grace_s` (for a worker "
        "`shutdown_grace_s` and 15 s more), and was killed.",
        "Nothing: its jobs run again once their leases lapse."),
    "process_started": LogEvent("`forebay worker` started a process for a device, or `forebay up` one of its parts."),
    "queue_died": LogEvent("The embedded queue ended, and is started again at once.",
        "Read `<home>/valkey/valkey.log`. Is the disk full?"),
    "queue_unreachable": LogEvent("A sweep could not ask Redis how long a queue is.",
        "See whether Redis answers."),
    "reference_made": LogEvent("A reference to watch a version's drift by is stored; `unwatched` columns cannot be compared."),
    "report_failed": LogEvent("A child could not tell what it has counted. Its jobs are not touched.",
        "Read the traceback: the device's driver."),
    "request_batch": LogEvent("A batch over HTTP has moved by a step."),
    "request_batch_ended": LogEvent("A batch over HTTP has ended."),
    "request_batch_failed": LogEvent("A batch over HTTP met an error that is not one of Forebay's. It is tried again.",
        "Read the traceback, and report it."),
    "request_batch_waits": LogEvent("A batch over HTTP cannot go on for now, for the reason in `error`. It is tried again.",
        "See what `error` names: a full queue, the ledger or the blob store."),
    "request_batches_failed": LogEvent("The thread that moves batches over HTTP met an error that is not one of Forebay's, and "
        "goes on.", "Read the traceback, and report it."),
    "request_batches_wait": LogEvent("Batches over HTTP cannot go on for now. They are tried again.",
        "See what `error` names: mostly the ledger."),
    "send_failed": LogEvent("Jobs are in the ledger, but their message did not go out. A sweep sends it.",
        "See whether Redis answers."),
    "shard_cut": LogEvent("Processes died with a shard. It goes on in smaller parts until the row that kills them stands alone.",
        "Look at the row: it ends in `_errors/` as `WorkerLost`."),
    "shard_done": LogEvent("A shard of a batch ended. `state` is succeeded, failed, stopped (its batch had ended), postponed "
        "(an error that may pass), released (given back, the worker stops) or lost (the lease was lost)."),
    "shard_split": LogEvent("A long shard gave half of its rest away, because nothing else was waiting."),
    "shards_failed": LogEvent("A child's thread for shards ended. Their leases lapse, and they run again.",
        "Read the traceback."),
    "shutdown_hung": LogEvent("A worker hung in its stop although all its children were killed. It exits with status 1.",
        "Report it."),
    "stalled_consumer_exits": LogEvent("Messages waited for an idle worker that received nothing, after a new connection too. "
        "The process exits with status 75, to be started again.",
        "If frequent, look at the network between the worker and Redis."),
    "stalled_consumer_reconnects": LogEvent("Messages waited for an idle worker that received nothing. It makes a new "
        "connection.", "If frequent, look at the network between the worker and Redis."),
    "standing_training": LogEvent("A version has drifted, and the standing training started `job`."),
    "standing_training_failed": LogEvent("A version has drifted, but its standing training could not be started.",
        "Do what `error` says."),
    "supervisor_gone": LogEvent("`forebay worker` was killed. This process of it stops in good order.",
        "Start it again."),
    "swept": LogEvent("A sweep did something: jobs `freed`, `failed` (or canceled on request), `expired`, `due` after a "
        "transient error or `resent`, rows `deleted`.",
        "`resent` in every line: the messages of a queue get lost, or workers cannot keep up."),
    "text_unreadable": LogEvent("A piece of generated text in Redis could not be decoded, and was dropped. The result is not "
        "touched.", "Find out who else writes there."),
    "trainer_event_invalid": LogEvent("A trainer wrote a line that is not an event.",
        "Report it, unless the recipe is your own."),
    "trainer_output": LogEvent("A line of the trainer's output, 20 in ten seconds at most. `left_out` counts those before it "
        "that were not shown."),
    "training_record_delayed": LogEvent("Points or a checkpoint could not be stored. The trainer goes on, and they are stored "
        "later.", "See whether the ledger and the blob store answer."),
    "training_resumed": LogEvent("Training goes on from the checkpoint of this `step`."),
    "training_started": LogEvent("A trainer was started for a training job, or for a further machine of one (`kind=node`)."),
    "trial_added": LogEvent("A tune has begun its next trial, the training job `job`, with these `params`."),
    "trial_not_judged": LogEvent("A trial could not be compared with the others of its tune. It goes on.",
        "See whether the ledger answers."),
    "trial_trained": LogEvent("A trial has ended well, with this `value` on the validation split."),
    "tune_failed": LogEvent("No trial has succeeded, or the best one cannot be registered.", "Read `reason`."),
    "tune_not_advanced": LogEvent("A trial has ended, but its tune could not be brought forward here. A sweep has another "
        "worker do it.", "If frequent, install the extra `tune` where training jobs run."),
    "tune_succeeded": LogEvent("The best trial is registered as `model`."),
    "warm_up_failed": LogEvent("The model refused a made-up row of zeros, for this `reason`, and was loaded all the same.",
        "Nothing, when its jobs succeed. Register an `example` to have it warmed up."),
    "worker_starting": LogEvent("A worker process is up and about to connect."),
    "worker_stopped": LogEvent("A worker process has stopped in good order."),
}  # fmt: skip
