"""The page in a browser: a queue on disk, one process that works through it by the package's API, and a Gradio page."""
