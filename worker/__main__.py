"""`python -m forebay.worker QUEUES CHILDREN [SUPERVISOR]`: one worker process for the device in FOREBAY_DEVICE."""

if __name__ == "__main__":
    from forebay.worker.parent.process import (
        main,  # here: a spawned child imports this module too, and needs none of it
    )

    raise SystemExit(main())
