"""Makes the pictures of docs/explorer.md anew from a running service.

    python docs/render_explorer.py http://127.0.0.1:8000 --user 1453 --item 995242 --query cheeses --versus VERSION

Needs chromium and chromedriver (Debian: chromium, chromium-driver) and the extra `dev`.
"""

import argparse
import base64
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

DOCS = Path(__file__).resolve().parent
DESKTOP, WIDE, PHONE = (1440, 1180), (1440, 1060), (390, 844)
PATIENCE_S = 120
IDLE = (
    "const bar = document.getElementById('progress'); "
    "return document.readyState === 'complete' && bar.hidden && !document.querySelector('main[aria-busy]')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--user", required=True)
    parser.add_argument("--item", required=True)
    parser.add_argument("--query")
    parser.add_argument("--versus", help="a second published bundle")
    arguments = parser.parse_args()
    state = {name: value for name, value in vars(arguments).items() if name != "url" and value}
    driver = _driver()
    try:
        page = f"{arguments.url}/explorer/"
        plain = {name: value for name, value in state.items() if name != "versus"}
        _shoot(driver, page, plain, "explorer.png", DESKTOP, "light")
        _shoot(driver, page, state, "explorer_compare.png", WIDE, "dark", scroll_to="#whatif")
        _shoot(driver, page, plain, "explorer_phone.png", PHONE, "light", scroll_to="#result")
    finally:
        driver.quit()


def _driver() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic")
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", *quiet, f"user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _shoot(
    driver: webdriver.Chrome,
    page: str,
    state: dict[str, str],
    name: str,
    size: tuple[int, int],
    scheme: str,
    scroll_to: str | None = None,
) -> None:
    """One picture of this state, in docs/."""
    width, height = size
    phone = width < 600
    shape = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get("about:blank")
    driver.get(f"{page}#{urlencode(state)}")
    _settle(driver)
    if scroll_to:
        driver.execute_script("document.querySelector(arguments[0]).scrollIntoView()", scroll_to)
        _settle(driver)
    picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    (DOCS / name).write_bytes(base64.b64decode(picture["data"]))
    print(DOCS / name)


def _settle(driver: webdriver.Chrome) -> None:
    """Until nothing has been asked of the service for a second."""
    deadline, quiet = time.monotonic() + PATIENCE_S, 0
    while quiet < 5:
        time.sleep(0.2)
        quiet = quiet + 1 if driver.execute_script(IDLE) else 0
        if time.monotonic() > deadline:
            raise TimeoutError(f"{driver.current_url} still loads after {PATIENCE_S} s")


if __name__ == "__main__":
    main()
