"""report is one self-contained page, whatever the shards hold."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from helpers.images import plain_image
from helpers.tars import plain_members, write_tar
from multimix_pipe.cli import main

MARKUP = "<script>alert(1)</script><img src=x onerror=\"alert('2')\">&\x1b[31m"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        prefix = "data:image/jpeg;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def report(*words: object) -> tuple[int, Page]:
    out = Path(str(words[0])).parent / "report.html"
    status = main(["report", *map(str, words), "-o", str(out), "--quiet", "--backend", "torch"])
    return status, Page(out.read_text("utf-8"))


def test_it_counts_classes_sizes_shards_and_problems_and_shows_samples_and_mixes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "a.tar", plain_members(3))
    write_tar(
        folder / "b.tar",
        [*plain_members(2), ("x.gif", b"GIF89a"), ("x.cls", b"1"), ("y.jpg", plain_image()), ("y.cls", b"?")],
    )
    (folder / "classes.json").write_text(json.dumps(["ant", "bee", "cow", "dodo"]))
    status, page = report(folder, "--samples", 3, "--pairs", 2)
    assert status == 0
    assert "7 samples, 2 shards, 4 classes" in page.text
    assert "b.tar : x: GIF is not read" in page.text
    assert "b.tar : y: the label is neither an integer nor one of the class names; found '?'" in page.text
    assert "1 class without a usable sample" in page.text
    assert re.search(r"0ant2.*1bee2.*2cow1.*3dodo0", page.text, re.DOTALL)
    *samples, mixes = page.images()
    assert [image.size for image in samples] == [(112, 112)] * 3
    assert mixes.width > 5 * 112
    assert mixes.height > 2 * 112


def test_it_is_self_contained(tmp_path: Path) -> None:
    _, page = report(write_tar(tmp_path / "a.tar", plain_members(3)))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "a", "form")]
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    } in [attributes for tag, attributes in page.tags if tag == "meta"]
    page.images()


def test_markup_in_keys_labels_fields_and_class_names_is_text(tmp_path: Path) -> None:
    key = MARKUP.replace("/", "").replace(".", "")
    members = [
        *((f"{key}{i}.{extension}", data) for i in range(3) for extension, data in (("jpg", plain_image()), ("cls", b"0"))),
        (f"{key}bad.jpg", plain_image()),
        (f"{key}bad.cls", MARKUP.encode()),
        (f"{key}lost.{key}.jpg", b"?"),
        (f"{key}lost.cls", b"0"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "<b>shard.tar", members)
    (tmp_path / "classes.json").write_text(json.dumps([MARKUP]))
    for label in ("cls", "none"):
        status, page = report(shard, "--label", label)
        assert status == 0
        allowed = {
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "p",
            "table",
            "tr",
            "th",
            "td",
            "br",
            "div",
        }
        assert {tag for tag, _ in page.tags} <= allowed | {"span", "figure", "img", "code"}
        assert not [attributes for _, attributes in page.tags if set(attributes) - KNOWN]
        assert "<script>alert(1)<script>" in page.text  # of a key, as text
        assert "\x1b" not in page.text
    assert page.images()


KNOWN = {"lang", "charset", "http-equiv", "content", "class", "style", "alt", "src"}


def test_without_a_usable_sample_the_page_says_so_and_the_status_is_1(tmp_path: Path) -> None:
    status, page = report(write_tar(tmp_path / "a.tar", [("a.jpg", b"junk"), ("a.cls", b"0")]))
    assert status == 1
    assert "a.tar : a: the image header cannot be read" in page.text
    assert "at least one usable sample is required" in page.text
    assert not page.images()


def test_a_long_table_shows_its_ends(tmp_path: Path) -> None:
    members = plain_members(1)
    members[1] = ("0000.cls", b"299")
    _, page = report(write_tar(tmp_path / "a.tar", members))
    assert "200 more" in page.text
    assert "299 classes without a usable sample" in page.text


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "a.tar", plain_members(3))
    assert main(["report", str(shard), "-o", str(tmp_path / "no" / "r.html"), "--quiet", "--backend", "torch"]) == 2
    assert "--out must name a file that can be written" in capsys.readouterr().err
    assert main(["report", str(shard), "-o", str(tmp_path / "r.html"), "--samples", "0"]) == 2
