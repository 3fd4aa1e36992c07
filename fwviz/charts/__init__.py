"""One file per chart: a pure function DataFrame → plotly Figure. No torch, no gradio.

Every chart takes ``theme`` ("light" or "dark") and ``narrow`` (True on a phone) and returns a figure with a fixed
height, a transparent background and no title (title, question and reading stand in the registry).
``layout.meta = {"summary", "reading", "cursor"}``: a sentence for screen readers, a sentence on how to read it, and "x"
if the x axis is the iteration t. Points that a click may pin carry an id in ``customdata``; ``meta["select"]`` of their
trace says whether that is a checkpoint, a task, a run or an iteration.
"""
