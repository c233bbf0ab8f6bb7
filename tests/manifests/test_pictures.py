"""Right manifests mean the same in every format; wrong ones say what is wrong, where, and all at once."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffstyler.manifests.pictures import read_manifest
from diffstyler.manifests.table import ManifestError
from diffstyler.types import RowProblem, StyleRegion, Triple


@pytest.fixture
def folder(tmp_path):
    """A folder with two content pictures, two style pictures, a LoRA folder and a LoRA file."""
    for name in ("a.jpg", "b.jpg", "monet.png", "hokusai.png", "lora.safetensors"):
        (tmp_path / name).write_bytes(b"not read here")
    (tmp_path / "lora").mkdir()
    return tmp_path


def write(folder: Path, name: str, content: str | bytes | list[dict]) -> Path:
    path = folder / name
    if isinstance(content, list):
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    return str(error.value).split("\n")


def ids(path: Path) -> list[str]:
    return [triple.id for triple in read_manifest(path)]


def test_only_content_and_style_are_needed(folder):
    (triple,) = read_manifest(write(folder, "manifest.csv", "content,style\na.jpg,monet.png\n"))
    region = StyleRegion(folder / "monet.png")
    assert triple == Triple("a-monet", folder / "a.jpg", (region,), origin="manifest.csv row 2")


def test_every_format_gives_equal_triples(folder):
    csv = write(
        folder,
        "m.csv",
        "id,content,content_prompt,seed,style,mask,prompt,negative_prompt,strength,guidance_scale,start,stop\n"
        "one,a.jpg,a house,7,monet.png,sky,,blurry,0.5,,1,0.4\n"
        'one,a.jpg,,,hokusai.png,sky,"waves, ""big""",,,7.5,0.4,\n'
        ",b.jpg,,9223372036854775807,lora,,,,,,,\n",
    )
    sky = {"style": "monet.png", "mask": "sky", "negative_prompt": "blurry", "strength": 0.5, "start": 1, "stop": 0.4}
    waves = {"style": "hokusai.png", "mask": "sky", "prompt": 'waves, "big"', "guidance_scale": 7.5, "start": 0.4}
    rows: list[dict] = [
        {"id": "one", "content": "a.jpg", "content_prompt": "a house", "seed": 7, "regions": [sky, waves]},
        {"content": "b.jpg", "style": "lora", "seed": 2**63 - 1, "mask": None, "prompt": ""},
    ]
    jsonl = write(folder, "m.jsonl", "\n".join(map(json.dumps, rows)))
    # pyarrow takes the columns from the first row
    parquet = write(folder, "m.parquet", [{**dict.fromkeys(("style", "mask", "prompt")), **row} for row in rows])

    expected = (
        Triple(
            id="one",
            content=folder / "a.jpg",
            regions=(
                StyleRegion(folder / "monet.png", "sky", None, "blurry", 0.5, None, 1.0, 0.4),
                StyleRegion(folder / "hokusai.png", "sky", 'waves, "big"', None, 1.0, 7.5, 0.4, 0.0),
            ),
            content_prompt="a house",
            seed=7,
        ),
        Triple("b-lora", folder / "b.jpg", (StyleRegion(folder / "lora"),), seed=2**63 - 1),
    )
    for path in (csv, jsonl, parquet):
        assert tuple(replace(triple, origin="") for triple in read_manifest(path)) == expected
    assert [triple.origin for triple in read_manifest(csv)] == ["m.csv row 2", "m.csv row 4"]
    assert [triple.origin for triple in read_manifest(jsonl)] == ["m.jsonl line 1", "m.jsonl line 2"]
    assert [triple.origin for triple in read_manifest(parquet)] == ["m.parquet row 1", "m.parquet row 2"]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfcontent,style\na.jpg,monet.png\n",
        b"content,style\r\na.jpg,monet.png\r\n",
        b"\n content , style,,\n\n,,,\n a.jpg, monet.png,,\n\n",
        b'content,style\n"a.jpg","monet.png"',
    ],
    ids=["BOM", "CRLF", "blank rows and cells", "quotes"],
)
def test_csv_as_spreadsheets_and_people_write_it(folder, text):
    assert ids(write(folder, "m.csv", text)) == ["a-monet"]


def test_blank_lines_and_bom_in_json_lines(folder):
    line = '{"content": "a.jpg", "style": "monet.png"}'
    path = write(folder, "m.jsonl", f"\ufeff{line}\r\n\n{line}\n")
    assert [t.origin for t in read_manifest(path)] == ["m.jsonl line 1", "m.jsonl line 3"]


