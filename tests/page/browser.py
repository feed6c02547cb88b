"""A headless Chromium, and what the tests ask of it."""

import base64
import json
import shutil

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from pod import TARGET

SHOTS = TARGET / "page-shots"
AXE = TARGET / "page-axe/node_modules/axe-core/axe.min.js"


class Browser:
    """One browser window of a size, with or without scripts."""

    def __init__(self, width=1280, height=900, script=True):
        options = Options()
        options.binary_location = shutil.which("chromium")
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--no-proxy-server",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if not script:
            options.add_experimental_option(
                "prefs", {"profile.managed_default_content_settings.javascript": 2}
            )
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(20)
        self.driver.set_script_timeout(30)
        self.size(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def size(self, width, height=900):
        """The page's own width: a window is never narrower than 500 pixels."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def scheme(self, name, motion="no-preference"):
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": name},
                {"name": "prefers-reduced-motion", "value": motion},
            ],
        )

    def open(self, url):
        self.driver.get(url)
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector="body"):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        metrics = self.cdp("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": metrics["width"], "height": metrics["height"], "scale": 1}
        data = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(data["data"]))

    def complaints(self):
        """What the browser's console holds against the page, policy violations included."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]

    def requested(self):
        """Every address that the page has asked for, by the browser's own record."""
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return urls

    def axe(self):
        """Violations that axe-core calls serious or critical."""
        self.cdp("Runtime.evaluate", expression=AXE.read_text())
        found = self.cdp(
            "Runtime.evaluate",
            expression="axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))",
            awaitPromise=True,
            returnByValue=True,
        )
        violations = json.loads(found["result"]["value"])
        return [
            f"{v['impact']} {v['id']}: {v['help']}: {[n['html'][:160] for n in v['nodes']][:4]}"
            for v in violations
            if v["impact"] in ("serious", "critical")
        ]
