"""The files of the page, without a browser."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from spanbert_jax import service as room
from spanbert_jax.service.app import application
from spanbert_jax.service.service import Settings
from tests.support.fake_service import fake_service

FILES = {path.name: path.read_text() for path in (Path(room.__path__[0]) / "page").iterdir()}
by_scheme = pytest.mark.parametrize("scheme", [1, 2], ids=["light", "dark"])


def test_every_file_is_served_without_a_key_and_may_load_nothing_else() -> None:
    service, _ = fake_service(Settings(keys=(b"secret",)))
    try:
        client = TestClient(application(service))
        assert client.get("/").text == FILES["index.html"]
        for name, text in FILES.items():
            response = client.get(f"/page/{name}")
            assert response.text == text and response.headers["content-type"].startswith(("text/", "image/svg"))
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
        for other in ("/page/none.js", "/page/..%2fapp.py", "/page/", "/style.css"):
            assert client.get(other).status_code == 404
    finally:
        service.close()


def test_the_files_name_one_another_and_nothing_else() -> None:
    named = set()
    for name, text in FILES.items():
        if name.endswith(".js"):
            imports = re.findall(r'from "\./([\w.]+)"', text)
            assert len(imports) == len(re.findall(r"^import ", text, flags=re.M)), name
            named |= set(imports)
    named |= set(re.findall(r'(?:href|src)="page/([\w.]+)"', FILES["index.html"]))
    assert named == FILES.keys() - {"index.html"}
    addresses = {name: re.findall(r"https?://[^\"]*", text) for name, text in FILES.items()}
    assert {name for name, found in addresses.items() if found} == {"icon.svg"}  # the name of its XML namespace


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".js", ".html"))])
def test_no_file_makes_markup_or_code_of_a_text(name: str) -> None:
    unsafe = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|\bstyle=|\bon\w+=\""
    )
    assert re.findall(unsafe, FILES[name]) == []


@by_scheme
def test_hues_and_soft_text_can_be_read_on_a_card(scheme: int) -> None:
    """The contrast of the Web Content Accessibility Guidelines, level AA: 4.5 for text."""
    colours = {
        name: values[scheme - 1]
        for name, *values in re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", FILES["style.css"])
    }
    hues = [name for name in colours if name.startswith("hue-")]
    assert len(hues) == 8
    pairs = [(name, back) for name in (*hues, "ink", "soft", "accent") for back in ("card", "wash")]
    for one, other in (*pairs, ("soft", "back"), ("on-accent", "accent")):
        light, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (one, other)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
