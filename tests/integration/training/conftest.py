"""A stack that trains, for each test a new one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from support.training_stack import TrainingStack


@pytest.fixture
def training(tmp_path: Path, broker: str) -> Iterator[TrainingStack]:
    """A stack without a worker yet, none of whose trainers is left in the end."""
    with closing(TrainingStack(tmp_path, broker)) as stack:
        yield stack
        family = stack.family()
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
