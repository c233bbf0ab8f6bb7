"""The grammar of mask prompts: what parses to what, and what each wrong prompt is told."""

from pathlib import Path

import pytest

from diffstyler.masking.prompt import (
    Background,
    Box,
    Coordinate,
    Edit,
    Everything,
    File,
    Minus,
    Not,
    Pick,
    Points,
    Text,
    Union,
    with_files_from,
)
from diffstyler.masking.prompt_parser import MAX_PARTS, MaskPromptError, parse_mask_prompt


def pixels(*values: int) -> tuple[Coordinate, ...]:
    return tuple(Coordinate(value, False) for value in values)


def fractions(*values: float) -> tuple[Coordinate, ...]:
    return tuple(Coordinate(value, True) for value in values)


RIGHT = {
    "the house": Text("the house"),
    " Everything ": Everything(),
    "background": Background(),
    '"everything"': Text("everything"),
    "text: the sea": Text("the sea"),
    "half-timbered house": Text("half-timbered house"),
    "point: 120,80": Points((pixels(120, 80),)),
    "point: 120,80 3, 4 not 5,6 7,8": Points((pixels(120, 80), pixels(3, 4)), (pixels(5, 6), pixels(7, 8))),
    "point: .5,1.0": Points((fractions(0.5, 1.0),)),
    "box: 0,10,200,300": Box(pixels(0, 10, 200, 300)),  # type: ignore[arg-type]
    "file: masks/a deer.png": File(Path("masks/a deer.png")),
    'file: "odd - name.png"': File(Path("odd - name.png")),
    "a + b - c": Minus(Union(Text("a"), Text("b")), Text("c")),
    "a - (b + c)": Minus(Text("a"), Union(Text("b"), Text("c"))),
    "not the sky": Not(Text("the sky")),
    "not not a": Not(Not(Text("a"))),
    "nothing": Text("nothing"),
    "a [grow 3, feather 2.5]": Edit(Edit(Text("a"), "grow", 3), "feather", 2.5),
    "(a + b) [shrink 4] [grow 1]": Edit(Edit(Union(Text("a"), Text("b")), "shrink", 4), "grow", 1),
    "the cup [2]": Pick(Text("the cup"), "2"),
    '"a - b" [largest, grow 3] + c': Union(Edit(Pick(Text("a - b"), "largest"), "grow", 3), Text("c")),
    "not a [grow 2]": Not(Edit(Text("a"), "grow", 2)),
    "box: 0,0,9,9 - point: 1,2": Minus(Box(pixels(0, 0, 9, 9)), Points((pixels(1, 2),))),  # type: ignore[arg-type]
}

WRONG = [
    ("", 1, "expected a mask prompt such as 'the house', got nothing"),
    ("   ", 4, "expected a mask prompt"),
    ("box: 1,2,3", 11, "expected four numbers x0,y0,x1,y1, got 3"),
    ("box: 10,abc,3,4", 9, "expected a number, got 'abc,3,4'"),
    ("box: 30,2,3,4", 6, "the upper left corner first"),
    ("box: 1,2,3,4,5", 13, "expected '+', '-' or the end, got ','"),
    ("pointt: 3,4", 1, "did you mean 'point'?"),
    ("polygon: 3,4", 1, "expected one of text:, point:, box:, file:"),
    ("point: 3", 9, "expected ',' between x and y"),
    ("point: 0.5,3", 13, "do not mix"),
    ("point: 1.5,2", 8, "a number with a decimal point is a fraction"),
    ("point: -3,4", 8, "expected a number, got '-3,4'"),
    ("(the house", 1, "this '(' has no ')'"),
    ("the house)", 10, "expected '+', '-' or the end, got ')'"),
    ("a [grw 3]", 4, "did you mean 'grow'?"),
    ("a [largst]", 4, "did you mean 'largest'?"),
    ("a [0]", 4, "or a number"),
    ("a [1.5]", 4, "or a number"),
    ("(a + b) [1]", 10, "takes one of the things that words name"),
    ("a [grow 3, left]", 12, "takes one of the things that words name"),
    ("box: 1,2,3,4 [1]", 15, "takes one of the things that words name"),
    ("a [grow]", 8, "expected a number of pixels in 0 … 10000"),
    ("a [feather 0]", 12, "expected a number of pixels"),
    ("a [grow 3", 3, "this '[' has no ']'"),
    ('"the house', 1, "this quote is not closed"),
    ("+ b", 1, "expected a phrase"),
    ("a + ", 5, "expected a phrase"),
    ("a -", 4, "expected a phrase"),
    ("not", 4, "expected a phrase"),
    ("file:", 6, "expected a path"),
]


@pytest.mark.parametrize("prompt", RIGHT)
def test_right_prompts(prompt):
    assert parse_mask_prompt(prompt) == RIGHT[prompt]


@pytest.mark.parametrize("prompt", RIGHT)
def test_canonical_text_parses_to_the_same_tree(prompt):
    assert parse_mask_prompt(str(RIGHT[prompt])) == RIGHT[prompt]


@pytest.mark.parametrize(("prompt", "character", "message"), WRONG, ids=[row[0] or "empty" for row in WRONG])
def test_wrong_prompts_point_at_the_character(prompt, character, message):
    with pytest.raises(MaskPromptError) as error:
        parse_mask_prompt(prompt)
    told, shown, caret = str(error.value).split("\n")
    assert message in told
    assert told.endswith(f"(character {character})")
    assert shown == f"  {prompt}"
    assert caret.index("^") == character + 1
    assert error.value.position == character - 1


def test_words_in_quotes_keep_their_operators():
    assert parse_mask_prompt(r'"a + \"b\""') == Text('a + "b"')
    assert str(Text('a + "b"')) == r'"a + \"b\""'


def test_files_are_found_from_a_folder():
    prompt = with_files_from(parse_mask_prompt("not (file: a.png [grow 2] + the sky)"), Path("here"))
    assert prompt == Not(Union(Edit(File(Path("here/a.png")), "grow", 2), Text("the sky")))


CHAINS = {"(": ")", "not ": "", "a + ": "", "a - (b + ": ")", "(not ": " [grow 1])"}


@pytest.mark.parametrize("start", CHAINS)
def test_long_prompts_are_whole_or_an_error_of_their_own(start):
    def chain(parts: int) -> str:
        return start * parts + "a" + CHAINS[start] * parts

    longest = 0
    for parts in range(1, MAX_PARTS):
        try:
            tree = with_files_from(parse_mask_prompt(chain(parts)), Path("here"))
        except MaskPromptError:
            break
        assert parse_mask_prompt(str(tree)) == tree
        assert len(list(tree.walk())) >= 1
        longest = parts
    assert longest >= MAX_PARTS // 4
    for parts in (MAX_PARTS, 5_000):
        with pytest.raises(MaskPromptError, match=f"expected at most {MAX_PARTS} parts"):
            parse_mask_prompt(chain(parts))
    with pytest.raises(MaskPromptError, match="expected at most"):
        parse_mask_prompt("a" + " [grow 1]" * 5_000)
