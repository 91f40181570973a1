#!/usr/bin/env python3
"""What each fusion gains on some configs: runs `moec bench fuse --each` on
them, prints the tables of docs/fusion.md and draws docs/fusion.svg.

  scripts/bench_fusion.py CONFIG.toml... [--json FILE] [--svg FILE] [ARG...]
  scripts/bench_fusion.py --from FILE [--svg FILE]

Unknown arguments go to moec (--threads 1, --dtype bf16, --steps 9, ...)."""
import argparse
import html
import json
import pathlib
import subprocess
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2",
           "#9d755d", "#bab0ac", "#eeca3b"]


class Time(typing.NamedTuple):
    key: str
    title: str


def measure(moec, config, extra):
    command = [moec, "bench", "fuse", config, "--each", "--json", *extra]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results, key, unit):
    names = [f["form"] for f in results[0]["forms"]]
    head = ["config", f"fused, {unit}"] + names[1:]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for r in results:
        forms = {f["form"]: f for f in r["forms"]}
        base = forms["fused"][key]
        row = [f"{r['config']} {r['dtype']}", f"{base:.1f}"]
        row += [f"{forms[n][key] / base:.2f}" if n in forms and base else "-"
                for n in names[1:]]
        print("| " + " | ".join(row) + " |")
    print()


def report(results, time):
    r = results[0]
    print(f"A step's {time.title} on {r['threads']} thread(s); other forms as "
          "multiples of the fused step.\n")
    table(results, time.key, "ms")
    print("Planned memory of temporaries, likewise.\n")
    table(results, "peak_mib", "MiB")
    print("| config | share of peak | loss, fused against grouped "
          "| gradients |")
    print("|---|---|---|---|")
    for r in results:
        fused = r["forms"][0]
        share = 100 * fused["peak_fraction"]
        share *= fused["step_ms"] / fused[time.key]
        print(f"| {r['config']} {r['dtype']} | {share:.0f} % "
              f"| {r['loss_rel_diff']:.1e} | {r['grad_rel_diff']:.1e} |")


def panel(results, key, title, x, width):
    """Bars of every form beside the fused step, one group per config."""
    names = [f["form"] for f in results[0]["forms"]]
    largest = max(f[key] / r["forms"][0][key]
                  for r in results for f in r["forms"])
    out = [f'<text x="{x}" y="20" font-weight="bold">{html.escape(title)}'
           "</text>"]
    y = 36
    scale = (width - 150) / largest
    for r in results:
        out.append(f'<text x="{x}" y="{y + 10}">{r["config"]} {r["dtype"]}'
                   "</text>")
        y += 16
        for form in r["forms"]:
            ratio = form[key] / r["forms"][0][key]
            colour = COLOURS[names.index(form["form"]) % len(COLOURS)]
            out.append(f'<rect x="{x + 105}" y="{y}" height="10" '
                       f'width="{ratio * scale:.1f}" fill="{colour}"/>')
            out.append(f'<text x="{x + 100}" y="{y + 9}" text-anchor="end" '
                       f'font-size="10">{form["form"]}</text>')
            out.append(f'<text x="{x + 109 + ratio * scale:.1f}" y="{y + 9}" '
                       f'font-size="10">{ratio:.2f}</text>')
            y += 12
        y += 10
    return out, y


def draw(results, time, path):
    width = 460
    left, y = panel(results, time.key,
                    f"{time.title} of a step, fused = 1", 10, width)
    right, _ = panel(results, "peak_mib", "memory of temporaries, fused = 1",
                     20 + width, width)
    body = "\n".join(left + right)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 40}" '
        f'height="{y + 10}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("configs", nargs="*")
    p.add_argument("--moec", default=str(ROOT / "build/release/moec"))
    p.add_argument("--json", type=pathlib.Path, help="keep the results here")
    p.add_argument("--from", dest="source", type=pathlib.Path,
                   help="results of an earlier --json")
    p.add_argument("--svg", type=pathlib.Path)
    p.add_argument("--cpu", action="store_true",
                   help="CPU time, for one thread where others run too")
    args, extra = p.parse_known_args()
    time = Time("cpu_ms", "CPU time") if args.cpu else Time("step_ms", "time")
    if args.source:
        results = json.loads(args.source.read_text())
    elif args.configs:
        results = [measure(args.moec, c, extra) for c in args.configs]
    else:
        p.error("give configs, or --from FILE")
    for r in results:
        r.pop("kernels", None)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    report(results, time)
    if args.svg:
        draw(results, time, args.svg)


if __name__ == "__main__":
    main()
