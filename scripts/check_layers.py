#!/usr/bin/env python3
"""Every include against the picture of the layers in README.md."""
import re
import subprocess
import sys

# A folder may include itself and, transitively, these.
MAY = {
    "support": [],
    "ir": ["support"],
    "passes": ["ir"],
    "runtime": ["support"],
    "tokenizer": ["support"],
    "codegen": ["ir", "passes", "runtime"],
    "frontend": ["ir"],
    "models/moe": ["frontend", "codegen", "tokenizer", "runtime"],
    "driver": ["models/moe", "passes"],
}
# Library headers that belong to some folders only.
ONLY = [(re.compile(r"^llvm[/-]"), ["codegen"])]


def closure(folder):
    seen, todo = set(), [folder]
    while todo:
        f = todo.pop()
        if f not in seen:
            seen.add(f)
            todo += MAY[f]
    return seen


def folder_of(path):
    for f in sorted(MAY, key=len, reverse=True):
        if path.startswith(f + "/"):
            return f
    return None


def main():
    files = subprocess.run(
        ["git", "ls-files", "*.h", "*.cpp", "*.def"],
        capture_output=True, text=True, check=True).stdout.split()
    errors = []
    for path in files:
        folder = folder_of(path)
        if folder is None:
            continue  # tests and examples may include everything
        allowed = closure(folder)
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
        for number, line in enumerate(lines, 1):
            m = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
            if not m:
                continue
            name = m.group(2)
            if m.group(1) == '"':
                target = folder_of(name)
                if target is None:
                    errors.append(f"{path}:{number}: \"{name}\" does not "
                                  "start at the source root")
                elif target not in allowed:
                    errors.append(f"{path}:{number}: {folder} may not "
                                  f"include {target} (\"{name}\")")
            for pattern, folders in ONLY:
                if pattern.match(name) and folder not in folders:
                    errors.append(f"{path}:{number}: only "
                                  f"{', '.join(folders)} may include {name}")
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


sys.exit(main())
