"""What a table looks like on a terminal that is no terminal, as in a CI log."""

import io

from rich.console import Console


def text_of(renderable, width=80):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    return text


def line_with(text, start):
    return next(line for line in text.splitlines() if line.strip().startswith(start))
