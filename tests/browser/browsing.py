"""A headless Chromium, and what a page in it does."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

SECONDS = 30
PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
)  # fmt: skip


@cache
def why_not() -> str:
    """The reason why no browser can be started here; empty where one can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"{' and '.join(missing)} not installed: apt-get install chromium chromium-driver" if missing else ""


# Bokeh draws in trees of its own.
EVERYWHERE = """
function everywhere(selector, root = document) {
  const below = [...root.querySelectorAll("*")].filter((one) => one.shadowRoot)
  return [...root.querySelectorAll(selector), ...below.flatMap((one) => everywhere(selector, one.shadowRoot))]
}
"""
# Of each plot its place on the page, and how many colours its canvas has.
PLOTS = """
return Object.values(window.Bokeh?.index ?? {}).filter((view) => view.frame).map((view) => {
  const [canvas] = everywhere("canvas", view.el.shadowRoot), {x, y, width, height} = view.el.getBoundingClientRect()
  const image = canvas?.width && canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
  return {x, y, width, height, colors: image ? new Set(new Uint32Array(image.data.buffer)).size : 0}
})
"""
# Where on the page a plot has a value, after it was brought into sight.
PLACE = """
const [number, x, y] = arguments, view = Object.values(Bokeh.index)[number]
view.el.scrollIntoView({block: "center"})
const {left, top} = view.canvas_view.el.getBoundingClientRect()
return [left + view.frame.x_scale.compute(x), top + view.frame.y_scale.compute(y)]
"""


class Browser:
    """One window, whose requests and complaints are written down."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._requests: list[str] = []

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Browser"]:
        chromium, chromedriver = (shutil.which(program) for program in PROGRAMS)
        assert chromium is not None, "else the test is skipped"
        assert chromedriver is not None, "likewise"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = ChromeOptions()
            options.binary_location = chromium
            for flag in (*FLAGS, f"--user-data-dir={profile}"):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
            service = ChromeService(chromedriver, env=os.environ | {"HOME": profile})
            driver = Chrome(options, service)
            try:
                yield cls(driver)
            finally:
                driver.quit()

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of that size, with that preference; what was written down before is forgotten."""
        self.complaints(), self._read_requests()
        self._requests.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        preferred = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[preferred])
        self.driver.get("about:blank")  # else an address that differs behind its # alone is no new page
        self.driver.get(url)

    def command(self, name: str, **parameters: Any) -> Any:
        """Ask Chromium itself."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def ask(self, script: str, *arguments: Any) -> Any:
        """What a function's body in JavaScript gives."""
        return self.driver.execute_script(EVERYWHERE + script, *arguments)

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait for what the page does by itself."""
        return WebDriverWait(self.driver, SECONDS, poll_frequency=0.05).until(lambda _: holds())

    def text(self, *parts: str) -> str:
        """The text of the page, once it has all of these parts."""

        def whole() -> str:
            text: str = self.ask("return document.body.innerText")
            return text if all(part in text for part in parts) else ""

        return str(self.until(whole))

    def plots(self) -> list[dict[str, Any]]:
        """Place and number of colours of each plot."""
        found: list[dict[str, Any]] = self.ask(PLOTS)
        return found

    def drawn_plots(self) -> list[dict[str, Any]]:
        """The same, once there are some and each has more than a background."""
        return list(self.until(lambda: (found := self.plots()) and all(one["colors"] > 10 for one in found) and found))

    def hover(self, number: int, x: float, y: float) -> str:
        """What a plot tells of the place where it has a value."""
        left, top = self.ask(PLACE, number, x, y)
        for step in (9, 0):  # from outside, and to it
            self.command("Input.dispatchMouseEvent", type="mouseMoved", x=left + step, y=top + step)
        shown = 'return everywhere(".bk-tooltip-content").map((one) => one.innerText).join(" ")'
        return str(self.until(lambda: self.ask(shown)))

    def complaints(self) -> list[str]:
        """What the console was told since the last question: errors and warnings."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened."""
        self._requests += self._read_requests()
        return self._requests

    def _read_requests(self) -> list[str]:
        events = (json.loads(line["message"])["message"] for line in self.driver.get_log("performance"))
        sent = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if urlsplit(url).scheme not in ("data", "blob", "about", "chrome")]

    def press(self, *keys: str) -> None:
        """Type on the keyboard."""
        ActionChains(self.driver).send_keys(*keys).perform()
