#include "driver/inspect_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/progress.h"

namespace moec {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4a7bd0 }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 }
td, th { padding: .2rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code { font: 13px/1.6 ui-monospace, monospace; background: var(--soft);
  border-radius: 3px; padding: 0 .3em; margin-right: .25em; white-space: pre }
.bar { display: inline-block; height: .75em; background: var(--bar);
  border-radius: 2px }
.swatch { display: inline-block; width: .8em; height: .8em;
  border-radius: 2px; margin-right: .4em }
.text { font: 13px/1.9 ui-monospace, monospace; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem .8rem; overflow-wrap: anywhere;
  white-space: pre-wrap }
.text span { border-radius: 2px; color: #000 }
.note { opacity: .75; max-width: 46rem }
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  return out;
}

// A token between its neighbours' borders: line ends and spaces are seen.
std::string shown(const std::string& token) {
  std::string out;
  for (char c : token)
    if (c == '\n')
      out += "\u21b5";
    else if (c == '\t')
      out += "\u21e5";
    else if (c == ' ')
      out += "\u2423";
    else
      out += c;
  return escaped(out);
}

// Hues spread by the golden angle, light enough for black text.
std::string color(size_t expert) {
  return fmt::format("hsl({:.0f} 70% {}%)",
                     std::fmod(double(expert) * 137.5, 360),
                     expert / 8 % 2 ? 68 : 78);
}

void row(std::string& out, std::string_view what, const std::string& value) {
  out += fmt::format("<tr><td>{}</td><td class=n>{}</td></tr>\n", what, value);
}

std::string bytes(const Json& n) { return format_bytes(n.get<double>()); }

std::string thousands(const Json& number) {
  auto s = std::to_string(number.get<int64_t>());
  for (auto at = std::ssize(s) - 3; at > 0; at -= 3)
    s.insert(size_t(at), "\u202f");
  return s;
}

std::string costs(const Json& r) {
  auto &m = r["memory"], &f = r["roofline"];
  std::string out = "<table>\n";
  row(out, "parameters", thousands(r["parameters"]));
  row(out, "active for a token", thousands(r["active_parameters"]));
  row(out, "training, MFLOP a token",
      fmt::format("{:.2f}", r["train_flops_per_token"].get<double>() / 1e6));
  row(out, "parameters in memory", bytes(m["parameters"]));
  row(out, "moments of AdamW", bytes(m["moments"]));
  row(out, "temporaries of a step", bytes(m["temporaries"]));
  row(out, "a training step in all", bytes(m["total"]));
  double gflops = f["peak_flops_per_s"], rate = f["bandwidth_bytes_per_s"];
  if (gflops > 0) {
    row(out, "peak of this machine",
        fmt::format("{:.0f} GFLOP/s, {:.1f} GB/s", gflops / 1e9, rate / 1e9));
    row(out, "a step is at least",
        fmt::format("{:.2f} ms of arithmetic, {:.2f} ms of memory",
                    f["step_compute_ms"].get<double>(),
                    f["step_memory_ms"].get<double>()));
    row(out, "generation is at most",
        fmt::format("{:.0f} tokens/s ({} a token)",
                    f["decode_tokens_per_s"].get<double>(),
                    bytes(f["decode_bytes_per_token"])));
  }
  return out + "</table>\n";
}

std::string tokens(const Json& list) {
  std::string out;
  for (auto& t : list)
    out += fmt::format(
        "<code title=\"{} choices, {:.0f} % of this token's\">{}</code>",
        t["choices"].get<int64_t>(), 100 * t["share"].get<double>(),
        shown(t["token"]));
  return out;
}

std::string layer(const Json& l, size_t index, const Json& excerpt) {
  auto& experts = l["experts"];
  double most = 1e-9;
  for (auto& e : experts) most = std::max(most, e["share"].get<double>());
  std::string out = fmt::format(
      "<h2>MoE layer {}</h2>\n<p>entropy {:.3f} of 1, {} of {} experts "
      "dead</p>\n<table><tr><th>expert<th class=n>share<th><th>tokens that it "
      "takes most<th>tokens that are typical of it</tr>\n",
      index, l["entropy"].get<double>(), l["dead"].get<int64_t>(),
      experts.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    auto& x = experts[e];
    double share = x["share"];
    out += fmt::format(
        "<tr><td><span class=swatch style=\"background:{}\"></span>{}</td>"
        "<td class=n>{:.1f}&thinsp;%</td><td><span class=bar "
        "style=\"width:{:.0f}px\"></span></td><td>{}</td><td>{}</td></tr>\n",
        color(e), e, 100 * share, 90 * share / most, tokens(x["frequent"]),
        tokens(x["typical"]));
  }
  out += "</table>\n<div class=text>";
  auto& first = l["first"];
  for (size_t i = 0; i < first.size(); ++i) {
    size_t e = first[i];
    out += fmt::format(
        "<span style=\"background:{}\" title=\"expert {}\">{}"
        "</span>",
        color(e), e, escaped(excerpt[i].get<std::string>()));
  }
  return out + "</div>\n";
}

}  // namespace

std::string inspect_html(const Json& report, const std::string& title) {
  auto name = escaped(title);
  std::string out = fmt::format(
      "<!doctype html>\n<html lang=en><meta charset=utf-8>\n<meta "
      "name=viewport content=\"width=device-width\">\n<title>{}</title>\n"
      "<style>{}</style>\n<h1>{}</h1>\n{}",
      name, kStyle, name, costs(report));
  if (!report.contains("routing")) return out + "</html>\n";
  out +=
      "<p class=note>Every token of the text chooses its experts in each "
      "layer. "
      "A token is typical of an expert that takes it more often than the "
      "expert's share lets expect. The text below each table is the "
      "beginning of the file, coloured by every token's first choice.</p>\n";
  auto& layers = report["routing"];
  for (size_t l = 0; l < layers.size(); ++l)
    out += layer(layers[l], l, report["excerpt"]);
  return out + "</html>\n";
}

}  // namespace moec
