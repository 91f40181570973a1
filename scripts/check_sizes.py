#!/usr/bin/env python3
"""Files aim at 250 lines; more than 800 is an error.

Scripts have 80 columns; clang-format sees to the C++ sources.
"""
import subprocess
import sys

MAX_LINES, MAX_COLUMNS = 800, 80


def main():
    files = subprocess.run(
        ["git", "ls-files", "*.h", "*.cpp", "*.def", "*.cmake", "*.py", "dev",
         "*CMakeLists.txt"],
        capture_output=True, text=True, check=True).stdout.split()
    bad = False
    for path in files:
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
        if len(lines) > MAX_LINES:
            print(f"{path}: {len(lines)} lines; split it (at most "
                  f"{MAX_LINES})")
            bad = True
        if path.endswith((".h", ".cpp")) or path == "dev":
            continue
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS:
                print(f"{path}:{number}: {len(line)} columns")
                bad = True
    return 1 if bad else 0


sys.exit(main())
