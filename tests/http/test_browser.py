"""Chromium, headless, as a visitor: the example site through the gateway, and the dashboard.

- Every request that a page makes is answered well, redirects included; every style, script, module, font and
  image has loaded and taken effect; the console holds no error.
- The dashboard's numbers move under load; it says so when it has lost touch.
- Screenshots, at 1280 and 390 pixels, light and dark, stay in DWS_SCREENSHOTS or pytest's directory.

A browser that is missing fails these tests: Debian's packages are chromium and chromium-driver.
"""

import json
import os
import re
import shutil
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.http.real_cluster import SITE, RealCluster, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: No look for updates, and nothing else of the browser's own on the network.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-extensions", "--disable-sync", "--no-proxy-server",
    "--hide-scrollbars",
]  # fmt: skip
WIDTHS = {1280: 900, 390: 844}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with RealCluster(tmp_path_factory.mktemp("browser") / "data") as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator["Browser"]:
    options = Options()
    options.binary_location = found("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(found("chromedriver")))
    try:
        driver.set_page_load_timeout(30)
        yield Browser(driver)
    finally:
        driver.quit()


def found(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} is not installed; Debian's packages are chromium and chromium-driver"
    return path


class Browser:
    """What a page asked for and was answered, since the last look at it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def window(self, width: int, scheme: str = "light") -> None:
        self._tell("Emulation.setDeviceMetricsOverride",
                   width=width, height=WIDTHS[width], deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self._tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _tell(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def text(self) -> str:
        return str(self.script("return document.body.innerText"))

    def screenshot(self, path: Path) -> None:
        assert self.driver.save_screenshot(str(path))

    def take_errors(self) -> list[str]:
        """Of the console: of scripts, of what was blocked, of requests."""
        severe = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [entry["message"] for entry in severe]

    def take_requests(self) -> "Requests":
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return Requests(messages)


class Requests:
    """From the browser's own record of the network: what was asked for, by URL, and how each chain ended."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.first: dict[str, str] = {}
        self.hops: dict[str, list[int]] = {}
        self.status: dict[str, int] = {}
        self.kind: dict[str, str] = {}
        self.failed: list[str] = []
        for message in messages:
            told = message["params"]
            match message["method"]:
                case "Network.requestWillBeSent":
                    self._asked(told)
                case "Network.responseReceived":
                    self.status[told["requestId"]] = told["response"]["status"]
                    self.kind[told["requestId"]] = told["response"]["mimeType"]
                # Of what the page has asked for: the browser looks for hosts of its own at its start.
                case "Network.loadingFailed" if told["requestId"] in self.first:
                    self.failed.append(f"{self.first[told['requestId']]}: {told['errorText']}")

    def _asked(self, told: dict[str, Any]) -> None:
        url = told["request"]["url"]
        if not url.startswith("http"):
            return
        self.first.setdefault(told["requestId"], url)
        hops = self.hops.setdefault(told["requestId"], [])
        if "redirectResponse" in told:
            hops.append(told["redirectResponse"]["status"])

    def answers(self) -> dict[str, int]:
        """Path → the last status of each request that was answered."""
        return {
            urlsplit(self.first[key]).path: status for key, status in self.status.items() if key in self.first
        }

    def check(self) -> None:
        assert not self.failed, self.failed
        answers = self.answers()
        assert answers and set(answers.values()) <= {200, 304}, answers
        # At most: the server, the gateway, the page's server.
        assert all(len(hops) <= 3 and set(hops) <= {302} for hops in self.hops.values()), self.hops

    def paths(self) -> set[str]:
        return set(self.answers())


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("DWS_SCREENSHOTS")
    directory = Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    print(f"screenshots in {directory}")
    return directory


LOADED = """
    const images = [...document.images];
    const fonts = [...document.fonts];
    return {
        ready: document.readyState === "complete",
        images: images.map(image => [image.src, image.complete && image.naturalWidth > 0]),
        fonts: fonts.map(font => [font.family, font.status]),
        styled: getComputedStyle(document.querySelector(".skip")).position,
        module: document.querySelector("[data-served-by]").textContent,
        classic: document.documentElement.dataset.copy,
        resources: performance.getEntriesByType("resource").map(each => each.name),
    };
"""


def check_page(browser: Browser) -> None:
    """Everything that a page of the example site consists of is there and works."""
    eventually(lambda: is_loaded(browser.script(LOADED)), f"all of {browser.driver.current_url} loaded", 20.0)
    loaded = browser.script(LOADED)
    assert urlsplit(browser.driver.current_url).netloc in loaded["module"]
    paths = {urlsplit(url).path for url in loaded["resources"]}
    assert {"/assets/style.css", "/assets/app.js", "/assets/filter.js", "/assets/copy.js"} <= paths
    assert browser.take_errors() == []


def is_loaded(loaded: dict[str, Any]) -> bool:
    return bool(
        loaded["ready"]
        and loaded["images"]
        and all(drawn for _, drawn in loaded["images"])
        and loaded["fonts"] == [["dws wordmark", "loaded"]]
        and loaded["styled"] == "absolute"
        and loaded["module"]
        and loaded["classic"] == "on"
    )


def test_the_site_is_whole(cluster: RealCluster, browser: Browser) -> None:
    browser.driver.get(f"{cluster.gateway}/")
    assert browser.driver.title == "dws: pages on two servers"
    # It stands where the page is served, not at the gateway.
    assert urlsplit(browser.driver.current_url).netloc in {
        urlsplit(endpoint).netloc for endpoint in cluster.http_endpoints().values()
    }
    check_page(browser)
    # The module has fetched its list, from another origin perhaps, and put it to use.
    find = browser.driver.find_element(By.CSS_SELECTOR, "[data-find] input")
    eventually(find.is_displayed, "the search field")
    find.send_keys("dealer")
    eventually(lambda: "of 14 pages" in browser.text(), "the search's result")

    requests = browser.take_requests()
    requests.check()
    assets = {f"/assets/{file.name}" for file in (SITE / "assets").iterdir()}
    used_elsewhere = {"/assets/heartbeat.svg", "/assets/request-reply.svg", "/assets/spread.png"}
    assert assets - used_elsewhere <= requests.paths()
    assert "/data/pages.json" in requests.paths()


def test_links_lead_on(cluster: RealCluster, browser: Browser) -> None:
    """Click after click, down directories and up, through every page that `next` leads to."""
    browser.driver.get(f"{cluster.gateway}/docs/start.html")
    seen = []
    while True:
        check_page(browser)
        path = urlsplit(browser.driver.current_url).path
        assert path not in seen
        seen.append(path)
        links = browser.driver.find_elements(By.CSS_SELECTOR, "a[rel=next]")
        if not links:
            break
        before = browser.driver.current_url
        links[0].click()
        eventually(lambda before=before: browser.driver.current_url != before, f"the page after {path}", 20.0)
    pages = {f"/{file.relative_to(SITE)}" for file in SITE.rglob("*.html")}
    assert pages - {"/index.html"} <= set(seen)

    browser.driver.find_element(By.CSS_SELECTOR, "a.brand").click()
    eventually(lambda: urlsplit(browser.driver.current_url).path == "/index.html", "the first page", 20.0)
    check_page(browser)
    browser.driver.find_element(By.LINK_TEXT, "ZeroMQ message patterns").click()
    eventually(lambda: browser.driver.title.startswith("Patterns"), "a directory's index", 20.0)
    check_page(browser)
    browser.driver.back()
    eventually(lambda: browser.driver.title == "dws: pages on two servers", "the page before", 20.0)
    browser.take_requests().check()


def test_a_page_that_is_not_there(cluster: RealCluster, browser: Browser) -> None:
    browser.driver.get(f"{cluster.gateway}/no/such/page.html")
    assert "/no/such/page.html" in browser.text()
    assert set(browser.take_requests().answers().values()) <= {404}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_site_in_a_window(
    cluster: RealCluster, browser: Browser, screenshots: Path, width: int, scheme: str
) -> None:
    browser.window(width, scheme)
    browser.driver.get(f"{cluster.gateway}/")
    check_page(browser)
    check_fits(browser, width)
    browser.screenshot(screenshots / f"site-{width}-{scheme}.png")


def check_fits(browser: Browser, width: int) -> None:
    """Nothing is wider than the window."""
    assert browser.script("return document.documentElement.scrollWidth") <= width


# -- the dashboard ---------------------------------------------------------------------------


class Load:
    """Pages read through the gateway, one after the other, in two threads."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(2)]

    def _read(self) -> None:
        read = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        files = [file.relative_to(SITE) for file in SITE.rglob("*.html")]
        while not self._stop.is_set():
            for file in files:
                with read.open(f"{self._gateway}/{file}", timeout=30) as answer:
                    answer.read()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*", text)


def open_dashboard(cluster: RealCluster, browser: Browser) -> None:
    browser.driver.get(f"{cluster.gateway}/_dws/")
    names = list(cluster.http_endpoints())
    eventually(lambda: all(name in browser.text() for name in names), "the servers on the dashboard", 20.0)


def test_the_dashboards_numbers_move_under_load(cluster: RealCluster, browser: Browser) -> None:
    open_dashboard(cluster, browser)
    with Load(cluster.gateway):
        wait_moved(browser, 5)
        # A page that is read is a hot one; a choice of it has a reason.
        eventually(lambda: "/index.html" in browser.text(), "a page's name", 30.0)
    assert browser.take_errors() == []
    requests = browser.take_requests()
    assert not requests.failed
    # Nothing comes from elsewhere.
    assert {urlsplit(url).netloc for url in requests.first.values()} == {urlsplit(cluster.gateway).netloc}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_dashboard_in_a_window(
    cluster: RealCluster, browser: Browser, screenshots: Path, width: int, scheme: str
) -> None:
    browser.window(width, scheme)
    with Load(cluster.gateway):
        open_dashboard(cluster, browser)
        eventually(lambda: "/index.html" in browser.text(), "a page's name", 30.0)
        # For whoever looks at the screenshots, charts with a history.
        wait_moved(browser, 40 if "DWS_SCREENSHOTS" in os.environ else 3)
        check_fits(browser, width)
        browser.screenshot(screenshots / f"dashboard-{width}-{scheme}.png")
    assert browser.take_errors() == []


def wait_moved(browser: Browser, times: int) -> None:
    seen: set[tuple[str, ...]] = set()

    def moved() -> bool:
        seen.add(tuple(numbers(browser.text())))
        return len(seen) > times

    eventually(moved, f"{times} changes of the figures", 60.0)


def test_the_dashboard_works_by_keyboard_and_names_its_parts(cluster: RealCluster, browser: Browser) -> None:
    open_dashboard(cluster, browser)
    assert browser.script("return document.documentElement.lang")
    assert browser.driver.title
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "h1")) == 1
    assert browser.driver.find_elements(By.CSS_SELECTOR, "main, [role=main]")
    nameless = browser.script(
        "return [...document.querySelectorAll('svg, canvas, img, table, button, input, select')].filter("
        "each => !each.closest('[aria-hidden=true]') && !(each.ariaLabel || each.alt || each.title"
        " || each.textContent.trim() || each.labels?.length || each.getAttribute('aria-labelledby')))"
        ".map(each => each.outerHTML.slice(0, 200))"
    )
    assert nameless == []
    # Every stop of the Tab key can be seen.
    for _ in range(len(browser.driver.find_elements(By.CSS_SELECTOR, "a[href], button, [tabindex='0']"))):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        assert browser.script(
            "const box = document.activeElement.getBoundingClientRect();"
            " return box.width > 0 && box.height > 0"
        )


def test_the_dashboard_says_when_it_has_lost_touch(tmp_path: Path, browser: Browser) -> None:
    with RealCluster(tmp_path / "data", webservers=2) as cluster:
        open_dashboard(cluster, browser)
        assert not LOST.search(browser.text())
        gateway = cluster.node("gateway")["pid"]
        os.kill(gateway, signal.SIGSTOP)
        try:
            eventually(lambda: LOST.search(browser.text()), "a word of it", 30.0)
        finally:
            os.kill(gateway, signal.SIGCONT)
        eventually(lambda: not LOST.search(browser.text()), "that it is back", 30.0)


#: As a reader would understand it.
LOST = re.compile(r"lost touch|no contact|disconnected|connection lost|not answering", re.I)
