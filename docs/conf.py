"""Sphinx configuration: Markdown pages by MyST, the API from docstrings, the theme furo. `make docs` builds it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import multimix_pipe
from multimix_pipe.cli import main

project = "multimix_pipe"
author = "The multimix_pipe authors"
copyright = "the multimix_pipe authors, Apache-2.0"
version = release = multimix_pipe.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes, no curly quotes: "cls" is a value to copy

html_theme = "furo"
html_title = "multimix_pipe"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["wide.css"]

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
# without DALI the stage's docstring can still be read
autodoc_mock_imports = [] if importlib.util.find_spec("nvidia") else ["nvidia"]

nitpicky = True
# types of other libraries and private aliases: no inventory is fetched, so that the build needs no network
nitpick_ignore_regex = [("py:class", r".*")]


class CommandHelp(Directive):
    """The text of `multimix-pipe COMMAND --help`, from the parser itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            main([self.arguments[0], "--help"])
        return [nodes.literal_block(text=written.getvalue(), language="text")]


def as_restructured_text(
    _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Docstrings are written as Markdown has it, with `Args:` as Google's style has it."""
    text: list[str] = []
    section = literal = False
    for line in lines:
        if line and not line.startswith(" "):
            section, literal = bool(re.fullmatch(r"\w+:", line)), False
        elif line and not section and not literal and text and not text[-1]:
            literal = True  # an indented paragraph
            text += ["::", ""]
        text.append(line if literal or line.startswith((">>>", "...")) else as_inline(line))
    if what not in ("attribute", "property"):  # of those napoleon takes what precedes a colon for a type
        text = GoogleDocstring(text, Config(napoleon_use_rtype=False), what=what).lines()
    lines[:] = text


def as_inline(line: str) -> str:
    """`code` in single backticks becomes a literal, asterisks outside of it are asterisks."""
    parts = re.split("(`[^`]+`)", line)
    return "".join(rf"`{part}`\ " if part.startswith("`") else part.replace("*", r"\*") for part in parts)


def setup(app: Sphinx) -> None:
    os.environ["COLUMNS"] = "100"  # width of argparse's help
    os.environ["NO_COLOR"] = "1"
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", as_restructured_text)
