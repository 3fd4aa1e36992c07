"""One file per chart: a pure function DataFrame → plotly Figure. No torch, no gradio.

Every chart takes ``theme`` ("light" or "dark") and ``narrow`` (True on a phone) and returns a figure with a fixed
height, a transparent background and no title (title, question and reading stand in the registry).
``layout.meta = {"summary", "reading", "cursor"}``: a sentence for screen readers, a sentence on how to read it, and "x"
if the x axis is the iteration t. What traces, points, rows and columns stand for is said in the ``meta`` of their
trace, made by ``_style.names``: it is all that links the charts of a page.
"""
