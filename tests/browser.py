"""Pages in a real browser: Debian's Chromium, headless and without a network, and what is wrong with a page."""

import json
import os
import shutil
from pathlib import Path

import pytest

# What a page may load: files, and what it contains itself. Everything else would leave the machine.
STAYS = ("file:", "data:", "blob:", "about:")
BROKEN_PICTURES = """
const done = arguments[0];
Promise.all([...document.images].map(image => {
    image.loading = 'eager';
    return image.decode().then(() => null, () => image.alt || image.src.slice(0, 80));
})).then(found => done(found.filter(name => name !== null)));
"""


class Browser:
    """Chromium with one page, opened from the disk. `driver` is Selenium's, for everything that is not here."""

    def __init__(self, downloads: Path):
        """downloads: the folder that receives what a page saves. Where Chromium or its driver is missing, skip."""
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e '.[dev]'")
        chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not chromedriver:
            pytest.skip("there is no Chromium with its driver: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "headless=new", "disable-dev-shm-usage", "disable-background-networking", "disable-component-update",
            "no-first-run", "hide-scrollbars", "window-size=1280,900", "proxy-server=http://127.0.0.1:9",  # nobody listens
            "proxy-bypass-list=<-loopback>", "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *(["no-sandbox"] if os.geteuid() == 0 else []),  # which root cannot have
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        # With both paths given, Selenium looks for no driver, here or elsewhere.
        service = webdriver.ChromeService(executable_path=chromedriver)
        self.downloads, self.driver = downloads, webdriver.Chrome(options=options, service=service)
        self.errors: list[str] = []  # what the console said, warnings included, since the page was opened
        self.left: list[str] = []  # the addresses that were asked for outside the machine, since then

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a viewport of a width and a height, in CSS pixels, for a person who likes it light or dark."""
        self._read_logs()
        self.errors, self.left = [], []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(Path(path).resolve().as_uri())

    def press(self, *keys: str) -> None:
        """Press keys, as a person does who has not clicked on anything."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the viewport, or of the whole page."""
        import base64

        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(picture["data"]))

    def check(self) -> None:
        """No error or warning in the console, no request that leaves the machine, and every picture decodes."""
        broken = self.driver.execute_async_script(BROKEN_PICTURES)
        self._read_logs()
        assert not self.errors, self.errors
        assert not self.left, self.left
        assert not broken, broken
        wide = self.driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"the page is {wide} pixels wider than its window"

    def _read_logs(self):
        self.errors += [entry["message"] for entry in self.driver.get_log("browser")
                        if entry["level"] in ("WARNING", "SEVERE")]  # fmt: skip
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                self.left += [] if url.startswith(STAYS) else [url]
