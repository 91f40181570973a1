#!/usr/bin/env python3
"""How the time of a step grows, what a launch costs, and what another busy
process does to a step. Runs moec, one figure beside its reference in turn.

  scripts/bench_growth.py CONFIG.toml [--only growth,experts,...] [ARG...]

Parts: growth (twice the tokens, twice the sequence), experts (8 to 64 at
equal active FLOPs), dispatch, contention (needs two cores). Unknown arguments
go to moec."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Moec:
    def __init__(self, path, extra):
        self.path, self.extra = path, extra

    def bench(self, *args):
        command = [self.path, "bench", *args, "--json", *self.extra]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1])

    def train(self, config, steps, *args, **sets):
        for key, value in sets.items():
            args += ("--set", f"{key.replace('__', '.')}={value}")
        return self.bench("train", config, "--steps", str(steps), *args)


def medians(rounds, *runs):
    """Median of each run's number; the runs take turns."""
    values = [[] for _ in runs]
    for _ in range(rounds):
        for v, run in zip(values, runs):
            v.append(run())
    return [statistics.median(v) for v in values]


def row(what, value, limit):
    met = "" if value <= limit else "   over"
    print(f"{what:<58} {value:7.3f}   limit {limit}{met}")


def growth(moec, config, rounds, steps):
    toml = tomllib.loads(pathlib.Path(config).read_text())
    train, model = toml["train"], toml["model"]
    batch, seq = train["batch"], train["seq"]

    def step(**sets):
        return lambda: moec.train(config, steps, **sets)["step_ms"]

    one, twice = medians(rounds, step(), step(train__batch=2 * batch))
    row("twice the tokens, time", twice / one, 2.1)
    if batch % 2:
        return
    one, longer = medians(
        rounds, step(), step(train__batch=batch // 2, train__seq=2 * seq))
    # The attention products are the only FLOPs that grow.
    head = model.get("d_head", model["d_model"] // model["n_heads"])
    value = model.get("d_value", head)
    added = (3 * model["n_heads"] * (head + value) * seq * model["n_layers"]
             * batch * seq)
    run = moec.train(config, steps)
    shares = moec.bench("peak")
    peak = shares["f32_gflops"] * 1e9 * run["threads"]
    flops = run["peak_fraction"] * peak * run["step_ms"] / 1e3
    print(f"{'':<58} attention adds {added / flops:.3f} of the FLOPs")
    row("twice the sequence at equal tokens, time", longer / one,
        round(1 + 2 * added / flops + 0.05, 3))


def experts(moec, config, rounds, steps):
    sets = {"model.d_model": 256, "model.d_ff": 512, "moe.top_k": 2,
            "model.n_heads": 4, "model.n_kv_heads": 4, "model.d_head": 64,
            "train.batch": 16, "train.seq": 512}

    def layer(count):
        args = []
        for key, value in {**sets, "moe.experts": count}.items():
            args += ["--set", f"{key}={value}"]
        return lambda: moec.bench("layer", config, "--steps", str(steps),
                                  *args)["fused_ms"]

    few, many = medians(rounds, layer(8), layer(64))
    row("8 -> 64 experts, equal active FLOPs, T 8192, time", many / few, 1.2)
    own = moec.bench("layer", config, "--steps", str(steps))
    print(f"{'expert layer against a dense one of equal FLOPs, ' + config:<58} "
          f"{own['tax']:7.3f}   grouped {own['grouped_tax']:.3f}")


def dispatch(moec, _config, rounds, _steps):
    us, = medians(rounds, lambda: moec.bench("dispatch")["us_per_launch"])
    row("dispatch of a kernel, microseconds", us, 1.0)


def contention(moec, config, rounds, steps):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("contention: needs two cores")
        return
    steps = max(steps, 40)
    alone = min(moec.train(config, steps, "--threads", "1")["step_ms"]
                for _ in range(rounds))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, {cores[0]})
        runs = [moec.train(config, steps, "--threads", "2")
                for _ in range(rounds)]
    finally:
        busy.kill()
        busy.wait()
    row("two threads, one core busy: median over one thread alone",
        statistics.median(r["step_ms"] for r in runs) / alone, 1.15)
    row("two threads, one core busy: p95 over one thread alone",
        statistics.median(r["p95_ms"] for r in runs) / alone, 1.4)


PARTS = {"growth": growth, "experts": experts, "dispatch": dispatch,
         "contention": contention}


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("config")
    p.add_argument("--only", default=",".join(PARTS))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--moec", default=str(ROOT / "build/release/moec"))
    args, extra = p.parse_known_args()
    for name in args.only.split(","):
        if name not in PARTS:
            p.error(f"no part {name}; there are {', '.join(PARTS)}")
        PARTS[name](Moec(args.moec, extra), args.config, args.rounds,
                    args.steps)


if __name__ == "__main__":
    main()
