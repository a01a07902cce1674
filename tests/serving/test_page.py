"""The page in a real browser: it asks, shows what it is told, and works by keyboard, on a phone and in the dark.

With PISCO_INDEX_SCREENSHOTS=FOLDER it leaves pictures of what it looked like.
"""

import os
import shutil
from pathlib import Path

import pytest

from pisco_index.reader.live.engine import FakeEngine
from pisco_index.serving.access import Keys

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = os.environ.get("PISCO_INDEX_SCREENSHOTS")
PARGER = "Where was Ebir Parger born?"
KEY = "a-key-of-some-length"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open the page of a server; at the end it must have written no error."""
    contexts, errors = [], []

    def open_it(client, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        own = (str(client.base_url), "data:")
        page.on("request", lambda request: request.url.startswith(own) or errors.append(request.url))
        page.goto(str(client.base_url))
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not errors


def picture(page, name):
    if PICTURES is not None:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_a_question_is_asked_by_keyboard_and_its_grounds_are_shown(client, open_page):
    page = open_page(client)
    expect = sync_api.expect
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(PARGER)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text("Niritur")
    expect(page.locator("#timings dt")).to_have_text(["waiting", "finding documents", "fetching memory", "generating"])
    first = page.locator("#documents li").first
    expect(first).to_contain_text("Ebir Parger")
    expect(first).to_contain_text("kB as int8")
    expect(page.locator("#documents li")).to_have_count(5)
    first.locator("summary").press("Enter")
    expect(first.locator(".text")).to_contain_text("Niritur")
    expect(page.locator("#usage")).to_contain_text("memory in the place of")
    picture(page, "answer")


def test_the_store_is_browsed_and_searched(client, open_page):
    page = open_page(client)
    expect = sync_api.expect
    page.locator("#to-browse").press("Enter")
    expect(page.locator("#list li")).to_have_count(20)
    expect(page.locator("#store")).to_contain_text("int8")
    expect(page.locator("#history tbody tr")).to_have_count(1)
    picture(page, "browse")
    page.locator("#next").press("Enter")
    expect(page.locator("#list li")).to_have_count(4)
    expect(page.locator("#place")).to_have_text("21 to 24 of 24")
    page.locator("#search").fill("Ebir Parger")
    page.keyboard.press("Enter")
    expect(page.locator("#list li").first).to_contain_text("tp-held-out-000000")
    page.locator("#search").fill("zzz")
    page.keyboard.press("Enter")
    expect(page.locator("#list-state")).to_have_text("No document matches. Use other words.")
    picture(page, "empty")
    # A store that cannot be searched, and keeps no text.
    page.locator("#model").select_option("other")
    expect(page.locator("#list-state .error")).to_contain_text("no search index")
    page.locator("#search").fill("")
    page.locator("#search").press("Enter")
    expect(page.locator("#list li")).to_have_count(1)
    page.locator("#list summary").click()
    expect(page.locator("#list .text")).to_have_text("The store does not keep the text.")


def test_what_goes_wrong_is_said_and_can_be_tried_again(client, open_page):
    page = open_page(client)
    expect = sync_api.expect
    page.locator("summary", has_text="Options").press("Enter")
    page.locator("#ids").fill("nobody")
    page.locator("#question").fill(PARGER)
    page.keyboard.press("Enter")
    expect(page.locator("#answer-state .error")).to_contain_text("The store holds no memory of 'nobody'")
    picture(page, "error")
    page.locator("#ids").fill("tp-held-out-000000")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#answer")).to_have_text("Niritur")
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#send").click()
    expect(page.locator("#answer-state .error")).to_contain_text("The server cannot be reached.")


def test_texts_are_never_run(served, open_page):
    engine = FakeEngine({}, token_budget=1)
    engine.prompt_ids = lambda *_: [0]
    engine.text = lambda _: "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page = open_page(served(engine=engine).client)
    page.on("dialog", lambda _: pytest.fail("a script of an answer ran"))
    page.locator("#question").fill(PARGER)
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#answer")).to_contain_text("<script>alert(2)</script>")


def test_a_key_is_asked_for_and_kept_in_the_tab(served, open_page):
    page = open_page(served(keys=Keys([KEY]), engine=FakeEngine({})).client)
    expect = sync_api.expect
    page.locator("#key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_have_value("")
    picture(page, "key")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_be_enabled()
    page.reload()
    expect(page.locator("#model")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(client, open_page, scheme):
    page = open_page(client, viewport={"width": 360, "height": 700}, color_scheme=scheme, has_touch=True)
    expect = sync_api.expect
    page.locator("#question").fill(PARGER)
    page.locator("#send").tap()
    expect(page.locator("#answer")).to_have_text("Niritur")
    expect(page.locator("#timings dt")).to_have_count(4)
    widths = [page.locator("html").evaluate("element => element.scrollWidth")]
    picture(page, f"phone-{scheme}-answer")
    page.locator("#to-browse").tap()
    expect(page.locator("#history tbody tr")).to_have_count(1)
    expect(page.locator("#list li")).to_have_count(20)
    widths.append(page.locator("html").evaluate("element => element.scrollWidth"))
    picture(page, f"phone-{scheme}-browse")
    assert widths == [360, 360]
    paper = page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor")
    assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(21, 24, 27)"}[scheme]
