"""The dashboard in a real browser, with a real worker behind it: every page, filters, buttons, live updates, accessibility."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from selenium.webdriver.common.keys import Keys
from sqlalchemy import text

from forebay.contract.job import JobInfo, JobKind, JobState, new_ids
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.storage.training.records import Evaluation
from forebay.storage.workers import WorkerRegistry
from support.batches import MadeBatch
from support.browser import Browser, find_chromium, open_browser
from support.dashboard import Dashboard, Dashboards
from support.servers import ValkeyServer, do_without
from support.training_data import CONFUSION, DATA, MadeRun, make_evaluation
from support.waiting import wait_until
from support.worker_stack import WorkerStack

AXE = Path(__file__).parents[2] / "axe" / "axe.min.js"
# Tables that only scrolling shows as a whole.
CUT = """return [...document.querySelectorAll('.fb-scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.getAttribute('aria-label'))"""
PAGES = ("/overview", "/overview?window=day", "/jobs", "/batches", "/training", "/models", "/devices")
GRAVE = "return axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' | ').slice(0, 600)))"  # noqa: E501
EVIL = "<script>window.evil = 1</script>"

pytestmark = pytest.mark.browser


class World:
    """A browser, the dashboard it looks at, and the stack with ledger, queue and worker behind it."""

    def __init__(self, browser: Browser, dashboards: Dashboards, backend: WorkerStack) -> None:
        self.browser, self.backend, self._dashboards = browser, backend, dashboards
        self.dashboard = self.start_dashboard("0")
        browser.open(self.dashboard.address)

    def start_dashboard(self, port: str) -> Dashboard:
        """A dashboard of this stack on a port."""
        settings = self.backend.settings
        dashboard = self._dashboards.start(
            settings.broker, FOREBAY_DATABASE=settings.database, FOREBAY_DASHBOARD_PORT=port, FOREBAY_HEARTBEAT_S="5"
        )
        dashboard.await_event("broker_connected")
        return dashboard

    def open(self, path: str) -> Browser:
        """Go to a page."""
        self.browser.open(self.dashboard.url + path)
        return self.browser

    def submit(self, value: Any, model: str = "doubler", **more: Any) -> str:
        """A job; its id."""
        return self.backend.client.predict(model, value, **more).id

    def finished(self, id: str) -> str:
        """The same id, once its job has ended."""
        wait_until(lambda: self.backend.store.queries.get(id).state.final, f"job {id} has ended")
        return id

    def batches(self) -> None:
        """One batch with an error that a script wrote, one with more shards than squares; no worker of this stack runs them."""
        kinds = [ErrorKind(EVIL, 2, (ErrorSample(f"row 1 of {EVIL}", EVIL),))]
        small = MadeBatch(self.backend.ledger, 5, queue="none", output=EVIL, metadata={"note": EVIL})
        small.finish([0, 1], kinds)
        small.run([2], 400)
        MadeBatch(self.backend.ledger, 320, queue="none").finish_quickly(range(100), kinds, bad=[3])

    def training(self) -> None:
        """Two runs that became versions, with parameters and an evaluation that a script wrote."""
        evil = replace(DATA, classes=(EVIL, "b", "c"), features=(EVIL,))
        for accuracy, rate in ((0.8, 0.02), (0.9, 0.04)):
            run = MadeRun(self.backend.ledger, {"note": EVIL, "rate": rate}, data=evil, metadata={"note": EVIL})
            run.train(60, rate=rate)
            made = run.finish(accuracy, parent="iris/1" if accuracy > 0.8 else None)
        found = Evaluation(
            *new_ids(1), "iris", made.version, EVIL, "9b" * 32, 9, {EVIL: 0.5}, CONFUSION, evil.classes, 0.1
        )
        make_evaluation(self.backend.ledger, found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[World]:
    programs = find_chromium()
    if programs is None:
        do_without("no browser: install Debian's packages chromium and chromium-driver")
    folder = tmp_path_factory.mktemp("browser")
    with ExitStack() as stack:
        valkey.start()
        valkey.flush()
        backend = WorkerStack(folder, valkey.url)
        stack.callback(backend.close)
        backend.worker()
        browser = stack.enter_context(open_browser(programs, folder))
        world = World(browser, Dashboards(folder, stack), backend)
        for kind in ("Doubler", "Recorder"):
            backend.model(kind, metadata={"note": EVIL})
        backend.workers[0].ready()
        jobs = backend.client.predict_many("doubler", range(60), metadata={"user": EVIL, "run": 7})
        for id in [job.id for job in jobs] + [world.submit(-5, metadata={"user": "ada"})]:
            world.finished(id)
        world.batches()
        world.training()
        yield world


@pytest.fixture(autouse=True)
def desk(world: World) -> None:
    """Every test begins at a desk in daylight."""
    world.browser.look()
    world.browser.complaints()


def pages(world: World) -> list[str]:
    newest = {
        state: world.backend.store.queries.find(state=[state], limit=1)
        for state in (JobState.SUCCEEDED, JobState.FAILED)
    }
    batches = world.backend.store.queries.find(kind=JobKind.BATCH)
    jobs = [found[0].id for found in newest.values() if found]
    runs = world.backend.store.queries.find(kind=JobKind.TRAIN)
    of_runs = [f"/training/{job.id}" for job in runs] + [compared(runs[-2:]), "/models/iris/1", "/models/iris/2"]
    return [*PAGES, *(f"/jobs/{id}" for id in jobs), *(f"/batches/{job.id}" for job in batches), *of_runs]


def compared(runs: Sequence[JobInfo]) -> str:
    return f"/training/compare?{'&'.join(f'run={job.id}' for job in runs)}"


def test_each_page_opens_fits_and_complains_of_nothing(world: World) -> None:
    for path in pages(world):
        for width in (1280, 1000, 390) if path == "/overview" else (1280, 390):
            world.browser.look(width)
            browser = world.open(path)
            browser.find("h1")
            widest, room = browser.run(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert widest <= room, f"{path} at {width} px is {widest} px wide"
            if width == 1280:
                assert browser.run(CUT) == [], path
            if width == 390:
                assert browser.run("return document.documentElement.scrollHeight") < 6000, path
            assert browser.complaints() == [], path
            assert browser.run("return window.evil") is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(world: World, dark: bool) -> None:
    world.browser.look(dark=dark)
    for path in pages(world):
        browser = world.open(path)
        assert browser.run("return document.documentElement.dataset.bsTheme") == ("dark" if dark else "light")
        for _ in browser.all("[data-open]")[:1]:
            browser.click("[data-open]")
        browser.run(AXE.read_text(encoding="utf-8"))
        assert browser.run(GRAVE) == [], path


def test_the_charts_are_drawn_of_the_jobs_that_ran(world: World) -> None:
    browser = world.open("/overview")
    wait_until(lambda: len(browser.all(".fb-plot canvas")) == 4, "four charts are drawn")
    wait_until(lambda: {"60", "61"} & set(browser.text("[data-part=models]").split()), "the jobs are counted")
    dark = "return [...document.querySelectorAll('.fb-plot canvas')].map(c => c.toDataURL()).join()"
    before = browser.run(dark)
    browser.look(dark=True)
    wait_until(lambda: browser.run(dark) != before, "they are drawn anew in the other theme")


def test_a_value_without_a_neighbour_is_drawn_as_a_point(world: World) -> None:
    """Of a rate in one minute of an hour, and of a training curve with one value among many steps."""
    drawn = """
        const [holder, data, place, colour] = arguments, dot = document.body.appendChild(document.createElement("i"));
        document.getElementById(holder).dataset.series = JSON.stringify(data);
        document.dispatchEvent(new Event("forebay:placed"));
        dot.style.color = colour;
        const wanted = getComputedStyle(dot).color.match(/[0-9]+/g).map(Number);
        return new Promise(done => requestAnimationFrame(() => {
          const canvas = document.querySelector(place + " canvas");
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let found = 0;
          for (let i = 0; i < pixels.length; i += 4) {
            found += pixels[i + 3] > 200 && wanted.every((value, j) => Math.abs(pixels[i + j] - value) < 40);
          }
          done(found);
        }));"""
    none: list[float | None] = [None] * 100
    one = [*none[:40], 2.5, *none[41:]]
    browser = world.open("/overview")
    wait_until(lambda: len(browser.all(".fb-plot canvas")) == 4, "four charts are drawn")
    rates = {"starts": [1.7e9 + 60 * i for i in range(100)], "succeeded": one, "failed": none}
    series = rates | {name: [none] * 3 for name in ("wait", "run", "total")}
    assert 3 < browser.run(drawn, "series", series, "#chart-rate", "var(--flower-success)") < 40
    browser = world.open(f"/training/{world.backend.store.queries.find(kind=JobKind.TRAIN)[0].id}")
    wait_until(lambda: browser.all("#curve-0 canvas"), "a curve is drawn")
    lines = [
        {"label": "train", "style": 1, "values": [*range(100)]},
        {"label": "validation", "style": 0, "values": one},
    ]
    chart = {"title": "loss", "axis": "step", "steps": [*range(100)], "lines": lines}
    assert 3 < browser.run(drawn, "curves", [chart], "#curve-0", "#1f6f2e") < 40


def test_a_browser_without_the_token_gets_a_page_with_the_next_step(world: World) -> None:
    browser, cookies = world.browser, world.browser.driver.get_cookies()
    browser.driver.delete_all_cookies()
    browser.open(f"{world.dashboard.url}/jobs?state=failed")
    assert browser.text("h1") == "Forebay: not logged in"
    assert "forebay status" in browser.text("#reason")
    browser.complaints()  # of the 401
    browser.find("[name=token]").send_keys(world.dashboard.address.partition("token=")[2], Keys.ENTER)
    browser.wait_for("h1", "Jobs")
    assert "token" not in browser.driver.current_url
    assert {cookie["name"] for cookie in cookies} >= {cookie["name"] for cookie in browser.driver.get_cookies()}


def test_the_form_filters_and_the_links_page(world: World) -> None:
    browser = world.open("/jobs")
    browser.find("#f-model").send_keys("doubler/1")
    browser.find("#f-metadata").send_keys("run=7", Keys.ENTER)
    wait_until(lambda: "metadata=run%3D7" in browser.driver.current_url, "the form was sent")
    first = [row.get_attribute("id") for row in browser.all("tbody a[id^=job-]")]
    assert len(first) == 50
    browser.click("#older")
    wait_until(lambda: "before=" in browser.driver.current_url, "the next page is there")
    second = [row.get_attribute("id") for row in browser.all("tbody a[id^=job-]")]
    assert len(second) == 10
    assert not set(first) & set(second)
    assert browser.all("#older") == []
    browser.click("#newest")
    wait_until(lambda: "before=" not in browser.driver.current_url, "the first page is there again")
    browser.click("#count-failed")
    browser.wait_for("[data-part=list]", "No job matches this filter.")


def test_a_new_job_appears_in_the_list_without_a_reload(world: World) -> None:
    browser = world.open("/jobs")
    browser.run("window.stayed = true")
    id = world.submit(21)
    browser.wait_for(f"tr:has(#job-{id}) .fb-state", "succeeded")
    assert browser.run("return window.stayed") is True


def test_progress_moves_without_a_reload_until_the_end(world: World) -> None:
    backend = world.backend
    backend.hold()
    try:
        (id,) = [job.id for job in backend.client.predict_many("recorder", [[{"n": 1}] * 10], batched=True)]
        browser = world.open(f"/jobs/{id}")
        browser.run("window.stayed = true")
        for done in (3, 8):
            wait_until(lambda: backend.store.queries.get(id).state is JobState.RUNNING, "the job runs")
            with backend.ledger.write() as connection:
                connection.execute(text("UPDATE jobs SET progress_done = :n WHERE id = :id"), {"n": done, "id": id})
            browser.wait_for(".fb-progress", f"{done} of 10")
            assert browser.run("return document.querySelector('progress').value") == done
    finally:
        backend.go_on()
    browser.wait_for(".fb-headline .fb-state", "succeeded")
    browser.wait_for("[data-part=timeline]", "Succeeded")
    assert browser.run("return window.stayed") is True


def test_a_batchs_progress_and_squares_move_without_a_reload_until_it_is_canceled(world: World) -> None:
    batch = MadeBatch(world.backend.ledger, 4, queue="none")
    browser = world.open(f"/batches/{batch.id}")
    browser.run("window.stayed = true")
    share = "return document.getElementById('progress').value"
    assert browser.run(share) == 0
    batch.finish([0])
    browser.wait_for("#cell-1", "✓")
    wait_until(lambda: browser.run(share) == 0.25, "the bar has moved")
    batch.run([1], 500)
    browser.wait_for("[data-part=running]", "500 of 1,000")
    wait_until(lambda: 0.25 < browser.run(share) < 0.5, "it moves while a shard runs")
    browser.run("document.getElementById('cell-2').focus()")
    batch.finish([2])
    browser.wait_for("#cell-3", "✓")
    assert browser.run("return document.activeElement.id") == "cell-2"
    browser.click("#cancel")
    browser.click("#confirm-batch-cancel button[type=submit]")
    browser.wait_for("#notice", "canceled")
    browser.wait_for(".fb-headline .fb-state", "canceled")
    browser.wait_for("#cell-4", "–")


def test_a_runs_curves_grow_without_a_reload_until_it_has_become_a_version(world: World) -> None:
    run = MadeRun(world.backend.ledger, {"lr": 0.1}, model="growing")
    browser = world.open(f"/training/{run.id}")
    browser.run("window.stayed = true")
    browser.wait_for("[data-part=none]", "No metrics yet.")
    picture = "return [...document.querySelectorAll('.fb-plot canvas')].map(c => c.toDataURL()).join()"
    run.train(20)
    wait_until(lambda: len(browser.all(".fb-plot canvas")) == 4, "loss, accuracy, lr and rows/s are drawn")
    before = browser.run(picture)
    assert browser.run("return document.getElementById('progress').value") == 20
    run.train(100)
    wait_until(lambda: browser.run(picture) != before, "the curves have grown")
    browser.wait_for("[data-part=figures]", "100")
    wait_until(lambda: browser.run("return document.getElementById('progress').value") == 100, "the bar has moved")
    light = browser.run(picture)
    browser.look(dark=True)
    wait_until(lambda: browser.run(picture) != light, "they are drawn anew in the other theme")
    made = run.finish(0.95)
    browser.wait_for(".fb-headline .fb-state", "succeeded")
    browser.wait_for("#to-version", made.ref)
    browser.wait_for("[data-part=result]", "@champion is new: accuracy 0.95")
    assert len(browser.all(".fb-plot canvas")) == 4
    assert browser.run("return window.stayed") is True


def test_ticked_runs_stay_ticked_while_the_list_moves_and_are_compared(world: World) -> None:
    backend = world.backend
    one, two = (MadeRun(backend.ledger, {"lr": lr}, model="picked") for lr in (0.1, 0.2))
    one.train(20)
    two.train(20, rate=0.05)
    browser = world.open("/training?model=picked")
    for run in (one, two):
        browser.click(f"#select-{run.id}")
    three = MadeRun(backend.ledger, {"lr": 0.3}, model="picked")
    wait_until(lambda: browser.all(f"#select-{three.id}"), "a new run is in the list")
    assert browser.run("return document.querySelectorAll('[name=run]:checked').length") == 2
    browser.click("#compare")
    wait_until(lambda: "/training/compare?" in browser.driver.current_url, "the runs are compared")
    wait_until(lambda: len(browser.all(".fb-plot canvas")) >= 3, "their curves are drawn")
    assert "params.lr" in browser.text("[data-part=runs]")
    assert three.id not in browser.driver.current_url
    before = browser.run("return document.getElementById('curves').dataset.series")
    two.train(40, rate=0.05)
    wait_until(lambda: browser.run("return document.getElementById('curves').dataset.series") != before, "they grow")


def test_arrow_keys_move_among_the_squares_and_the_tab_key_leaves_them(world: World) -> None:
    [big, *_] = [job for job in world.backend.store.queries.find(kind=JobKind.BATCH) if job.progress.total == 320_000]
    browser = world.open(f"/batches/{big.id}")
    assert len(browser.all(".fb-grid [tabindex='0']")) == 1
    browser.run("document.getElementById('cell-1').focus()")
    where = "return document.activeElement.id"
    for key, cell in (
        (Keys.ARROW_RIGHT, 2),
        (Keys.ARROW_RIGHT, 3),
        (Keys.ARROW_LEFT, 2),
        (Keys.HOME, 1),
        (Keys.HOME, 1),
    ):
        browser.press(key)
        assert browser.run(f"{where}.replace('cell-', '')") == str(cell), key
    browser.press(Keys.ARROW_DOWN)
    assert browser.run("return document.activeElement.offsetTop > document.getElementById('cell-1').offsetTop")
    browser.press(Keys.END)
    assert browser.run("return document.activeElement.closest('li').nextElementSibling") is None
    browser.press(Keys.TAB)
    assert not browser.run(where).startswith("cell-")


def test_cancel_asks_first_and_retry_runs_the_job_again(world: World) -> None:
    backend = world.backend
    backend.hold()
    try:
        ids = [world.submit({"n": n}, model="recorder") for n in (101, 102)]
        wait_until(
            lambda: backend.store.queries.get(ids[0]).state is JobState.RUNNING, "the first keeps the worker busy"
        )
        id = ids[1]
        if backend.store.queries.get(id).state is not JobState.QUEUED:  # both went out together
            id = world.submit({"n": 103}, model="recorder")
        browser = world.open(f"/jobs/{id}")
        browser.find("#cancel").send_keys(Keys.ENTER)
        wait_until(
            lambda: browser.run("return document.getElementById('confirm-job-cancel').open"), "the question is there"
        )
        browser.press(Keys.ESCAPE)
        wait_until(lambda: not browser.run("return document.getElementById('confirm-job-cancel').open"), "it is gone")
        assert backend.store.queries.get(id).state is JobState.QUEUED
        browser.click("#cancel")
        browser.click("#confirm-job-cancel button[type=submit]")
        browser.wait_for("#notice", "The job was canceled.")
        assert backend.store.queries.get(id).state is JobState.CANCELED
    finally:
        backend.go_on()
    browser.click("#retry")
    browser.click("#confirm-job-retry button[type=submit]")
    browser.wait_for("#notice", "The job was queued again.")
    browser.wait_for(".fb-headline .fb-state", "succeeded")
    assert 102 in backend.runs() or 103 in backend.runs()


def test_the_keyboard_reaches_the_table_from_the_skip_link(world: World) -> None:
    browser = world.open("/jobs")
    browser.find("body").send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.text == "Skip to main content"
    browser.press(Keys.ENTER)
    assert browser.driver.current_url.endswith("#main-content")
    reached = []
    for _ in range(40):
        browser.press(Keys.TAB)
        reached.append(browser.run("return document.activeElement.id || document.activeElement.tagName"))
        if reached[-1].startswith("job-"):
            break
    assert reached[-1].startswith("job-"), reached
    wait_until(
        lambda: browser.run("return document.activeElement.id") == reached[-1], "an update leaves the focus there"
    )


def test_a_page_nobody_looks_at_asks_for_nothing(world: World) -> None:
    browser = world.open("/overview")
    hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"  # noqa: E501
    browser.run(hide, True)
    browser.wait_for("#live-status", "Paused")
    browser.run(hide, False)
    browser.wait_for("#live-status", "Live")


def test_flowers_pages_work_under_the_policy_and_an_injected_script_does_not_run(world: World) -> None:
    browser = world.open("/workers")
    browser.complaints()
    (name,) = (worker.name for worker in WorkerRegistry(world.backend.ledger).alive(60))
    browser.wait_for("#workers-table tbody", name)
    browser.wait_for("#workers-online", "1")
    assert browser.run("return autorefresh") == 1
    for path, selector, words in (
        ("/tasks", "#tasks-table tbody", "forebay.predict"), ("/broker", "main", "cpu"), (f"/worker/{name}", "main", name),
    ):  # fmt: skip
        world.open(path).wait_for(selector, words)
    assert browser.complaints() == []
    world.open("/workers").wait_for("#workers-table tbody", name)
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=/none onerror=\"window.evil = 1\">')")
    browser.run("var s = document.createElement('script'); s.textContent = 'window.evil = 1'; document.body.append(s)")
    wait_until(
        lambda: sum("Content Security Policy" in line for line in browser.complaints()) >= 1, "the policy refused"
    )
    assert browser.run("return window.evil") is None


def test_a_restart_of_redis_and_dashboard_loses_no_finished_job(world: World, valkey: ValkeyServer) -> None:
    before = [job.id for job in world.backend.store.queries.find(state=[JobState.SUCCEEDED], limit=50)]
    browser = world.open("/jobs?state=succeeded")
    assert [row.get_attribute("id") for row in browser.all("tbody a[id^=job-]")] == [f"job-{id}" for id in before]
    port = world.dashboard.url.rpartition(":")[2]
    valkey.kill()
    browser.wait_for("[data-part=problems]", "Redis does not answer")
    assert world.dashboard.end() == 0
    browser.wait_for("#live-status", "The dashboard does not answer")
    valkey.start()
    world.dashboard = world.start_dashboard(port)
    browser.wait_for("#live-status", "Live")
    browser.wait_for("[data-part=problems]", "")
    assert [row.get_attribute("id") for row in browser.all("tbody a[id^=job-]")] == [f"job-{id}" for id in before]
    world.open(f"/jobs/{before[0]}").wait_for(".fb-headline .fb-state", "succeeded")
