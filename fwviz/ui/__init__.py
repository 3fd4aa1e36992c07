"""The browser app: thin wiring of pools, runs, lenses and charts to one gradio page."""
