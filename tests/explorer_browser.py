"""The explorer in a browser: the service of one process on a port, and headless Chromium on its page."""

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as DriverService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.remote.webelement import WebElement

from serve.engine import Engine
from serve.options import Options
from serve.routes import create_app
from serve.stages import LocalProposals, LocalStages
from tests.served_world import InProcess, World

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 120.0
"""Kernels that no test before this one needed are compiled meanwhile."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1280, 900), (360, 740)


@contextmanager
def serving(world: World, folder: Path, **args: Any) -> Iterator[str]:
    """Address of the service, in a thread of its own."""
    options = Options.parse({"workdir": str(world.store.root), "history": str(folder), "max_history_gib": 0.1, **args})
    engine = Engine(options, options.open_history(), LocalStages(), LocalProposals(options))
    server = uvicorn.Server(uvicorn.Config(create_app(lambda: InProcess(engine)), log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))

    async def serve() -> None:
        assert await engine.offers.offer({"bundle": "current"}), engine.offers.refused
        await server.serve([listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        engine.store.close()


class Page:
    """The page in a browser. Every wait is for what a person would wait for."""

    def __init__(self, driver: webdriver.Chrome, root: str) -> None:
        self.driver, self.root = driver, root

    def open(self, **state: str | int) -> "Page":
        """A fresh page with this state in its address."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.root}/explorer/#{urlencode(state)}")
        self.settle()
        return self

    def size(self, size: tuple[int, int]) -> None:
        width, height = size
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)

    def script(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def settle(self) -> None:
        """Until nothing is asked of the service."""
        idle = (
            "const bar = document.getElementById('progress'); "
            "return document.readyState === 'complete' && bar.hidden && !document.querySelector('main[aria-busy]')"
        )
        seen = 0
        while seen < 3:
            self.until(lambda: self.script(idle))
            seen = seen + 1 if self.script(idle) else 0
            time.sleep(0.05)

    def until(self, true: Callable[[], Any]) -> Any:
        """What `true` gives once it is something."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := true()):
            assert time.monotonic() < deadline, f"nothing came; the page says: {self.text('body')[:800]}"
            time.sleep(0.05)
        return found

    def find(self, selector: str) -> WebElement:
        return self.until(lambda: self.driver.find_elements("css selector", selector))[0]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        return self.script("return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> dict[str, str]:
        """Role, name and text of what has the focus."""
        script = (
            "const e = document.activeElement; return { tag: e.tagName, role: e.getAttribute('role') ?? '', "
            "name: e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText ?? e.innerText ?? '', value: e.value ?? '' }"
        )
        return self.script(script)

    @property
    def state(self) -> dict[str, str]:
        """What the address says."""
        return self.script("return Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")

    def choose(self, label: str, value: str) -> None:
        """Another option of a select, named by its label."""
        script = (
            "const field = [...document.querySelectorAll('label')].find((one) => one.innerText.trim() === arguments[0]).control; "
            "field.value = arguments[1]; field.dispatchEvent(new Event('change'))"
        )
        self.script(script, label, value)
        self.settle()

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requested(self) -> list[str]:
        """Addresses of all requests since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=DriverService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
