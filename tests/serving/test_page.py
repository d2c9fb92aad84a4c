"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from craft.data.images import open_image
from craft.serving.settings import Access
from serving.server import serving
from serving.test_serve import wait_until_ready

CHROMIUM = "/usr/bin/chromium"
LLM = "craft-tiny/llama"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def picture(samples, tmp_path):
    path = tmp_path / "picture.png"
    open_image(samples[0].image).resize((112, 112)).save(path)
    return path


class Visit:
    """A page, what its console said, and the requests that it made to other hosts."""

    def __init__(self, browser, url: str, width: int = 1100, **options) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.goto(url)

    def _note(self, address: str, own: str) -> None:
        if not address.startswith((own, "data:", "blob:")):
            self.elsewhere.append(address)

    def ask(self, picture, options: str = "", encoders: tuple[str, ...] = ()) -> None:
        """Choose an image, options and encoders, and wait for all answers."""
        page = self.page
        page.wait_for_selector("#encoders input")
        page.set_input_files("#file", str(picture))
        page.fill("#options", options)
        for box in page.query_selector_all("#encoders input"):
            box.set_checked(box.get_attribute("value") in encoders)
        page.click("#go")
        page.wait_for_function(
            "n => document.querySelectorAll('.answer .small, .answer .error').length == n",
            arg=len(encoders),
            timeout=60_000,
        )

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def save(self, name: str) -> None:
        """Keep a screenshot in the folder that CRAFT_SCREENSHOTS names, to look at."""
        if folder := os.environ.get("CRAFT_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


OPTIONS = "bag, coat, dress, pullover, shirt, sneaker"


def test_two_encoders_answer_side_by_side(browser, models, encoders, picture):
    with serving(models[LLM], encoders) as running:
        visit = Visit(browser, running.url)
        visit.ask(picture, OPTIONS, (LLM, f"{LLM}:one"))
        page = visit.page
        cards = page.query_selector_all(".answer")
        assert [card.query_selector("h2").inner_text() for card in cards] == [LLM, f"{LLM}:one"]
        for card in cards:
            shares = [float(bar.inner_text().split()[-2]) for bar in card.query_selector_all(".bar")]
            assert (
                len(shares) == 6 and abs(sum(shares) - 100) < 0.5 and shares == sorted(shares, reverse=True)
            )
            assert card.query_selector(".text").inner_text() in OPTIONS
            canvas = card.query_selector("canvas")
            assert (
                canvas.evaluate(
                    "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
                )
                > 20
            )
        assert running.towers.get("one").hash[:8] in visit.text("#answers")
        page.eval_on_selector("#keep", "e => { e.value = 50; e.oninput(); }")
        visit.ask(picture, "", (LLM, f"{LLM}:two"))
        assert page.query_selector(".bar") is None and visit.text(".answer .text")
        assert visit.errors == [] and visit.elsewhere == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1100])
def test_the_page_fits_its_window(browser, models, encoders, picture, scheme, width):
    with serving(models[LLM], encoders) as running:
        visit = Visit(browser, running.url, width, color_scheme=scheme)
        visit.page.wait_for_selector("#encoders input")
        assert not visit.overflows()
        visit.save(f"page-{scheme}-{width}-empty")
        visit.page.eval_on_selector("#keep", "e => { e.value = 60; e.oninput(); }")
        visit.ask(picture, OPTIONS, (LLM, f"{LLM}:one", f"{LLM}:two"))
        assert not visit.overflows()
        visit.save(f"page-{scheme}-{width}")
        assert visit.errors == []


def test_a_wrong_key_shows_the_box_for_it(browser, models, encoders, picture):
    with serving(models[LLM], encoders, Access(keys=("right",))) as running:
        visit = Visit(browser, running.url)
        page = visit.page
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "wrong")
        page.dispatch_event("#key", "change")
        page.wait_for_timeout(300)
        assert page.is_visible("#key") and not page.query_selector("#encoders input")
        visit.save("page-key")
        page.fill("#key", "right")
        page.dispatch_event("#key", "change")
        visit.ask(picture, "", (f"{LLM}:one",))
        assert not page.is_visible("#key") and page.query_selector(".answer .error") is None


def test_a_refusal_is_shown_in_its_card(browser, models, encoders, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with serving(models[LLM], encoders) as running:
        visit = Visit(browser, running.url)
        visit.ask(broken, "", (LLM,))
        assert "not an image" in visit.text(".answer .error")
        visit.ask(broken, "one", (LLM,))
        assert "at least two" in visit.text(".answer .error")


def test_a_server_that_has_gone_is_named(browser, models, encoders, picture):
    with serving(models[LLM], encoders) as running:
        visit = Visit(browser, running.url)
        visit.ask(picture, "", (LLM,))
    visit.page.click("#go")
    visit.page.wait_for_function("document.getElementById('state').textContent.includes('cannot be reached')")
    assert visit.page.is_enabled("#go")


def test_the_page_of_a_demo(browser, tmp_path, picture):
    """`craft demo --ui` as a process: its page answers with the base tower and the new encoder."""
    words = ("demo", "--out", str(tmp_path), "--max-steps", "1", "--limit", "4", "--device", "cpu", "--ui")
    with subprocess.Popen(
        [sys.executable, "-m", "craft", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            url = next(line.split()[1] for line in process.stderr if line.startswith("page: "))
            wait_until_ready(url.rstrip("/"), process)
            visit = Visit(browser, url)
            visit.ask(picture, OPTIONS, ("craft-tiny/qwen2", "craft-tiny/qwen2:apparel"))
            assert len(visit.page.query_selector_all(".answer canvas")) == 2 and visit.errors == []
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode in (0, -signal.SIGTERM)
