"""Sphinx settings: the pages are Markdown."""

from __future__ import annotations

project = "privtensors"
extensions = ["myst_parser"]
exclude_patterns = ["build"]
myst_heading_anchors = 3  # links to a heading of another page
html_theme = "alabaster"
