#!/usr/bin/env python3
"""Checkpoints of Hugging Face's transformers against moec.

usage: hf_peer.py goldens                 writes tests/models/golden/hf
       hf_peer.py compare [MOEC] [CASE]   imports, runs and exports every case

Needs torch, transformers and safetensors; moec and its tests do not.
"""
import filecmp
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/models/golden/hf"

SMALL = dict(vocab_size=19, hidden_size=8, intermediate_size=10,
             num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, num_experts_per_tok=2, num_experts=3,
             pad_token_id=None, bos_token_id=None, eos_token_id=None)
MID = dict(SMALL, vocab_size=101, hidden_size=48, intermediate_size=40,
           num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
           num_experts=8)


def mixtral(base, **more):
    d = dict(base, **more)
    d["num_local_experts"] = d.pop("num_experts")
    return tf.MixtralConfig(**d)


def qwen(base, **more):
    d = dict(base, moe_intermediate_size=base["intermediate_size"] - 2)
    d.update(more)
    return tf.Qwen3MoeConfig(**d)


def olmoe(base, **more):
    return tf.OlmoeConfig(**dict(base, **more))


EAGER = dict(attn_implementation="eager", experts_implementation="eager")
GOLDENS = ("mixtral", "qwen3_moe", "olmoe")
SHAPES = {True: (2, 7), False: (3, 23)}  # of tokens, by "is a golden"

# name: (config, options)
CASES = {
    "mixtral": (lambda: mixtral(SMALL, sliding_window=4),
                dict(shard="4KB", eos=True)),
    "qwen3_moe": (lambda: qwen(SMALL, head_dim=6, mlp_only_layers=[1],
                               tie_word_embeddings=True, norm_topk_prob=True),
                  dict(dtype=torch.bfloat16)),
    "olmoe": (lambda: olmoe(SMALL, eos_token_id=50279, pad_token_id=1),
              dict(stacked=True)),
    "mixtral_mha": (lambda: mixtral(MID, num_key_value_heads=6), {}),
    "mixtral_mqa_head_dim": (
        lambda: mixtral(MID, num_key_value_heads=1, head_dim=16,
                        tie_word_embeddings=True, sliding_window=7),
        dict(stacked=True)),
    "mixtral_bf16_theta": (
        lambda: mixtral(MID, rope_parameters=dict(rope_type="default",
                                                  rope_theta=500.0)),
        dict(dtype=torch.bfloat16, shard="20KB")),
    "mixtral_v4": (lambda: mixtral(MID), dict(v4=True)),
    "qwen_plain": (lambda: qwen(MID), {}),
    "qwen_sparse_step": (
        lambda: qwen(MID, decoder_sparse_step=2, norm_topk_prob=True,
                     head_dim=12, num_hidden_layers=4, mlp_only_layers=[3]),
        dict(stacked=True)),
    "qwen_window_bias": (
        lambda: qwen(MID, use_sliding_window=True, sliding_window=5,
                     attention_bias=True, norm_topk_prob=True), dict(eos=True)),
    "qwen_all_dense": (lambda: qwen(MID, mlp_only_layers=[0, 1, 2]), {}),
    "qwen_v4_bf16": (lambda: qwen(MID, tie_word_embeddings=True),
                     dict(v4=True, dtype=torch.bfloat16)),
    "olmoe_gqa_bias": (lambda: olmoe(MID, attention_bias=True,
                                     norm_topk_prob=True), {}),
    "olmoe_tied": (lambda: olmoe(MID, tie_word_embeddings=True,
                                 num_key_value_heads=6, num_experts_per_tok=3,
                                 pad_token_id=5),
                   dict(shard="30KB")),
    "olmoe_v4": (lambda: olmoe(MID, hidden_act="gelu_pytorch_tanh"),
                 dict(v4=True)),
}


def make_model(config, dtype, seed):
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(config, **EAGER)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * 1.2 / p.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def as_version_4(folder):
    """Rewrites config.json as transformers 4 has it."""
    path = folder / "config.json"
    c = json.loads(path.read_text())
    c["torch_dtype"] = c.pop("dtype")
    c["rope_theta"] = c.pop("rope_parameters")["rope_theta"]
    c["rope_scaling"] = None
    if c["model_type"] == "qwen3_moe":
        c["num_experts"] = c.pop("num_local_experts")
    c["transformers_version"] = "4.51.0"
    path.write_text(json.dumps(c, indent=2))


def write_case(name, folder):
    build, o = CASES[name]
    dtype = o.get("dtype", torch.float32)
    model = make_model(build(), dtype, sum(map(ord, name)))
    if o.get("eos"):  # ends the continuation after a few tokens
        prompt = inputs(model.config.vocab_size, *SHAPES[name in GOLDENS])[0]
        model.generation_config.eos_token_id = [
            10 ** 6, int(greedy(model.float(), prompt)[5])]
        model.to(dtype)
    more = {}
    if o.get("shard"):
        more["max_shard_size"] = o["shard"]
    if o.get("stacked"):
        more["save_original_format"] = False
    model.save_pretrained(folder, **more)
    if o.get("v4"):
        as_version_4(folder)
    return load(folder)


def load(folder):
    return tf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **EAGER).eval()


