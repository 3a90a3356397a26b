"""The page in Debian's Chromium, on real small checkpoints: every panel shows what the service answers."""

import json
import re
import shlex
from collections.abc import Iterator

import numpy as np
import pytest
from starlette.testclient import TestClient

from spanbert_jax.service.service import Service, Settings
from tests.support.browser import (
    CHROMIUM,
    CONTROL,
    DRIVER,
    ENTER,
    HOME,
    LEFT,
    RIGHT,
    SHIFT,
    TAB,
    Browser,
    is_installed,
    opened_browser,
    served,
)
from tests.support.fake_service import fake_service

pytestmark = pytest.mark.skipif(
    not is_installed(), reason=f"no {CHROMIUM} or {DRIVER}: apt-get install chromium chromium-driver"
)
NAMES = "Ada met Bob. He left."
HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1"> \'"&amp; 😀'
ARABIC = "وُلدت آدا في لندن"


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Browser, url: str):
        self.browser, self.url, self.js = browser, url, browser.js
        browser.devtools("Emulation.clearDeviceMetricsOverride")
        browser.go("about:blank")
        browser.go(url)
        browser.wait(lambda: self.text("#state") in ("Ready", "The server asks for an API key."))

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def click(self, selector: str, number: int = 0) -> None:
        self.browser.click(self.browser.all(selector)[number])

    def type(self, selector: str, keys: str) -> None:
        self.browser.type(self.browser.one(selector), keys)

    def set(self, selector: str, value: str) -> None:
        """Gives a control a value; the driver itself cannot type all characters."""
        script = """const control = document.querySelector(arguments[0]); control.value = arguments[1];
            for (const name of ["input", "change"]) control.dispatchEvent(new Event(name, { bubbles: true }))"""
        self.js(script, selector, value)

    def select(self, start: int, end: int) -> None:
        self.js("const [a, b] = arguments; document.getElementById('text').setSelectionRange(a, b)", start, end)

    def open(self, checkpoint: str, panel: str, text: str) -> None:
        self.set("#checkpoints select", checkpoint)
        self.click(f"#tab-{panel}")
        self.set("#text", text)

    def run(self) -> None:
        """Presses the shown panel's button, and waits for the result."""
        self.click("[role=tabpanel]:not([hidden]) .run")
        self.finish()

    def finish(self) -> None:
        result = "[role=tabpanel]:not([hidden]) .result"
        script = "return document.querySelector(`${arguments[0]}:not([aria-busy]) > *`) !== null"
        self.browser.wait(lambda: self.js(script, result))

    def shown(self, selector: str) -> list[str]:
        """The texts of elements of the shown result."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
        return list(self.js(script, f"[role=tabpanel]:not([hidden]) .result {selector}"))

    def marked(self) -> tuple[str, dict[str, str]]:
        """The text of the shown result without labels, and the text of each span by its number."""
        whole, spans = "", {}
        script = """return [...document.querySelector("[role=tabpanel]:not([hidden]) .marked").childNodes].map((node) =>
            [node.textContent, node.dataset?.spans ?? "", node.className?.includes("label") ?? false])"""
        for text, numbers, is_label in self.js(script):
            if not is_label:
                whole += text
                for number in numbers.split():
                    spans[number] = spans.get(number, "") + text
        return whole, spans

    def problems(self) -> list[str]:
        """What the browser complained of, but for statuses of the service."""
        return [one for one in self.browser.log() if "the server responded with a status of" not in one]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def url(service: Service) -> Iterator[str]:
    with served(service) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    opened = Page(browser, url)
    yield opened
    assert opened.problems() == [] and opened.js("return window.hacked === undefined")


def test_a_checkpoint_has_the_panels_of_its_heads(page: Page) -> None:
    heads = {
        "labels": ["Labels", "Why"],
        "questions": ["Question", "Why"],
        "tags": ["Entities", "Why"],
        "relations": ["Relation", "Why"],
        "gaps": ["Infill", "Why"],
    }
    for name, titles in heads.items():
        page.set("#checkpoints select", name)
        tabs = "return [...document.querySelectorAll('#tabs button')].filter((one) => one.checkVisibility())"
        assert page.js(f"{tabs}.map((one) => one.textContent)") == ["Spans", *titles]
        assert page.js("return document.querySelectorAll('[role=tabpanel]:not([hidden])').length") == 1


def test_spans_that_overlap_are_marked_and_have_their_neighbours(page: Page, client: TestClient) -> None:
    pytest.importorskip("re2")
    page.open("tags", "spans", NAMES)
    page.set("[aria-label=Rules]", "sentence; regex:name=[A-Z][a-z]+; noun")
    page.select(4, 8)
    page.click("#panel-spans [type=button]")
    page.run()
    expected = ["Ada met Bob.", "He left.", "Ada", "Bob", "He", "met"]
    assert page.marked() == (NAMES, {str(i): text for i, text in enumerate(expected)})
    assert page.shown(".marked .label") == ["name", "selected", "name", "sentence", "name", "sentence"]
    (problem,) = page.shown("[role=alert]")
    assert problem.startswith("422: ") and "'noun'" in problem
    page.click("#panel-spans .list button", 2)
    assert page.shown(".marked .chosen") == ["Ada", "name"]
    spans = [[0, 12], [13, 21], [0, 3], [8, 11], [13, 15], [4, 7]]
    body = {"inputs": [{"text": NAMES, "spans": spans}], "model": "tags"}
    vectors = np.array([one["embedding"] for one in client.post("/spans/embed", json=body).json()[0]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = sorted(((round(float(unit[i] @ unit[2]), 3), text) for i, text in enumerate(expected) if i != 2))[::-1]
    assert page.shown(".nearest .name") == [text for _, text in near]
    assert [float(value) for value in page.shown(".nearest .number")] == pytest.approx([of for of, _ in near], abs=2e-3)


def test_the_threshold_filters_entities_without_a_request(page: Page, client: TestClient) -> None:
    text = "😀 ab, cd efg"
    found = client.post("/entities", json={"inputs": [text], "model": "nested", "offsets": "utf16"}).json()[0]
    assert len(found) > 3
    page.open("nested", "entities", text)
    page.run()
    whole, spans = page.marked()
    assert whole == text and spans == {str(i): one["text"] for i, one in enumerate(found)}
    assert page.shown(".bars .hint") == [one["label"] for one in found]
    asked = "return performance.getEntriesByType('resource').length"
    before, middle = page.js(asked), sorted(one["score"] for one in found)[len(found) // 2]
    page.set("#panel-entities [type=range]", f"{middle:.2f}")
    kept = [one["text"] for one in found if one["score"] >= round(middle, 2)]
    assert 0 < len(kept) < len(found) and page.shown(".bars .name") == kept
    page.set("#panel-entities [type=range]", "0")
    page.click("#panel-entities [type=checkbox]")
    flat = client.post("/entities", json={"inputs": [text], "model": "nested", "flat": True}).json()[0]
    assert page.shown(".bars .name") == [one["text"] for one in flat] and page.js(asked) == before


def test_an_answer_stands_in_its_context(page: Page, client: TestClient) -> None:
    context = f"😀 ab cd {ARABIC} 😀 ef"
    question = {"question": "a b", "context": context, "model": "questions"}
    answers = client.post("/answer", json=question).json()["answers"]
    page.open("questions", "answer", context)
    page.set("#question", "a ")
    page.type("#question", f"b{ENTER}")
    page.finish()
    assert page.shown(".bars .name")[: len(answers)] == [one["text"] for one in answers]
    for i, one in enumerate(answers):
        page.click("#panel-answer .bars button", i)
        assert page.marked() == (context, {"0": one["text"]})
    assert page.shown(".bars .number")[0] == f"{100 * answers[0]['probability']:.1f}%"


def test_a_relation_is_asked_of_two_selections(page: Page, client: TestClient) -> None:
    text = "ab cd, e fghi"
    page.open("relations", "relation", text)
    page.run()
    assert page.shown("[role=alert]") == ["Select a subject and an object in the text."]
    button = "#panel-relation [type=button]"
    page.type("#text", CONTROL + HOME)
    page.type("#text", SHIFT + 3 * RIGHT)  # with the space, which is left out
    page.click(button, 0)
    page.select(7, 13)
    page.click(button, 1)
    page.run()
    body = {"text": text, "subject": [0, 2], "object": [7, 13], "model": "relations"}
    expected = client.post("/relation", json=body).json()
    assert page.shown(".bars .name") == [one["label"] for one in expected]
    assert page.marked() == (text, {"0": "ab", "1": "e fghi"})
    page.click("#tab-explain")
    page.run()
    why = client.post("/explain", json={"record": body, "model": "relations"}).json()
    assert page.shown(".token .word") == [token["text"] for token in why["tokens"]]
    assert why["target"] == expected[0]["label"] and why["target"] in page.shown("p.hint")[0]
    page.click("#tab-relation")
    page.select(0, 6)
    page.click(button, 1)
    page.run()
    assert page.shown("[role=alert]")[0].startswith("422: subject [0, 2] and object [0, 6] have characters in common")


def test_gaps_are_filled_by_each_head_step_by_step(page: Page, client: TestClient) -> None:
    page.open("gaps", "infill", "ab xy cd [MASK] 😀")
    page.select(3, 6)
    page.click("#panel-infill [type=button]")
    text = "ab ___ cd [MASK] 😀"
    assert page.js("return document.getElementById('text').value") == text
    page.run()
    found = [client.post("/infill", json={"text": text, "mix": mix, "model": "gaps"}).json() for mix in (0, None, 1)]
    assert page.shown(".filled h3") == ["MLM", "Both", "SBO"]
    filled = [one["text"] for one in found]
    assert page.shown(".filled .marked") == filled
    pieces = [[piece for gap in one["gaps"] for piece in gap["pieces"]] for one in found]
    page.click("#panel-infill .filled:nth-child(3) .piece", len(pieces[2]) - 1)
    assert page.shown(".filled:nth-child(3) .bars .name") == [one["piece"] for one in pieces[2][-1]["alternatives"]]
    assert page.shown(".filled:nth-child(2) .bars .hint")[0].startswith("MLM ")
    step = "#panel-infill .result [type=range]"
    page.set(step, "1")
    assert [one.count("▢") for one in page.shown(".filled .marked")] == [len(of) - 1 for of in pieces]
    page.set("#order", "parallel")
    page.run()
    page.click("#panel-infill .result [type=button]")
    page.browser.wait(lambda: page.text("#panel-infill output") == "0 of 1")
    page.browser.wait(lambda: page.text("#panel-infill output") == "1 of 1")
    assert not any("▢" in one for one in page.shown(".filled .marked"))


def test_an_attribution_stands_with_each_piece(page: Page, client: TestClient) -> None:
    text = "😀 ab, cd efg"
    records = {"labels": text, "nested": text, "questions": {"question": "ab", "context": text}, "gaps": text}
    page.set("#question", "ab")
    for name, record in records.items():
        page.open(name, "explain", text)
        page.select(7, 9)
        page.click("#panel-explain [type=button]")
        page.run()
        body = {"record": record, "model": name, "offsets": "utf16"} | ({"target": [6, 8]} if name == "gaps" else {})
        expected = client.post("/explain", json=body).json()
        assert page.shown(".token .word") == [token["text"] for token in expected["tokens"]]
        numbers = [float(number.replace("−", "-")) for number in page.shown(".token .number")]
        assert numbers == pytest.approx([token["attribution"] for token in expected["tokens"]], abs=6e-3)
        assert len(page.shown(".for")) == sum(token["attribution"] >= 0 for token in expected["tokens"])
        assert page.shown("h3")[: len(expected["texts"])] == list(expected["texts"])
        (note,) = page.shown("p.hint")
        assert float(note.partition("gap ")[2]) == pytest.approx(expected["gap"], rel=0.1, abs=1e-5)
    page.set("#panel-explain select", "occlusion")
    page.run()
    words = client.post("/explain", json={**body, "method": "occlusion"}).json()["tokens"]
    assert page.shown(".token .word") == [token["text"] for token in words] and len(words) > 1


def test_a_request_is_shown_as_curl_and_as_python(
    page: Page, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    page.open("labels", "labels", 'it\'s "a" \\ b\n😀')
    page.run()
    page.click("#panel-labels summary")
    curl, python, response = page.shown("pre")
    words = shlex.split(curl)
    assert words[:2] == ["curl", f"{page.url}/predict"] and words[-2] == "-d"
    expected = client.post("/predict", content=words[-1]).json()
    assert json.loads(response) == expected
    exec(python, {})
    assert capsys.readouterr().out == f"{expected}\n"
    assert "device" in page.shown("summary")[0]
    assert page.shown(".bars .name") == [one["label"] for one in expected]


def test_labels_are_those_of_the_chosen_checkpoint(page: Page) -> None:
    page.open("labels", "labels", "ab cd")
    page.run()
    page.click("#panel-labels summary")
    assert json.loads(shlex.split(page.shown("pre")[0])[-1]) == {"inputs": "ab cd", "model": "labels"}


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    nodes = "return document.querySelectorAll('main script, main img').length"
    page.open("questions", "answer", HOSTILE)
    page.set("#question", HOSTILE)
    page.run()
    assert page.marked()[0] == HOSTILE and page.js(nodes) == 0
    page.open("tags", "spans", HOSTILE)
    page.set("[aria-label=Rules]", f"sentence; {HOSTILE}")
    page.run()
    assert page.marked()[0] == HOSTILE and page.js(nodes) == 0 and "<script>" in page.shown("[role=alert]")[0]
    page.open("tags", "spans", ARABIC)
    page.run()
    assert page.js("return getComputedStyle(document.querySelector('.marked')).direction") == "rtl"
    for refused, why in (("\\0", "0 of 0 entities"), ("\\ud83d", "400: "), (" ", "422: ")):
        page.open("tags", "entities", "")
        page.js(f"document.getElementById('text').value = '{refused}'")
        page.run()
        assert page.shown(":is([role=alert], p.hint)")[0].startswith(why)


def test_ten_thousand_words_are_no_trouble(page: Page) -> None:
    text = "Word after word in a row of ten. " * 1250
    page.open("tags", "spans", text)
    page.set("[aria-label=Rules]", "sentence")
    page.run()
    whole, spans = page.marked()
    assert whole == text and len(spans) == 1250
    assert "1250 spans; the first 128 are listed" in page.shown("p.hint")[0]
    assert page.shown("[role=alert]")[0].startswith("422: inputs[0]: ")


def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page) -> None:
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.browser.devtools("Emulation.setDeviceMetricsOverride", **size)
    text = "abcdefghijklmnop " + "x" * 3
    for checkpoint, panel in (
        ("tags", "spans"),
        ("nested", "entities"),
        ("questions", "answer"),
        ("labels", "labels"),
        ("gaps", "explain"),
    ):
        page.open(checkpoint, panel, text)
        page.run()
        assert page.js("return document.documentElement.scrollWidth") == 320, panel


def test_the_keyboard_is_enough(page: Page) -> None:
    page.set("#checkpoints select", "tags")
    page.click("#tab-spans")
    page.type("#tab-spans", RIGHT)
    page.type(":focus", LEFT)
    assert page.js("return document.activeElement.id") == "tab-spans" and page.browser.is_shown("#panel-spans")
    page.set("#text", "ab cd. ef.")
    page.type(":focus", TAB)
    assert page.js("return getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.type("[aria-label=Rules]:focus", ENTER)
    page.finish()
    page.type(".list button", " ")
    assert page.shown(".marked .chosen")[0].startswith("ab cd.")


def test_a_link_brings_the_text_back(page: Page) -> None:
    page.open("questions", "answer", f"ab {ARABIC}")
    page.set("#question", "a&b")
    page.run()
    again = Page(page.browser, str(page.js("return location.href")))
    value = "return document.querySelector(arguments[0]).value"
    controls = ("#text", "#question", "#checkpoints select")
    assert [again.js(value, of) for of in controls] == [f"ab {ARABIC}", "a&b", "questions"]


def test_dark_colours_follow_the_system(page: Page) -> None:
    back = "return getComputedStyle(document.body).backgroundColor"
    found = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.browser.devtools("Emulation.setEmulatedMedia", features=[feature])
        found.append([int(value) for value in re.findall(r"\d+", page.js(back))])
    assert min(found[0]) > 200 and max(found[1]) < 60


def test_a_key_is_asked_for(browser: Browser) -> None:
    service, _ = fake_service(Settings(keys=(b"secret",)))
    try:
        with served(service) as url:
            page = Page(browser, url)
            asked = "return performance.getEntriesByName(arguments[0]).length"
            assert browser.is_shown("#key") and not browser.is_shown("#input")
            page.type("#key input", f"wrong{ENTER}")
            browser.wait(lambda: page.js(asked, f"{url}/info") == 2)
            assert browser.is_shown("#key") and page.text("#state") == "The server asks for an API key."
            page.set("#key input", "")
            page.type("#key input", f"secret{ENTER}")
            browser.wait(lambda: page.text("#state") == "Ready")
            page.set("[aria-label=Rules]", "sentence")
            page.run()
            page.click("summary")
            assert 'Authorization: Bearer $KEY"' in page.shown("pre")[0]
            assert "secret" not in page.text("body") and page.problems() == []
    finally:
        service.close()
