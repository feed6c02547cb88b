#!/usr/bin/env python3
"""Prints the table of the chart's values for charts/agent-shim/README.md, from the comments in values.yaml.

    tools/chart-values.py           prints the table
    tools/chart-values.py --write   puts it into README.md, between the two marks

Needs PyYAML (target/chart-venv has it). A value is documented by the line `# -- text` above it; a map whose members are
documented needs none of its own.
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "charts" / "agent-shim"
START, END = "<!-- values: start -->", "<!-- values: end -->"


def comments(text):
    """The text of each value by its path."""
    found, stack, pending = {}, [], None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            pending = stripped[5:]
            continue
        key = re.match(r"^( *)([A-Za-z_][\w.-]*):", line)
        if not key:
            continue
        depth = len(key.group(1)) // 2
        stack[depth:] = [key.group(2)]
        if pending:
            found[".".join(stack)] = pending
            pending = None
    return found


def leaves(value, documented, path=""):
    """Each value that a person sets, with its default; a documented map counts as one."""
    if isinstance(value, dict) and path not in documented:
        for key, inner in value.items():
            yield from leaves(inner, documented, f"{path}.{key}" if path else key)
    else:
        yield path, value


def table():
    text = (CHART / "values.yaml").read_text()
    documented = comments(text)
    rows = ["| value | default | meaning |", "|---|---|---|"]
    missing = []
    for path, default in leaves(yaml.safe_load(text), documented):
        if path not in documented:
            missing.append(path)
            continue
        shown = json.dumps(default, ensure_ascii=False)
        rows.append(f"| `{path}` | `{shown}` | {documented[path].replace('|', chr(92) + '|')} |")
    if missing:
        sys.exit(f"values.yaml: no comment `# -- ` above {', '.join(missing)}")
    return "\n".join(rows)


def main():
    if sys.argv[1:] == ["--write"]:
        readme = CHART / "README.md"
        text = readme.read_text()
        start, end = text.index(START) + len(START), text.index(END)
        readme.write_text(f"{text[:start]}\n{table()}\n{text[end:]}")
    else:
        print(table())


if __name__ == "__main__":
    main()
