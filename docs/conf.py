"""Sphinx settings: the pages are Markdown."""

from __future__ import annotations

project = "privtensors"
extensions = ["myst_parser"]
exclude_patterns = ["build"]
html_theme = "alabaster"