def test_rows_are_counted_as_a_spreadsheet_counts_them(folder):
    text = 'content,style,prompt\na.jpg,monet.png,"two\nlines"\n\nb.jpg,nope.png,\n'
    (problem,) = problems(write(folder, "m.csv", text))
    assert problem.startswith("m.csv row 4, column 'style': no such file: 'nope.png' (looked for ")


def test_default_ids_are_unique_and_avoid_explicit_ones(folder):
    row = "a.jpg,monet.png"
    path = write(folder, "m.csv", f"content,style,id\n{row},\n{row},\n{row},A-monet-2\n{row},\n")
    assert ids(path) == ["a-monet", "a-monet-3", "A-monet-2", "a-monet-4"]


def test_default_ids_are_usable_as_file_names(folder):
    (folder / ".été (1).jpg").touch()
    (folder / f"{'長' * 70}.png").touch()
    first, second = ids(write(folder, "m.csv", f"content,style\n.été (1).jpg,lora\na.jpg,{'長' * 70}.png\n"))
    assert first == "été_1_-lora"
    assert second.startswith("a-長")
    assert len(second.encode()) <= 200


def test_numbers_of_pandas(folder):
    rows = [
        {"content": "a.jpg", "style": "lora.safetensors", "seed": seed, "id": id} for seed, id in [(3.0, 5), (None, 6)]
    ]
    triples = read_manifest(write(folder, "m.parquet", rows))
    assert [(triple.id, triple.seed) for triple in triples] == [("5", 3), ("6", 0)]


CSV = "content,style,{}\na.jpg,monet.png,{}\n"
NESTED = '{{"content": "a.jpg", "regions": {}}}'
TWICE = "content,style,id,{0}\na.jpg,monet.png,x,{1}\na.jpg,lora,x,{2}\n"
VALID = (
    "content, style, mask, prompt, negative_prompt, strength, guidance_scale, start, stop, "
    "inject_features, inject_attention, style_mask, style_picture, id, content_prompt, seed"
)
ID = "letters, digits and ._- (at most 200 bytes, no dot first), as it names files"
COVERED = "region 2 would paint over region 1: give them different masks or disjoint start/stop intervals"

