"""Hugging Face Spaces entry, and ``python app.py`` on any machine: builds the page and serves it."""

from fwviz.ui.app import launch

if __name__ == "__main__":
    launch()
