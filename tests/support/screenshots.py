"""Makes the pictures of docs/screenshots from a made-up hour of work.

`PYTHONPATH=tests python -m support.screenshots [FOLDER] [--all] [--only=PAGE,PAGE]` needs chromium and its driver.
Without `--all` only those that the docs use are made: see PICTURES.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from support.browser import Browser, find_chromium, open_browser
from support.dashboard import Dashboard
from support.dashboard_data import Scene, page_paths
from support.servers import ValkeyServer
from support.waiting import wait_until

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PICTURES = (  # page, size, theme
    ("overview", "desktop", "light"), ("overview", "phone", "dark"), ("job-failed", "desktop", "dark"),
    ("models", "desktop", "light"), ("batches", "phone", "light"), ("batch-many", "desktop", "light"),
    ("batch", "phone", "dark"), ("training", "phone", "dark"), ("run", "desktop", "light"), ("run-running", "phone", "light"),
    ("compare", "desktop", "dark"), ("version", "desktop", "light"),
)  # fmt: skip
COLOURS = 256
OTHERS = {"jobs-refused": "/jobs?state=failed&model=no/model/at/all", "flower-workers": "/workers"}
# A list goes on as it begins.
CROPPED = {
    "overview-desktop": 1118, "jobs": 1200, "batch-many": 1500, "batch": 2600, "run": 2100, "run-running": 2600, "version": 2200
}  # fmt: skip


def main(arguments: list[str]) -> int:
    programs = find_chromium()
    if programs is None:
        sys.stderr.write("no chromium: install Debian's packages chromium and chromium-driver\n")
        return 1
    everything = "--all" in arguments
    only = next((a.removeprefix("--only=").split(",") for a in arguments if a.startswith("--only=")), None)
    folder = Path(next((a for a in arguments if not a.startswith("--")), "docs/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        _take(programs, Path(made), folder, everything, only)
    return 0


def _take(programs: tuple[str, str], work: Path, folder: Path, everything: bool, only: list[str] | None) -> None:
    url = f"sqlite:///{work / 'ledger.db'}"
    scene, valkey = Scene(url), ValkeyServer(work)
    valkey.start()
    dashboard = Dashboard(work, valkey.url, FOREBAY_DATABASE=url)
    try:
        dashboard.await_event("broker_connected")
        with open_browser(programs, work) as browser:
            browser.open(dashboard.address)
            for page, path in {**page_paths(scene), **OTHERS}.items():
                if only is not None and page not in only:
                    continue
                for size in SIZES:
                    for theme in ("light", "dark"):
                        if everything or (page, size, theme) in PICTURES:
                            scene.beat()
                            picture = folder / f"{page}-{size}-{theme}.png"
                            tallest = 99_999 if everything else CROPPED.get(page, CROPPED.get(f"{page}-{size}", 99_999))
                            _picture(browser, dashboard.url + path, size, theme, picture, tallest)
    finally:
        dashboard.end()
        valkey.stop()
        scene.close()


def _picture(browser: Browser, url: str, size: str, theme: str, path: Path, tallest: int) -> None:
    browser.look(*SIZES[size], dark=theme == "dark")
    browser.open(url)
    if "/overview" in url:
        wait_until(lambda: len(browser.all(".u-legend")) == 4, "the charts are drawn")
    if "/training/" in url:
        wait_until(lambda: browser.all(".u-legend"), "the curves are drawn")
    browser.picture(path)
    with Image.open(path) as picture:
        top = picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, tallest)))
        top.quantize(COLOURS).save(path, optimize=True)
    for complaint in browser.complaints():
        sys.stderr.write(f"{path.name}: {complaint}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
