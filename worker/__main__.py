"""`python -m forebay.worker QUEUES CONCURRENCY [SUPERVISOR]`: one worker process for the device in FOREBAY_DEVICE."""

from forebay.worker.parent.app import main

if __name__ == "__main__":  # a spawned child imports this module too, and must not start a worker of its own
    raise SystemExit(main())
