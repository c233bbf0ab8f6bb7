"""The page of what holds is that of the tests there are."""

from reliability_page import PAGE, page


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tools/reliability/reliability_page.py makes it anew"
