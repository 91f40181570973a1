#!/usr/bin/env python3
"""Generated documents equal what the built moec prints."""
import os
import subprocess
import sys

# Document -> the command that prints it.
DOCS = {"docs/ops.md": ["opt", "--ops"], "docs/passes.md": ["opt", "--list"]}


def main():
    moec = os.path.join("build", os.environ.get("MOEC_PRESET", "release"),
                        "moec")
    bad = False
    for path, command in DOCS.items():
        r = subprocess.run([moec] + command, capture_output=True, text=True)
        if r.returncode != 0:
            print(f"{path}: moec {' '.join(command)} failed: {r.stderr}")
            bad = True
            continue
        try:
            with open(path, encoding="utf-8") as f:
                same = f.read() == r.stdout
        except FileNotFoundError:
            same = False
        if not same:
            print(f"{path}: out of date; run: {moec} {' '.join(command)} "
                  f"> {path}")
            bad = True
    return 1 if bad else 0


sys.exit(main())
