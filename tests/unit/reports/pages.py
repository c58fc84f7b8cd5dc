"""What is asked of every page."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements with their attributes, all text, and whether every element is closed in order."""

    def __init__(self, document):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def assert_stands_alone(document, *, scripts=False):
    """Nothing fetched from anywhere; no script but, where they are allowed, those that stand in the page."""
    page = Page(document)
    fetching = {"link", "iframe", "img", "object", "embed", *(() if scripts else ("script",))}
    assert not fetching & {tag for tag, _ in page.elements}
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "innerHTML", "eval("):
        assert word not in document
    for _, attributes in page.elements:
        assert "src" not in attributes
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#")
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in document
    assert re.findall(r"url\((?!#)", document) == []
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", document))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched


def assert_references_resolve(document):
    """Ids are unique, and what the drawings refer to is there."""
    page = Page(document)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', document))
    assert references
    assert references <= set(ids)


def headings(document):
    """Levels of the headings, in order."""
    return [int(tag[1]) for tag, _ in Page(document).elements if re.fullmatch("h[1-6]", tag)]
