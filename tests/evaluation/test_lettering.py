"""Names of any script can be read in pictures."""

import numpy as np
import pytest

from groupdetr_d2.evaluation import lettering
from groupdetr_d2.evaluation.lettering import drawable, put_text


def drawn(text):
    return put_text(np.zeros((40, 300, 3), np.uint8), text, (5, 30), 0.6, (255, 255, 255))


NAMES = ["Köter", "собака", "σκύλος", "mèo", "كلب", "狗车", "いぬ", "강아지"]


@pytest.mark.parametrize("text", NAMES)
def test_letters_are_letters(text):
    """OpenCV draws a question mark for each byte that is not ASCII."""
    assert drawable(text) == text
    picture = drawn(text)
    assert picture.any() and not np.array_equal(picture, drawn("?" * len(text)))
    assert not np.array_equal(picture, drawn(text[::-1]))


def test_letters_that_no_font_has_are_shown_by_their_codes(monkeypatch, package_log):
    own = lettering.fonts()[:1]  # matplotlib's, which has no Chinese
    monkeypatch.setattr(lettering, "fonts", lambda: own)
    lettering._homes_of.cache_clear()
    lettering._warn.cache_clear()
    assert drawable("狗 dog") == "U+72D7 dog"
    assert "no font of this machine has 狗" in package_log.text
    assert np.array_equal(drawn("狗"), drawn("U+72D7")) or drawn("狗").any()
    lettering._homes_of.cache_clear()


def test_ascii_is_drawn_as_ever():
    assert drawn("dog").any() and np.array_equal(drawn("dog"), drawn("dog"))
