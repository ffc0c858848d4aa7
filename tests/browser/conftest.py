"""One Chromium for all tests, and pages that count what goes wrong in them."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the pages: no updates, no profile, no connections in the background.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}


class Opened(NamedTuple):
    """A page with its width, and the errors and requests that opening it made."""

    page: Any
    width: int
    errors: list[str]
    requests: list[str]


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium with an empty profile."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session", params=list(SIZES))
def screen(request, browser):
    """A tab of the size of a phone or a desktop, for one page after another."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    yield context
    context.close()


@pytest.fixture
def visit(screen):
    """A function from a file to the page that the browser shows."""
    pages = []

    def opened(path: pathlib.Path) -> Opened:
        page = screen.new_page()
        pages.append(page)
        errors, requests = [], []
        page.on(
            "console", lambda m: m.type == "error" and errors.append(f"console: {m}")
        )
        page.on("pageerror", lambda error: errors.append(f"script: {error}"))
        page.on("requestfailed", lambda one: errors.append(f"failed: {one.url}"))
        page.on("request", lambda one: requests.append(one.url))
        page.goto(path.as_uri(), wait_until="load")
        return Opened(page, page.viewport_size["width"], errors, requests)

    yield opened
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def report(browser, tmp_path_factory):
    """The report.html of a comparison: in the folder CLIPJAX_REPORT, or a short one."""
    given = os.environ.get("CLIPJAX_REPORT")
    if given:
        return ROOT / given / "report.html"
    out = tmp_path_factory.mktemp("report") / "out"
    command = [sys.executable, "-m", "clipjax", "compare", "--hidden", "16"]
    command += ["--length", "20", "--batch", "4", "--steps", "12", "--seeds", "1"]
    command += ["--clips", "none,clip_by_global_norm:1", "--out", str(out)]
    # Compiling is most of it.
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=quick, capture_output=True)
    return out / "report.html"


@pytest.fixture(scope="session")
def site(browser):
    """The folder of the built site."""
    built = ROOT / "docs" / "_build" / "html"
    if not (built / "index.html").exists():
        pytest.skip("the site is not built: run `make docs`")
    return built
