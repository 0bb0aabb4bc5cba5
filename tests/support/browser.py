"""A real browser for tests: Debian's chromium without a screen, driven by selenium, at the width and theme asked for.

It reaches loopback only: nothing in a page of ours may come from elsewhere.
"""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from support.waiting import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome")
PAGE_S = 60


def find_chromium() -> tuple[str, str] | None:
    """The paths of the browser and of its driver, or None."""
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One browser window."""

    def __init__(self, programs: tuple[str, str], folder: Path) -> None:
        options = ChromeOptions()
        options.binary_location, driver = programs
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars",
            "--force-device-scale-factor=1", "--no-first-run", "--disable-background-networking", "--lang=en-GB",
            f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(driver, log_output=str(folder / "chromedriver.log")))
        self.driver.set_page_load_timeout(PAGE_S)

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """The size of the window and the theme that the system is said to prefer."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})

    def open(self, url: str) -> None:
        """Go there, and come back when the page has loaded."""
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element that a CSS selector names, once it is there."""
        return wait_until(lambda: self.all(selector), f"the page has {selector}")[0]

    def all(self, selector: str) -> list[WebElement]:
        """Every element that a CSS selector names now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click on the first element that a CSS selector names, wherever on the page it is."""
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def press(self, key: str) -> None:
        """A key to whatever has the focus; an update may put another element in its place meanwhile."""
        ActionChains(self.driver).send_keys(key).perform()

    def text(self, selector: str) -> str:
        """The text of an element, '' where there is none; read in one step, for live pages replace their parts."""
        return str(self.run("var e = document.querySelector(arguments[0]); return e ? e.textContent : ''", selector))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, selector: str, words: str) -> None:
        """Until the element's text holds these words."""
        wait_until(lambda: words in self.text(selector), f"{selector} says {words!r}")

    def complaints(self) -> list[str]:
        """What the browser's console holds of errors since it was last asked: scripts that failed, what the CSP refused."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG, beyond what the window shows."""
        size = self.run("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        given = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", given)["data"]))

    def close(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()


@contextmanager
def open_browser(programs: tuple[str, str], folder: Path) -> Iterator[Browser]:
    """A browser that is closed in the end."""
    browser = Browser(programs, folder)
    try:
        yield browser
    finally:
        browser.close()
