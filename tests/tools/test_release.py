"""What a package registry shows of the README."""

import re
from pathlib import Path

from release import absolute

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_no_link_of_the_readme_is_relative_and_every_picture_is_raw():
    shown = absolute(README, "https://example.org/me/it/", "v1")
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", shown)
    assert len(links) > 10
    assert all(re.match(r"https?:|#", target) for _, target in links)
    pictures = [target for mark, target in links if mark]
    assert pictures
    assert all(target.startswith("https://example.org/me/it/raw/v1/docs/") for target in pictures)
    assert "](https://example.org/me/it/blob/v1/docs/farm.md)" in shown


def test_what_leads_elsewhere_stays():
    text = "[a](#masks) [b](https://x.org/y) ![c](docs/c.png) [d](docs/d.md#part) code](x y)"
    expected = "[a](#masks) [b](https://x.org/y) ![c](R/raw/main/docs/c.png) [d](R/blob/main/docs/d.md#part) code](x y)"
    assert absolute(text, "R", "main") == expected
