"""Numbers that are worth seeing after a run and not worth failing it for."""

MEGABYTE = 1024 * 1024

_lines: list[str] = []


def note(line: str) -> None:
    _lines.append(line)


def lines() -> list[str]:
    return _lines
