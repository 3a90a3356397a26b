"""Makes the pictures of the page in docs/ from a pre-trained checkpoint with MLM and SBO.

python -m tests.support.page_pictures --checkpoint runs/tiny docs
"""

import argparse
import tempfile
from pathlib import Path

from spanbert_jax.service.service import Settings, open_service
from tests.support.browser import Browser, opened_browser, served

_WIDTH = 1000  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("output", type=Path, help="the folder for page.png and page_infill.png")
    arguments = parser.parse_args()
    service = open_service({"tiny": arguments.checkpoint}, Settings(deadline=600, deterministic=True))
    with tempfile.TemporaryDirectory() as folder:
        try:
            service.engine.warm_up(everything=True)
            with served(service) as url, opened_browser(Path(folder)) as browser:
                _resize(browser, 900)
                browser.go(url)
                browser.wait(lambda: browser.js("return document.getElementById('state').textContent") == "Ready")
                _run(browser, "spans")
                browser.click(browser.all(".list button")[2])
                _write(browser, arguments.output / "page.png")
                browser.js("""const text = document.getElementById('text'), words = 'the first program';
                    const at = text.value.indexOf(words); text.setSelectionRange(at, at + words.length)""")
                browser.click(browser.one("#tab-infill"))
                browser.click(browser.one("#panel-infill [type=button]"))
                _run(browser, "infill", runs=2)  # the first one compiles
                _write(browser, arguments.output / "page_infill.png")
        finally:
            service.close()


def _run(browser: Browser, panel: str, runs: int = 1) -> None:
    script = "return document.querySelector(`#panel-${arguments[0]} .result:not([aria-busy]) > *`) !== null"
    browser.click(browser.one(f"#tab-{panel}"))
    for _ in range(runs):
        browser.click(browser.one(f"#panel-{panel} .run"))
        browser.wait(lambda: browser.js(script, panel), 600)


def _resize(browser: Browser, height: int) -> None:
    size = {"width": _WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.devtools("Emulation.setDeviceMetricsOverride", **size)


def _write(browser: Browser, path: Path) -> None:
    _resize(browser, int(browser.js("return Math.ceil(document.body.getBoundingClientRect().height)")))
    path.write_bytes(browser.picture())


if __name__ == "__main__":
    main()