def moec_gradients(model):
    """The gradients under moec's names."""
    out = {}
    for name, p in model.named_parameters():
        g = p.grad
        n = name.removeprefix("model.")
        for a, b in (("embed_tokens", "embed"), ("lm_head", "head"),
                     ("self_attn", "attn"), ("input_layernorm", "norm1"),
                     ("post_attention_layernorm", "norm2"),
                     ("mlp.gate.", "moe.router."),
                     ("mlp.experts", "moe.experts")):
            n = n.replace(a, b)
        if not ".moe." in n:
            n = n.replace("mlp.", "ffn.")
        if n.endswith("gate_up_proj"):
            half = g.shape[1] // 2
            n = n.removesuffix("gate_up_proj")
            out[n + "gate_proj.weight"] = g[:, :half]
            out[n + "up_proj.weight"] = g[:, half:]
        elif n.endswith("experts.down_proj"):
            out[n + ".weight"] = g
        else:
            out[n] = g
    return {"grad." + k: v.contiguous() for k, v in out.items()}


def inputs(vocab, rows, seq):
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, vocab, (rows, seq), generator=g)
    targets = torch.randint(0, vocab, (rows, seq), generator=g)
    targets[0, 1] = targets[-1, -1] = -1
    tokens[0, 2] = 1  # a padding token
    tokens[-1, 3] = 5
    return tokens, targets


def greedy(model, tokens):
    with torch.no_grad():
        return model.generate(tokens[:1, :5], do_sample=False,
                              max_new_tokens=12, pad_token_id=0,
                              attention_mask=torch.ones(1, 5))[0, 5:]


def expected(model, rows, seq):
    vocab = model.config.vocab_size
    tokens, targets = inputs(vocab, rows, seq)
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, vocab), targets.reshape(-1), ignore_index=-1)
    loss.backward()
    out = dict(tokens=tokens.int(), targets=targets.int(),
               logits=logits.detach(), loss=loss.detach(),
               greedy=greedy(model, tokens).int(), **moec_gradients(model))
    return {k: v.contiguous() for k, v in out.items()}


def goldens():
    for name in GOLDENS:
        folder = GOLDEN / name
        folder.mkdir(parents=True, exist_ok=True)
        for f in folder.iterdir():
            f.unlink()
        save_file(expected(write_case(name, folder), *SHAPES[True]),
                  GOLDEN / f"{name}.safetensors")


def all_tensors(folder):
    out = {}
    for f in sorted(folder.glob("*.safetensors")):
        out.update(load_file(f))
    return out


def compare_case(moec, name, work):
    def run(*args):
        p = subprocess.run([moec, *map(str, args)], capture_output=True,
                           text=True)
        if p.returncode:
            raise SystemExit(f"{name}: moec {args}: {p.stderr}")
        return p.stdout

    hf, step, back = work / "hf", work / "step", work / "back"
    want = expected(write_case(name, hf), *SHAPES[name in GOLDENS])
    run("import", hf, step)
    save_file({k: want[k] for k in ("tokens", "targets")}, work / "in")
    figures = {}
    got = {}
    for fn in ("logits", "grad"):
        run("run", step, "--fn", fn, "--inputs", work / "in", "--outputs",
            work / "out")
        got.update(load_file(work / "out"))
    diff = (got["logits"] - want["logits"]).abs().max()
    figures["logits"] = float(diff / want["logits"].pow(2).mean().sqrt())
    grads = [k for k in want if k.startswith("grad.")]
    assert set(grads) == {k for k in got if k.startswith("grad.")}, name
    figures["grad"] = max(
        float((got[k] - want[k]).norm() / want[k].norm().clamp_min(1e-6))
        for k in grads)
    prompt = ",".join(map(str, want["tokens"][0, :5].tolist()))
    ids = run("generate", step, "--prompt-ids", prompt, "--ids",
              "--temperature", 0, "--max-tokens", 12).strip().split(",")
    figures["greedy"] = list(map(int, ids)) == want["greedy"].tolist()
    assert not CASES[name][1].get("eos") or len(ids) < 12
    run("export", step, back)
    a, b = all_tensors(hf), all_tensors(back)
    figures["bytes"] = set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(
            a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a)
    figures["config"] = filecmp.cmp(hf / "config.json", back / "config.json",
                                    shallow=False)
    again = load(back)
    with torch.no_grad():
        figures["loads"] = torch.equal(again(want["tokens"].long()).logits,
                                       want["logits"])
    good = (figures["logits"] < 2e-5 and figures["grad"] < 1e-4 and
            all(figures[k] for k in ("greedy", "bytes", "config", "loads")))
    print(f"{'ok  ' if good else 'FAIL'} {name:22}", figures, flush=True)
    return good


def main(args):
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args[:1] == ["goldens"]:
        return goldens()
    if args[:1] != ["compare"]:
        sys.exit(__doc__)
    moec = args[1] if len(args) > 1 else ROOT / "build/release/moec"
    good = True
    for name in args[2:] or CASES:
        with tempfile.TemporaryDirectory() as work:
            good &= compare_case(moec, name, pathlib.Path(work))
    sys.exit(not good)


if __name__ == "__main__":
    main(sys.argv[1:])
