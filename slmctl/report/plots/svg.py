"""matplotlib's SVG, made fit for a page: ids of its own, the page's colours, a title and a description."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from slmctl.report import theme
from slmctl.report.safe_text import shortened, visible

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
TITLE_HEIGHT = 26
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_BY_HEX = {c.light: c for c in (*theme.SERIES, theme.INK, theme.SOFT, theme.AXIS, theme.RULE, theme.HEAT, theme.PAPER)}


def _tidy(text: str, name: str) -> ET.Element:
    """The parsed drawing without matplotlib's metadata and global style, ids prefixed with `name`, unused ones dropped."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(text)
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata" or (child.tag == f"{{{SVG}}}defs" and child.find(f"{{{SVG}}}style") is not None):
            root.remove(child)  # the style is meant for every element of whatever document it stands in
    used = set(_REFERENCE.findall(text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    for element in root.iter():
        found = element.attrib.pop("id", None)
        if found in used:
            element.set("id", f"{name}-{found}")
        for key, value in list(element.attrib.items()):
            if key == f"{{{XLINK}}}href":
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    root.set("stroke-linejoin", "round")
    return root


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    for i, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = visible(words, 600)
        root.insert(i, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    root.set("aria-describedby", f"{name}-desc")


def inline(text: str, name: str, title: str, description: str) -> str:
    """An <svg> element for the page `name` is unique in: fills its box, colours are the page's variables."""
    root = _tidy(text, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda m: _BY_HEX[m[0]].css if m[0] in _BY_HEX else m[0], style))
    _describe(root, name, title, description)
    return ET.tostring(root, encoding="unicode")


def standalone(text: str, name: str, title: str, description: str) -> str:
    """A file's text: concrete colours on white, with the title above the drawing."""
    root = _tidy(text, name)
    _, _, width, height = (float(x) for x in root.get("viewBox", "0 0 1 1").split())
    tall = height + TITLE_HEIGHT
    root.set("viewBox", f"0 {-TITLE_HEIGHT} {width:g} {tall:g}")
    root.set("width", f"{width:g}pt")
    root.set("height", f"{tall:g}pt")
    paper = {"x": "0", "y": str(-TITLE_HEIGHT), "width": "100%", "height": "100%", "style": f"fill: {theme.PAPER.light}"}
    root.insert(0, ET.Element(f"{{{SVG}}}rect", paper))
    heading = ET.Element(f"{{{SVG}}}text", {"x": "8", "y": "-8", "style": f"font: 600 12px sans-serif; fill: {theme.INK.light}"})
    heading.text = shortened(title, 56)
    root.insert(1, heading)
    _describe(root, name, title, description)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
