"""One HTML file out of the template, its style, its scripts and the data: nothing is fetched.

Whatever comes from answer files is JSON in a block that no browser runs, with every <, > and & as
an escape, and reaches the page as text. A Content-Security-Policy names the hashes of the page's
own style and scripts: nothing else is run, and nothing is loaded.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

from evaluation.cli import finite

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("charts.js", "figures.js", "runs.js", "viewer.js", "page.js")
BEGIN = "<!doctype html>\n<!-- SpecGauge page -->"  # by which a page is known as one
MARK = re.compile(r"\{\{(\w+)\}\}")
UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def build(title, document, answers):
    """The page's text; document: document.document()'s, answers: packed questions a group."""
    style = source("page.css")
    script = "\n".join(map(source, SCRIPTS))
    policy = f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'"
    parts = {
        "title": html.escape(title),
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "data": data_block(document),
        "answers": data_block(answers),
    }
    text = MARK.sub(lambda found: parts[found[1]], source("page.html"))
    return text.encode("utf-8", "replace").decode("utf-8")  # half a character becomes "?"


def source(name):
    """The text of one of the page's own files."""
    return (FOLDER / name).read_text(encoding="utf-8")


def digest(text):
    """'sha256-...' of an inline script or style, as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def data_block(value):
    """JSON that ends no script element and is no markup, whatever texts are in it."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(UNSAFE)