WRONG = [
    # one cell
    ("m.csv", CSV.format("strength", "7"), "m.csv row 2, column 'strength': expected a number in 0 … 2, got '7'"),
    ("m.csv", CSV.format("strength", "nan"), "m.csv row 2, column 'strength': expected a number in 0 … 2, got 'nan'"),
    ("m.csv", CSV.format("strength", "1_0"), "m.csv row 2, column 'strength': expected a number in 0 … 2, got '1_0'"),
    (
        "m.csv",
        CSV.format("guidance_scale", "-1"),
        "m.csv row 2, column 'guidance_scale': expected a number of at least 0, got '-1'",
    ),
    (
        "m.csv",
        CSV.format("guidance_scale", "1e999"),
        "m.csv row 2, column 'guidance_scale': expected a number of at least 0, got '1e999'",
    ),
    ("m.csv", CSV.format("seed", "1.5"), "m.csv row 2, column 'seed': expected an integer in 0 … 2^63-1, got '1.5'"),
    ("m.csv", CSV.format("seed", "-1"), "m.csv row 2, column 'seed': expected an integer in 0 … 2^63-1, got '-1'"),
    (
        "m.csv",
        CSV.format("seed", 2**63),
        "m.csv row 2, column 'seed': expected an integer in 0 … 2^63-1, got '9223372036854775808'",
    ),
    ("m.csv", CSV.format("start", "1.1"), "m.csv row 2, column 'start': expected a number in 0 … 1, got '1.1'"),
    ("m.csv", CSV.format("start", "0"), "m.csv row 2, column 'start': expected a number above stop = 0, got '0'"),
    ("m.csv", CSV.format("start,stop", ".5,.7"),
     "m.csv row 2, column 'stop': expected a number below start = 0.5, got '.7'"),
    ("m.csv", CSV.format("id", "a/b"), f"m.csv row 2, column 'id': expected {ID}; got 'a/b'"),
    ("m.csv", CSV.format("id", ".a"), f"m.csv row 2, column 'id': expected {ID}; got '.a'"),
    ("m.csv", "content,style\na.jpg,\n", "m.csv row 2, column 'style': expected a path, got nothing"),
    ("m.csv", "content,style\na.jpg\n", "m.csv row 2, column 'style': expected a path, got nothing"),
    (
        "m.csv",
        "content,style\nx/c.jpg,lora\n",
        "m.csv row 2, column 'content': no such file: 'x/c.jpg' (looked for {folder}/x/c.jpg)",
    ),
    (
        "m.csv",
        "content,style\nlora,lora\n",
        "m.csv row 2, column 'content': expected a file, got the folder 'lora' ({folder}/lora)",
    ),
    # one row
    (
        "m.csv",
        "content,style\na.jpg,lora,red, green\n",
        "m.csv row 2: expected at most 2 cells, got 4; put text that contains a comma in double quotes",
    ),
    (
        "m.csv",
        'content,style\na.jpg,lora\n"a.jpg,lora\n',
        "m.csv row 3: invalid CSV: unexpected end of data; is a double quote left open?",
    ),
    (
        "m.csv",
        'content,style\n"a.jpg"x,lora\na.jpg,no\n',
        "m.csv row 2: invalid CSV: ',' expected after '\"'; is a double quote left open?\n"
        "m.csv row 3, column 'style': no such file: 'no' (looked for {folder}/no)",
    ),
    # the header
    ("m.csv", CSV.format("promt", ""), "m.csv row 1, column 'promt': unknown column; did you mean 'prompt'?"),
    ("m.csv", CSV.format("xyz", ""), f"m.csv row 1, column 'xyz': unknown column; expected one of {VALID}"),
    ("m.csv", "content\na.jpg\n", "m.csv row 1, column 'style': required, but missing"),
    ("m.csv", CSV.format("style", "lora"), "m.csv row 1, column 'style': expected once, got 2 times"),
    # several rows
    (
        "m.csv",
        "content,style,id\na.jpg,lora,x\nb.jpg,lora,x\n",
        f"m.csv row 3, column 'content': expected 'a.jpg' as in row 2 (same id 'x'), got 'b.jpg'\n"
     f"m.csv row 3: {COVERED}",
    ),
    (
        "m.csv",
        TWICE.format("mask,seed", "sky,1", "house,2"),
        "m.csv row 3, column 'seed': expected 1 as in row 2 (same id 'x'), got 2",
    ),
    (
        "m.csv",
        TWICE.format("mask,content_prompt", "sky,a cat", "house,a dog"),
        "m.csv row 3, column 'content_prompt': expected 'a cat' as in row 2 (same id 'x'), got 'a dog'",
    ),
    ("m.csv", TWICE.format("mask", "sky", " sky "), f"m.csv row 3: {COVERED}"),
    ("m.csv", TWICE.format("start,stop", "1,.4", ".5,0"), f"m.csv row 3: {COVERED}"),
    (
        "m.csv",
        "content,style,id\na.jpg,lora,x\na.jpg,lora,X\n",
        "m.csv row 3, column 'id': 'X' differs only by case from 'x' of row 2: many disks would mix up their files",
    ),
    (
        "m.csv",
        "content,style,id,strength\na.jpg,lora,x,9\na.jpg,monet.png,x,1\na.jpg,monet.png,x,1\n",
        "m.csv row 2, column 'strength': expected a number in 0 … 2, got '9'\n"
        f"m.csv row 4: {COVERED.replace('region 2', 'region 3').replace('region 1', 'region 2')}",
    ),
    # the file
    ("m.csv", "", "m.csv: expected at least one row with content and style, got none"),
    ("m.csv", "content,style\n", "m.csv: expected at least one row with content and style, got none"),
    ("m.csv", "content,style\né,lora".encode("latin-1"),
     "m.csv: line 2 is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ("m.jsonl", "", "m.jsonl: expected at least one row with content and style, got none"),
    # JSON Lines
    ("m.jsonl", '\n{"content" "a.jpg"}', "m.jsonl line 2: invalid JSON at character 12: Expecting ':' delimiter"),
    (
        "m.jsonl",
        '{\n{"content": "no.jpg", "style": "lora"}',
        "m.jsonl line 1: invalid JSON at character 2: Expecting property name enclosed in double quotes\n"
        "m.jsonl line 2, column 'content': no such file: 'no.jpg' (looked for {folder}/no.jpg)",
    ),
    ("m.jsonl", '{"content": "a.jpg", "style": "lora", "maks": null}',
     "m.jsonl line 1, column 'maks': unknown column; did you mean 'mask'?"),
    ("m.jsonl", '{"seed": 1, "seed": 2}', "m.jsonl line 1: invalid JSON: key 'seed' appears 2 times"),
    ("m.jsonl", "[1]", "m.jsonl line 1: expected a JSON object, got [1]"),
    ("m.jsonl", "null", "m.jsonl line 1: expected a JSON object, got null"),
    (
        "m.jsonl",
        NESTED.format('[{"style": "lora"}, {"style": "lora", "mask": "sky", "strength": true}]'),
        "m.jsonl line 1, column 'regions[1].strength': expected a number in 0 … 2, got true",
    ),
    ("m.jsonl", NESTED.format("[{}]"), "m.jsonl line 1, column 'regions[0].style': expected a path, got nothing"),
    ("m.jsonl", NESTED.format("[3]"), "m.jsonl line 1, column 'regions[0]': expected an object with a style, got 3"),
    ("m.jsonl", NESTED.format("[]"),
     "m.jsonl line 1, column 'regions': expected a list of one or more regions, got []"),
    (
        "m.jsonl",
        NESTED.format('[{"style": "lora", "seeds": 1, "maks": "sky"}]'),
        "m.jsonl line 1, column 'regions[0].seeds': unknown column; expected one of "
        "style, mask, prompt, negative_prompt, strength, guidance_scale, start, stop, inject_features, "
        "inject_attention, style_mask, style_picture\n"
        "m.jsonl line 1, column 'regions[0].maks': unknown column; did you mean 'mask'?",
    ),
    ("m.jsonl", NESTED.format('[{"style": "lora"}, {"style": "monet.png"}]'), f"m.jsonl line 1: {COVERED}"),
    (
        "m.jsonl",
        '{"content": "a.jpg", "mask": "sky", "regions": [{"style": "lora"}]}',
        "m.jsonl line 1, column 'mask': belongs inside each of 'regions' where a row has them",
    ),
    (
        "m.jsonl",
        '{"content": "a.jpg", "style": "lora", "prompt": ["x"]}',
        "m.jsonl line 1, column 'prompt': expected text, got [\"x\"]",
    ),
    # Parquet
    ("m.parquet", [{"content": "a.jpg", "styl": "lora"}],
     "m.parquet, column 'styl': unknown column; did you mean 'style'?\n"
     "m.parquet, column 'style': required, but missing"),
    ("m.parquet", [{"content": "a.jpg", "style": "lora", "strength": 3.0}],
     "m.parquet row 1, column 'strength': expected a number in 0 … 2, got 3.0"),
    ("m.parquet", [{"content": "a.jpg", "regions": None}],
     "m.parquet row 1, column 'style': expected a path, got nothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"), WRONG, ids=[f"{i}-{row[2][:60]}" for i, row in enumerate(WRONG)]
)
def test_wrong_manifest_says_exactly(folder, name, content, message):
    assert problems(write(folder, name, content)) == message.replace("{folder}", str(folder)).split("\n")


def test_all_problems_of_a_file_come_at_once_in_the_order_of_its_rows(folder):
    text = "content,style,strength,stlye\na.jpg,lora,9,\n,lora,1,\nb.jpg,no.png,x,\n"
    assert [line.split(":")[0] for line in problems(write(folder, "m.csv", text))] == [
        "m.csv row 1, column 'stlye'",
        "m.csv row 2, column 'strength'",
        "m.csv row 3, column 'content'",
        "m.csv row 4, column 'style'",
        "m.csv row 4, column 'strength'",
    ]


@pytest.mark.parametrize("styles", ["1,0.5|0.5,0", "0.3,0.1|1,0.9"])
def test_one_mask_may_serve_two_styles_one_after_the_other(folder, styles):
    (triple,) = read_manifest(write(folder, "m.csv", TWICE.format("start,stop", *styles.split("|"))))
    assert len(triple.regions) == 2


def test_files_that_are_no_manifests(folder):
    assert problems(folder / "m.csv") == [f"{folder}/m.csv: no such manifest (looked for {folder}/m.csv)"]
    (problem,) = problems(write(folder, "m.xlsx", ""))
    assert problem.endswith("m.xlsx: expected a manifest that ends in .csv, .jsonl, .parquet, got '.xlsx'")
    (problem,) = problems(write(folder, "m.parquet", "content,style"))
    assert problem.startswith("m.parquet: invalid Parquet: ")


@pytest.mark.parametrize("prompt", ["\0", "\ud800"])
def test_text_that_no_file_can_hold(folder, prompt):
    row = {"content": "a.jpg", "style": "lora", "prompt": prompt}
    (problem,) = problems(write(folder, "m.jsonl", json.dumps(row)))
    assert problem == f"m.jsonl line 1, column 'prompt': expected text, got {prompt!r}"


def test_u2028_inside_json_lines_is_text(folder):
    row = {"content": "a.jpg", "style": "lora", "prompt": "two\u2028lines"}
    (triple,) = read_manifest(write(folder, "m.jsonl", json.dumps(row, ensure_ascii=False)))
    assert triple.regions[0].prompt == "two\u2028lines"


def test_of_thousands_of_problems_the_first_hundred_are_told(folder):
    rows = "".join(f"a.jpg,lora,{9 if number > 3 else 1}\n" for number in range(2, 5000))
    told = problems(write(folder, "m.csv", f"content,style,strength\n{rows}nowhere.jpg,lora,1\n"))
    assert [line.split(",")[0] for line in told[:-1]] == [f"m.csv row {number}" for number in range(4, 104)]
    assert told[-1] == "… and 4897 more problems"


def test_problems_between_rows_take_their_place_among_the_first_hundred(folder):
    rows = "a.jpg,lora,1,x\nb.jpg,monet.png,1,x\n" + "a.jpg,lora,9,\n" * 200
    told = problems(write(folder, "m.csv", f"content,style,strength,id\n{rows}"))
    assert [line.split(",")[0] for line in told[:2]] == [
        "m.csv row 3",
        "m.csv row 3: region 2 would paint over region 1: give them different masks or disjoint start/stop intervals",
    ]
    assert told[2].startswith("m.csv row 4")
    assert (len(told), told[-1]) == (101, "… and 102 more problems")


def test_each_turn_that_overlaps_an_earlier_one_is_told(folder):
    turns = ["0.3,0.2", "0.9,0.8", "0.8,0.3", "0.5,0.4", "0.2,0", "1,0.85"]
    rows = "".join(f"a.jpg,lora,x,{turn}\n" for turn in turns)
    told = problems(write(folder, "m.csv", f"content,style,id,start,stop\n{rows}"))
    assert [line.split(":")[1] for line in told] == [
        " region 4 would paint over region 3",
        " region 6 would paint over region 2",
    ]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_path_or_mask_of_many_rows_is_looked_up_once(folder, name, monkeypatch):
    (folder / "mask.png").touch()
    rows = [{"content": "a.jpg", "style": "lora", "mask": "file: mask.png", "seed": seed} for seed in range(50)]
    text = "\n".join(["content,style,mask,seed", *(",".join(map(str, row.values())) for row in rows)])
    content = {"m.csv": text, "m.jsonl": "\n".join(map(json.dumps, rows)), "m.parquet": rows}[name]
    path, asked, stat = write(folder, name, content), [], Path.stat

    def counted(self, **options):
        asked.append(self.name)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    assert len(read_manifest(path)) == 50
    assert [asked.count("a.jpg"), asked.count("lora")] == [1, 1]
    assert asked.count("mask.png") <= 1


@pytest.mark.parametrize("column", ["prompt", "negative_prompt", "content_prompt"])
def test_placeholders_that_nothing_is_put_in_for_are_told(tmp_path, column):
    """They would be drawn as text, a whole run long."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"content,style,{column}\na.png,b.png,a {{lora_promt}} of it\n")
    with pytest.raises(ValueError, match=r"row 2.*: unknown placeholder '\{lora_promt\}' in 'a \{lora_promt\} of it'"):
        read_manifest(tmp_path / "m.csv")


def test_regions_that_say_the_same_are_one_object_and_their_rows_are_still_told_apart(tmp_path):
    """A million rows over ten LoRAs hold ten regions; a wrong one among them is told in each of its rows."""
    for name in ("a.png", "b.png", "s.png"):
        (tmp_path / name).touch()
    lines = ["content,style,prompt,start,stop"]
    lines += ["a.png,s.png,oil,,", "b.png,s.png,oil,,", "a.png,s.png,ink,,", "a.png,s.png,oil,0.2,0.5"] * 2
    (tmp_path / "m.csv").write_text("\n".join(lines))
    skipped: list[RowProblem] = []
    triples = read_manifest(tmp_path / "m.csv", skipped)
    assert [triple.regions[0].prompt for triple in triples] == ["oil", "oil", "ink"] * 2
    assert len({id(triple.regions) for triple in triples}) == 2
    assert [problem.origin for problem in skipped] == ["m.csv row 5", "m.csv row 9"]
    assert len({triple.id for triple in triples}) == 6
