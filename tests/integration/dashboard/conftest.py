"""A ledger full of a team's work, and dashboards that show it: one for everybody, one behind a login."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.dashboard import Dashboards, Site
from support.dashboard_data import Scene
from support.servers import ValkeyServer


@pytest.fixture
def dashboards(tmp_path: Path) -> Iterator[Dashboards]:
    """Starts the dashboards of one test."""
    with ExitStack() as stack:
        yield Dashboards(tmp_path, stack)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(f"sqlite:///{tmp_path_factory.mktemp('scene') / 'ledger.db'}", minutes=30)
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def _module_dashboards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboards]:
    with ExitStack() as stack:
        yield Dashboards(tmp_path_factory.mktemp("dashboards"), stack)


@pytest.fixture(scope="module")
def module_site(_module_dashboards: Dashboards, scene: Scene, valkey: ValkeyServer) -> Site:
    return Site(_module_dashboards.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url))


@pytest.fixture(scope="module")
def module_guarded(_module_dashboards: Dashboards, scene: Scene, valkey: ValkeyServer) -> Site:
    login = {"FLOWER_BASIC_AUTH": "ada:p,bob:q", "FOREBAY_OPERATORS": "ada", "FOREBAY_DASHBOARD_HOST": "0.0.0.0"}  # noqa: S104
    return Site(_module_dashboards.start(valkey.url, FOREBAY_DATABASE=scene.ledger.url, **login))


@pytest.fixture
def site(module_site: Site, broker: str) -> Site:
    """Without a login, so that everybody is an operator. Valkey runs, whatever the test before did to it."""
    return module_site


@pytest.fixture
def guarded(module_guarded: Site, broker: str) -> Site:
    """Behind a login: ada is an operator, bob a viewer."""
    return module_guarded
