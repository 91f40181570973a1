#!/usr/bin/env python3
"""Writes tests/tokenizer/golden/: what other tokenizers make of text.txt.
rustbpe and Hugging Face train on it (pip install rustbpe tokenizers), minbpe's
rule is stated here in its own terms (regex), tiktoken encodes it.

usage: tokenizer_goldens.py FOLDER   (holds text.txt)"""
import base64
import json
import pathlib
import sys

import regex
import rustbpe
import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

VOCAB = 700
GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")


def by_first(text):
    """minbpe: the most frequent pair, of equals the one met first."""
    pieces = [list(p.encode()) for p in regex.findall(GPT4, text)]
    merges = []
    while 256 + len(merges) < VOCAB:
        counts = {}
        for ids in pieces:
            for pair in zip(ids, ids[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        pair = max(counts, key=counts.get)
        new = 256 + len(merges)
        merges.append(pair)
        for k, ids in enumerate(pieces):
            out, i = [], 0
            while i < len(ids):
                if tuple(ids[i:i + 2]) == pair:
                    out.append(new)
                    i += 2
                else:
                    out.append(ids[i])
                    i += 1
            pieces[k] = out
    return merges


def main():
    folder = pathlib.Path(sys.argv[1])
    text = (folder / "text.txt").read_text(encoding="utf-8")

    rust = rustbpe.Tokenizer()
    rust.train_from_iterator(iter([text]), VOCAB, pattern=GPT4)
    ranks = {bytes(k): v for k, v in rust.get_mergeable_ranks()}
    (folder / "rustbpe.tiktoken").write_text("".join(
        f"{base64.b64encode(k).decode()} {v}\n"
        for k, v in sorted(ranks.items(), key=lambda kv: kv[1])))

    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    hf.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=VOCAB, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    (folder / "hf.json").write_text(
        json.dumps(json.loads(hf.to_str()), ensure_ascii=False, indent=1))

    (folder / "minbpe.txt").write_text(
        "".join(f"{a} {b}\n" for a, b in by_first(text)))

    engine = tiktoken.Encoding("x", pat_str=GPT4, mergeable_ranks=ranks,
                               special_tokens={})
    ids = engine.encode_ordinary(text)
    (folder / "tiktoken_ids.txt").write_text(" ".join(map(str, ids)) + "\n")


if __name__ == "__main__":
    main()
