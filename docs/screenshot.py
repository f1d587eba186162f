"""Takes docs/report.png, the README's picture, from a report's page in an installed Chromium.

    moeprof report traces/tiny-m3.moetrace --model minimax-m3 -o report.html
    python docs/screenshot.py report.html

To the left the page as it opens, to the right figures in use: a layer as bars, a batch picked.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

TARGET = Path(__file__).parent / "report.png"
WIDTH, HEIGHT = 1120, 1500
COLOURS = 96  # of the palette: a quarter of the bytes, and no eye sees it


def take(page: Page) -> Image.Image:
    """The top of the page beside the layers and the batches, in use."""
    left = _image(page.screenshot())
    page.locator(".heat").click(position={"x": 400, "y": 100})
    load = _image(page.locator("#heat .detail").screenshot())
    page.locator("#locality-batch .plot").hover(position={"x": 430, "y": 120})
    page.wait_for_timeout(100)
    batch = _image(page.locator("#locality-batch").screenshot())
    advice = _image(page.locator("#advice").screenshot())
    picture = Image.new("RGB", (2 * WIDTH, HEIGHT), left.getpixel((0, 0)))
    picture.paste(left, (0, 0))
    top = 64
    for part in (load, batch, advice):
        picture.paste(part, (WIDTH + (WIDTH - part.width) // 2, top))
        top += part.height + 32
    return picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def _image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def main(path: Path) -> None:
    """Write TARGET from the page at `path`."""
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(path.absolute().as_uri())
        take(page).save(TARGET, optimize=True)
        browser.close()
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
