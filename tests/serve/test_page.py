"""The page in a real browser: it writes, streams, pauses, steps, shows a neuron and another run, in every form."""

import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; on Debian: apt-get install chromium"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# what axe finds that a user would stumble over
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as library:
        # without a sandbox: tests may run as root
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):
    """Opens the page; nothing of it may come from elsewhere, and no script may fail."""
    contexts, faults = [], []

    def open(link: str = "", size=DESKTOP, scheme="light"):
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda asked: faults.append(asked.url) if served.url not in asked.url else None)
        page.goto(f"{served.url}/{link}")
        page.wait_for_function("() => document.getElementById('status').textContent === 'ready'")
        return page

    yield open
    for context in contexts:
        context.close()
    assert not faults


def write(page, prompt="It was", tokens=30, seed=3):
    page.fill("[name=prompt]", prompt)
    page.fill("[name=tokens]", str(tokens))
    page.fill("[name=seed]", str(seed))
    page.click("#write")


def wait_for(page, words):
    page.wait_for_function("words => document.getElementById('status').textContent.includes(words)", arg=words)


def text_of(page, run=0):
    return page.locator(".run .text").nth(run).inner_text()


def test_both_runs_write_what_the_server_writes(open_page, served, pair):
    page = open_page()
    write(page)
    page.wait_for_function("() => document.getElementById('status').textContent.match(/done/g)?.length === 2")
    for number, run in enumerate(pair):
        fields = {"model": run.name, "prompt": "It was", "max_tokens": 30, "seed": 3, "temperature": 0.8}
        wanted = served.complete(**fields, echo=True)["choices"][0]["text"]
        # the last character may be half written
        shown = page.locator(".run .text").nth(number).evaluate("element => element.textContent")
        assert wanted.startswith(shown) and len(shown) > 10
    assert "dense, zeros included" in page.locator("[data-figure=operations]").first.inner_text()
    assert page.locator(".run .text .prompt").count() == 12


def test_it_pauses_and_goes_token_by_token(open_page):
    page = open_page()
    page.click("#pause")
    write(page, tokens=200)
    page.click("#pause")
    wait_for(page, "paused")

    def shown():
        return page.locator(".run").first.locator("tbody").first.locator("tr").count()

    page.locator(".table summary").first.click()
    page.click("#step")
    before = page.locator("[data-figure=bits]").first.inner_text()
    # on a busy machine the first tokens are still on their way
    page.wait_for_function(
        """before => { document.getElementById("step").click();
        return document.querySelector("[data-figure=bits]").textContent !== before; }""",
        arg=before,
    )
    count, said = shown(), page.inner_text("#status")
    page.wait_for_timeout(200)
    assert shown() == count and page.inner_text("#status") == said and said.startswith("paused; ")
    page.click("#pause")
    wait_for(page, "done")


def test_a_click_shows_a_neuron_and_what_drives_it(open_page):
    page = open_page()
    write(page, tokens=60)
    wait_for(page, "done")
    raster = page.locator(".raster").first
    box = raster.bounding_box()
    raster.click(position={"x": box["width"] / 2, "y": 8})
    assert re.match(r"It fired at \d+ of 66 tokens", page.inner_text(".fires"))
    assert re.search(r"Token \d+ “.*” *.*: neuron 2 of 0 time key (fired|was silent)", page.inner_text(".cursor"))
    assert page.locator(".trace span").count() == 66
    raster.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert "neuron 4 of" in page.inner_text(".cursor") and page.input_value("[data-pick=neuron]") == "4"
    page.select_option("[data-pick=layer]", "3")
    assert "neuron 4 of" in page.inner_text(".cursor")
    fired = page.locator(".trace .on").count()
    assert f"It fired at {fired} of 66" in page.inner_text(".fires")


def test_runs_are_switched(open_page, pair):
    page = open_page()
    assert [title.inner_text() for title in page.locator(".run h2").all()] == [run.name for run in pair]
    page.select_option("[name=beside]", "")
    page.select_option("[name=run]", pair[1].name)
    assert [title.inner_text() for title in page.locator(".run h2").all()] == [pair[1].name]
    write(page)
    wait_for(page, f"{pair[1].name}: 30 tokens, done")
    assert not page.locator(".raster").first.is_visible()


def test_a_link_brings_back_prompt_seed_and_view(open_page, pair):
    page = open_page()
    write(page, prompt="né & co", tokens=20, seed=9)
    wait_for(page, "done")
    page.fill("[data-pick=neuron]", "5")
    page.keyboard.press("Tab")
    link = page.evaluate("location.hash")
    other = open_page(link)
    assert other.input_value("[name=prompt]") == "né & co" and other.input_value("[name=seed]") == "9"
    assert other.input_value("[data-pick=neuron]") == "5"
    other.click("#write")
    wait_for(other, "done")
    assert text_of(other) == text_of(page)


def test_explanations_go_and_come_back(open_page):
    page = open_page()
    notes = page.locator(".note:visible")
    assert notes.count() == 3
    for _ in range(3):
        notes.first.get_by_role("button").click()
    assert notes.count() == 0
    page.reload()
    page.wait_for_function("() => document.getElementById('status').textContent === 'ready'")
    assert notes.count() == 0
    page.click("#explain")
    assert notes.count() == 3


def test_the_training_curve_and_no_report(open_page):
    page = open_page()
    page.locator(".training summary").first.click()
    page.wait_for_selector(".training svg circle")
    assert "step 12 of 12" in page.locator(".now").first.inner_text()
    assert "spikegpt measure RUN" in page.locator(".report").first.inner_text()


def test_a_refusal_is_said(open_page):
    page = open_page()
    page.evaluate("document.querySelector('[name=prompt]').removeAttribute('maxlength')")
    write(page, prompt="x" * 600)
    wait_for(page, "600 tokens; at most 512")


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")], ids=["desktop", "phone"])
def test_it_is_readable_in_every_form(open_page, size, scheme, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = open_page("#neuron0=0.3", size, scheme)
    write(page, tokens=60)
    wait_for(page, "done")
    for details in page.locator("details").all():
        details.locator("summary").click()
    page.wait_for_selector(".training svg circle")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    # the policy of the page lets no foreign script in, and axe is one
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_keys_alone_write_and_pause(open_page):
    page = open_page()
    page.focus("[name=prompt]")
    page.keyboard.press("Enter")
    page.focus("#pause")
    page.keyboard.press("Space")
    wait_for(page, "paused")
    assert page.get_attribute("#pause", "aria-pressed") == "true"


def test_a_key_opens_the_page(browser, pair):
    from served import serving_runs

    with serving_runs(pair[1], key="word") as server:
        page = browser.new_page()
        page.goto(server.url)
        page.fill("#key input", "wrong")
        page.click("#key button")
        wait_for(page, "that is not the key")
        page.fill("#key input", "word")
        page.click("#key button")
        wait_for(page, "ready")
        page.close()
