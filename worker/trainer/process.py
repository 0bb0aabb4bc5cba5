"""The trainer process: `python -m forebay.worker.trainer.process FOLDER`, alone or several under torch's `torchrun`.

Reads FOLDER/request.json and writes events to FOLDER/events.jsonl. Its exit status is 0 when it has trained, 3 when it has
refused the request or its data, 4 when SIGTERM made it save and stop; every other end is a crash. torchrun itself ends with 1
whatever its processes end with, so whoever starts them goes by the events: the last one is `trained` or `refused`, or a
checkpoint was saved after the SIGTERM. Knows neither ledger nor queue.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from forebay.contract.errors import ForebayError
from forebay.contract.requests.recipes import FINETUNE, RECIPES
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import EVENTS_FILE, REQUEST_FILE, Event, Refused, TrainRequest
from forebay.contract.settings import Settings
from forebay.datasets.formats.addresses import allow_hosts
from forebay.worker.trainer.rank import own_rank
from forebay.worker.trainer.stopping import Stop, Stopped

TRAINED, REFUSED, STOPPED = 0, 3, 4
SPARED = ("matplotlib", "scipy", "transformers")
_LOUD = ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "torch.distributed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the training job of FOLDER; the exit status."""
    given = _parsed(arguments)
    stop = Stop()
    stop.listen()
    with (given.folder / EVENTS_FILE).open("a", encoding="utf-8") as file:

        def tell(event: Event) -> None:
            file.write(encode(event).decode() + "\n")
            file.flush()

        return _run(given, tell, stop)


def _run(given: argparse.Namespace, tell: Callable[[Event], None], stop: Stop) -> int:
    rank = own_rank(given.device)
    try:
        request = decode((given.folder / REQUEST_FILE).read_bytes(), TrainRequest)
        if request.recipe in (*RECIPES, FINETUNE):
            _import_torchmetrics()
        from forebay.worker.trainer.run import train  # torch and Lightning take seconds to load

        _quiet()
        allow_hosts(Settings.load().allowed_hosts)
        train(given.folder, request, tell, rank, stop, tuple(filter(None, given.allowed.split(","))))
    except Stopped:
        return STOPPED
    except ForebayError as error:
        if rank.index == 0:
            tell(Refused(type(error).__name__, str(error)))
        return REFUSED
    return TRAINED


def _import_torchmetrics() -> None:
    """Without what it loads for metrics that no recipe of Forebay's has: half the seconds of a trainer's start."""
    import lightning_utilities.core.imports as found

    met, available = found.RequirementCache.__bool__, found.package_available
    found.RequirementCache.__bool__ = lambda self: not str(self.requirement).startswith(SPARED) and met(self)  # type: ignore[method-assign]
    found.package_available = lambda name: name not in SPARED and available(name)  # type: ignore[assignment]
    try:
        import torchmetrics  # noqa: F401
    finally:
        found.RequirementCache.__bool__, found.package_available = met, available  # type: ignore[method-assign]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m forebay.worker.trainer.process", description="Runs one training job."
    )
    parser.add_argument("folder", type=Path, help="with request.json, and resume.ckpt to go on from")
    parser.add_argument("--allowed", default="", help="import paths that a recipe may have, as a.b:C,c.*")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: CUDA where there is enough"
    )
    return parser.parse_args(arguments)


def _quiet() -> None:
    """Silence the libraries' notes about themselves. They must have been loaded, which sets their levels."""
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics|torch)(\.|\Z)")


if __name__ == "__main__":
    sys.exit(main())
