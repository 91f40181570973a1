#!/usr/bin/env python3
"""Writes tokenizer/unicode_tables.cpp: the class of every Unicode 16 code point
for the split patterns. Needs `pip install unicodedata2==16.0.0`; the result is
committed. --check compares it with tiktoken's own regex engine (pip install
tiktoken) over all code points.

usage: unicode_tables.py [--check] > tokenizer/unicode_tables.cpp"""
import itertools
import sys

import unicodedata2

SPACES = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
          0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
NAMES = dict(Lu=1, Lt=1, Ll=2, Lm=3, Lo=3, M=4, N=5)


def code_class(c):
    if c in SPACES:
        return 6
    category = unicodedata2.category(chr(c))
    return NAMES.get(category, NAMES.get(category[0], 0))


def check(classes):
    import tiktoken
    ranks = {bytes([i]): i for i in range(256)}
    groups = {r"\p{L}": (1, 2, 3), r"\p{N}": (5,), r"\s": (6,), r"\p{M}": (4,),
              r"[\p{Lu}\p{Lt}]": (1,), r"\p{Ll}": (2,)}
    for pattern, members in groups.items():
        engine = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks,
                                   special_tokens={}, explicit_n_vocab=256)
        theirs = set()
        for at in range(0, 0x110000, 4096):
            text = "".join(chr(c) for c in range(at, at + 4096)
                           if not 0xD800 <= c < 0xE000)
            theirs |= set(engine.decode(engine.encode_ordinary(text)))
        ours = {chr(c) for c, k in enumerate(classes) if k in members}
        print(pattern, len(ours), "differ:", len(ours ^ theirs),
              file=sys.stderr)
        if ours != theirs:
            sys.exit(1)


def main():
    assert unicodedata2.unidata_version == "16.0.0"
    classes = [code_class(c) for c in range(0x110000)]
    if "--check" in sys.argv:
        check(classes)
    text = "".join("ABCDEFG"[k] + str(len(list(run)))
                   for k, run in itertools.groupby(classes))
    print('// Made by scripts/unicode_tables.py from Unicode 16.0.0: the '
          'classes of all\n// code points in order, as runs: A is Class 0, a '
          'number its length.\n#include "tokenizer/unicode.h"\n\n'
          'namespace moec::bpe {\n\nconst char kClassRuns[] =')
    for at in range(0, len(text), 74):
        end = ";" if at + 74 >= len(text) else ""
        print(f'    "{text[at:at + 74]}"{end}')
    print("\n}  // namespace moec::bpe")


if __name__ == "__main__":
    main()
