"""The page, in a real browser."""

import os
import re
import shutil

import pytest
from conftest import Cluster
from playwright.sync_api import expect, sync_playwright
from servers import LANGUAGES

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("SCREENSHOTS") # a directory to leave pictures in

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium")
expect.set_options(timeout=30000)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(20000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith(("http://127.0.0.1", "data:")) else None)
    yield page
    page.close()
    assert errors == [], "no error in the page, and nothing fetched from elsewhere"


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_chat_through_prefill_and_decode(page, language):
    cluster = Cluster(language, [language], [language, language])
    page.goto(cluster.url)
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#workers tr[data-state=up]")).to_have_count(3)
    expect(page.locator("#workers tr[data-role=decode]").first).to_contain_text("shared memory")

    page.get_by_role("button", name="Send").click()
    answer = page.locator(".turn[data-role=assistant]").last
    expect(answer).to_contain_text("a coin.")
    expect(answer.locator(".token").nth(2)).to_be_visible()
    # The picture: three lanes in their order, the workers by their names, and times.
    for lane in ["prefill", "handoff", "decode"]:
        expect(page.locator(f"#timeline rect[data-lane={lane}]")).to_have_count(1)
    boxes = [page.locator(f"#timeline rect[data-lane={lane}]").bounding_box() for lane in ["prefill", "decode"]]
    assert boxes[0]["x"] <= boxes[1]["x"]
    prefill, decode = (page.locator(f"#{role}-worker").text_content() for role in ["prefill", "decode"])
    assert "http://" + prefill in [w.url for w in cluster.of("prefill")]
    assert "http://" + decode in [w.url for w in cluster.of("decode")]
    expect(page.locator("tr[data-phase=prefill]")).to_have_text(re.compile(r"[\d.]+ ms, \d+ prompt tokens"))
    expect(page.locator("tr[data-phase=decode]")).to_have_text(re.compile(r"[\d.]+ ms, \d+ tokens"))

    ask(page, "what does the red box hold?")
    expect(page.locator(".turn[data-role=assistant]").last).to_contain_text("a key.")

    # A worker dies: the page shows it, and the chat goes on.
    cluster.of("decode")[0].kill()
    expect(page.locator("#workers tr[data-state=dead]")).to_have_count(1)
    ask(page, "what does the green bag hold?")
    expect(page.locator(".turn[data-role=assistant]").last).to_contain_text("a shell.")
    cluster.of("decode")[1].kill()
    expect(page.locator("#workers tr[data-state=dead]")).to_have_count(2)
    ask(page, "what does the red box hold?")
    expect(page.locator(".turn .error").last).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()

    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    cluster.stop()


def test_stop(page):
    cluster = Cluster(LANGUAGES[0], [LANGUAGES[0]], [LANGUAGES[-1]])
    page.goto(cluster.url)
    expect(page.locator("#model")).to_have_text("tiny")
    # An answer that is long for sure: at temperature 2 some end with their first token.
    page.route("**/v1/chat/completions", lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True}))
    page.get_by_label("temperature").fill("2")
    page.get_by_label("tokens").fill("400")
    page.evaluate("document.querySelector('#prompt').value = 'the old farmer walks to the river.'")
    page.get_by_role("button", name="Send").click()
    # There, if not to be seen: it may be a space.
    page.locator(".token").first.wait_for(state="attached")
    # If the answer is over by now, the button is disabled and this does nothing.
    page.evaluate("document.querySelector('#stop').click()")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    cluster.check_quiescent()
    cluster.stop()


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_words_stay_whole(page, width):
    """In the table of workers no word is broken and nothing sticks out; and the page says what its words mean."""
    cluster = Cluster(LANGUAGES[0], [LANGUAGES[0]], [LANGUAGES[-1]])
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(cluster.url)
    expect(page.locator("#workers tr[data-state=up]")).to_have_count(2)
    expect(page.locator("#workers tr[data-role=decode]").first).to_contain_text("shared memory")
    broken = page.evaluate("""() => {
        const broken = [];
        const texts = document.createTreeWalker(document.querySelector("#workers").closest("table"), NodeFilter.SHOW_TEXT);
        for (let text; (text = texts.nextNode());)
            for (const word of text.data.matchAll(/[^\\s/-]+/g)) {
                const range = document.createRange();
                range.setStart(text, word.index);
                range.setEnd(text, word.index + word[0].length);
                if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) broken.push(word[0]);
            }
        return broken;
    }""")
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/page-{width}.png", full_page=True)
    assert broken == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "the page scrolls sideways"
    for term in ["prefill", "handoff", "decode"]:
        expect(page.locator("dt", has_text=term)).to_be_visible()
    cluster.stop()
