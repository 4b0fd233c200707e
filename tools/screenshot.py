"""A picture of the top of a page, as a browser shows it: python tools/screenshot.py REPORT.html OUT.png.

img/report.png is the page of `make train`. Like the tests of pages, this takes Debian's chromium and chromium-driver.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.files import amount, write_whole
from tripletloss.base.outputs import add_force, check_outputs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.browser import Browser

COLOURS = 128  # grey faces and a few coloured lines need no more, and the file is a third as large


def main() -> int:
    """Run the command. Returns the exit status."""
    parser = command.Parser(prog="tools/screenshot.py", description="Take a picture of the top of a page.")
    parser.add_argument("page", metavar="PAGE.html", help="a page on the disk")
    parser.add_argument("out", metavar="OUT.png", help="the picture to write")
    parser.add_argument("--width", metavar="PIXELS", type=int, default=1280, help="of the window (default: 1280)")
    parser.add_argument("--height", metavar="PIXELS", type=int, default=1665, help="of the picture (default: 1665)")
    add_force(parser)
    arguments = parser.parse_args()
    return command.run("tools/screenshot.py", lambda: take(arguments))


def take(arguments: argparse.Namespace) -> None:
    """Write the picture. Raises InputError if there is no such page, or no browser."""
    page = Path(arguments.page)
    if not page.is_file():
        raise InputError(f"{page} is not a file: name a page, such as the report.html of a run")
    check_outputs([arguments.out], [arguments.page], arguments.force)
    with tempfile.TemporaryDirectory() as folder:
        try:
            browser = Browser(Path(folder))
        except pytest.skip.Exception as error:
            raise InputError(str(error)) from None
        try:
            browser.open(page, arguments.width, arguments.height)
            browser.check()
            browser.screenshot(Path(folder) / "page.png")
        finally:
            browser.driver.quit()
        picture = Image.open(Path(folder) / "page.png").convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    content = io.BytesIO()
    picture.save(content, "png", optimize=True)
    write_whole(arguments.out, content.getvalue())
    print(f"{arguments.out}: {picture.width} x {picture.height} pixels, {amount(len(content.getvalue()))}")


if __name__ == "__main__":
    sys.exit(main())
