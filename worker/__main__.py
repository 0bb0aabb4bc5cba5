"""`python -m forebay.worker QUEUES CHILDREN [SUPERVISOR]`: one worker process for the device in FOREBAY_DEVICE."""

from forebay.worker.parent.process import main

if __name__ == "__main__":
    raise SystemExit(main())
