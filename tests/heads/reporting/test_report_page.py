"""The report's page in headless Chromium: errors, requests, sorting, filtering, sizes, colours.

Needs selenium, Chromium and its driver (Debian: chromium, chromium-driver); skipped without. The
page comes from a server here on this machine, which sees every request that a file would not make.
"""

import functools
import http.server
import json
import shutil
import threading

import pytest

from heads.reporting.report import report
from pipeline.cache.reader import Cache
from tests.support import report_runs, tiny_videos
from tests.support.report_runs import Made

SIZES = {"phone": 360, "wide": 1600}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and remembers what was asked for."""

    def __init__(self, folder):
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def end_headers(self):
        # Every test asks for the page again.
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *words):
        """Quiet."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A report with pictures, markup in names, long names, and an unfinished run."""
    folder = tmp_path_factory.mktemp("page")
    videos = tiny_videos.make_videos(folder / "videos", clips=4)
    tiny_videos.run(
        videos, folder / "cache", tiny_videos.config_of(videos, keep=("pooled", "boxes"))
    )
    cache = Cache(folder / "cache")
    names = ("put " * 30, "x" * 90, "<b>|\nc", *(f"class {k}" for k in range(20)))
    more = {
        "fingerprint": cache.fingerprint,
        "cache": str(cache.path),
        "views": 2,
        "config": cache.config,
        "classes": names,
        "clips": tuple(f"clip{k}" for k in range(4)),
    }
    report_runs.study(folder / "runs", **more)
    for k in range(8):
        name, options = f"a_row_with_a_long_name_{k}_" + "y" * 40, {"dropout": k / 10}
        Made(name, options=options, skill=0.2, **more).write(folder / "runs")
    (Made("late", **more).write(folder / "runs") / "metrics.json").unlink()
    report([folder / "runs"], folder / "out", macs=False, say=lambda line: None)
    with Server(folder / "out") as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip(
            "no chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    for word in ("no-first-run", "disable-extensions"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    """The page as it was written, freshly opened; browser.run(...) is JavaScript in it."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    server.asked.clear()
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{server.server_port}/report.html")
    return browser


def resize(browser, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def open_all(browser) -> None:
    browser.execute_script(
        "document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
    )


def column(browser, table: str, number: int, visible: bool = False) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(`#table-${arguments[0]} tbody tr`)]"
        ".filter((row) => !arguments[2] || row.offsetParent)"
        ".map((row) => row.cells[arguments[1]].textContent)",
        table,
        number,
        visible,
    )


def test_the_page_opens_without_errors_and_fetches_nothing(page, server):
    open_all(page)
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [
        f"http://127.0.0.1:{server.server_port}/report.html"
    ]
    assert server.asked == ["/report.html"]


def test_pictures_load(page):
    open_all(page)
    found = page.execute_script(
        "return [...document.images].map((image) => [image.complete, image.naturalWidth])"
    )
    assert found
    assert all(complete and width > 100 for complete, width in found)


def test_what_is_not_as_it_should_be_is_seen_first(page):
    notice = page.find_element("css selector", "header .notice").text
    assert "late-seed0: not finished" in notice


def test_a_click_sorts_a_table_and_another_turns_it(page):
    button = page.find_elements("css selector", "#table-study th button")
    names, figures = ([b.text for b in button].index(text) for text in ("name", "test top-1 %"))
    button[figures].click()
    values = [float(text.split("±")[0]) for text in column(page, "study", figures)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1
    button[figures].click()
    assert [float(text.split("±")[0]) for text in column(page, "study", figures)] == sorted(values)
    button[names].click()
    assert column(page, "study", names) == sorted(column(page, "study", names))
    heads = page.find_elements("css selector", "#table-study th")
    assert [head.get_attribute("aria-sort") for head in heads].count("ascending") == 1


def test_empty_cells_come_last_whichever_way_a_table_is_sorted(page):
    open_all(page)
    buttons = page.find_elements("css selector", "#table-runs th button")
    where = [button.text for button in buttons].index("test top-1 %")
    for _ in range(2):
        buttons[where].click()
        assert column(page, "runs", where)[-1] == "–"


def test_words_filter_the_rows_of_a_table(page):
    field = page.find_element("css selector", ".filter[data-table=table-study] input")
    field.send_keys("LONG name_3")
    assert [name[:24] for name in column(page, "study", 0, visible=True)] == [
        "a_row_with_a_long_name_3"
    ]
    assert (
        page.find_element("css selector", ".filter[data-table=table-study] output").text
        == "1 of 10 rows"
    )
    field.clear()
    field.send_keys("nothing is called so")
    assert column(page, "study", 0, visible=True) == []


def test_without_javascript_everything_is_there_but_the_filter(page, server):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.get(f"http://127.0.0.1:{server.server_port}/report.html")
    assert "strong" in page.find_element("id", "table-study").text
    assert page.find_elements("css selector", "#table-study button") == []
    assert not page.find_element("css selector", ".filter").is_displayed()
    fold = page.find_element("css selector", "#results details")
    fold.find_element("css selector", "summary").click()
    assert fold.find_element("css selector", "table").is_displayed()


@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_never_wider_than_the_screen(page, size):
    resize(page, SIZES[size])
    open_all(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= SIZES[size]
    # What sticks out, and cannot be scrolled to.
    lost = page.execute_script(
        "const all = 'h1,h2,p,figure,img,details,.panels>div,.scroll,pre,.legend,nav';"
        "return [...document.querySelectorAll(all)]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert lost == []


@pytest.mark.parametrize("size", SIZES)
def test_text_in_drawings_is_as_large_as_it_was_drawn(page, size):
    resize(page, SIZES[size])
    scales = page.execute_script(
        "return [...document.querySelectorAll('.panels svg')]"
        ".filter((s) => s.getBoundingClientRect().width)"
        ".map((s) => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert scales
    assert all(0.85 < scale < 1.2 for scale in scales)


def test_light_and_dark_follow_the_reader_and_both_can_be_read(page):
    paper = {}
    for scheme in ("light", "dark"):
        resize(page, 1200, scheme)
        for selector in ("td", "p.caption", "summary", ".plot text", "th button", "nav a"):
            back, front = page.execute_script(
                "const e = document.querySelector(arguments[0]), s = getComputedStyle(e);"
                "return [getComputedStyle(document.body).backgroundColor, e instanceof SVGElement "
                "? s.fill : s.color]",
                selector,
            )
            assert contrast(back, front) >= 4.5, (scheme, selector, back, front)
        paper[scheme] = luminance(back)
    assert paper["light"] > 0.8
    assert paper["dark"] < 0.05


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as WCAG 2 defines it."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
