#include "passes/html_report.h"

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "ir/op_def.h"
#include "ir/text.h"
#include "passes/html_page.h"
#include "support/error.h"
#include "support/json.h"

namespace moec {
namespace {

// Strings that repeat, each written once.
class Table {
 public:
  size_t of(const std::string& s) {
    auto [it, fresh] = index_.try_emplace(s, all_.size());
    if (fresh) all_.push_back(s);
    return it->second;
  }
  std::string json() const {
    std::string s = "[";
    for (auto& text : all_)
      s += (s.size() > 1 ? "," : "") + script_string(text);
    return s + "]";
  }
  // JSON that does not end the script element it stands in.
  static std::string script_string(std::string_view text) {
    std::string s;
    for (char c : json_quote(text)) s += c == '<' ? "\\u003c" : std::string{c};
    return s;
  }

 private:
  std::vector<std::string> all_;
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace

std::vector<HtmlReport::Line> HtmlReport::lines_of(const Graph& g) {
  std::vector<TextMark> marks;
  std::string text = print(g, marks);
  std::vector<Line> lines;
  size_t mark = 0;
  Line context;  // scope and info go on where a node takes several lines
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (mark < marks.size() && marks[mark].offset == at) {
      const Node& n = *marks[mark++].node;
      Cost c = cost_of(n);
      context.scope = n.where.scope;
      context.info = int(infos_.size());
      infos_.push_back(
          {std::string(op_name(n.op())), source_of(n), c.flops, c.bytes});
    }
    Line line = context;
    line.text = text.substr(at, end - at);
    size_t first = line.text.find_first_not_of(' ');
    if (first != line.text.npos && line.text[first] == '/') {
      // "// scope": what follows belongs to it.
      line.scope = context.scope =
          line.text.substr(std::min(line.text.size(), first + 3));
      line.info = -1;
    }
    if (mark == 0 || first == line.text.npos || line.text[first] == '}')
      line.info = -1;
    if (mark == 0 || first == 0) line.scope.clear();
    lines.push_back(std::move(line));
    at = end + 1;
  }
  return lines;
}

void HtmlReport::add(Graph& g, PassContext& ctx, RunOptions run) {
  Function f{g.name(), {}};
  run.dump = [&, dump = run.dump](int number, std::string_view pass,
                                  const Graph& at) {
    if (dump) dump(number, pass, at);
    f.dumps.push_back({number, std::string(pass)});
    f.dumps.back().nodes = at.size();
    f.dumps.back().lines = lines_of(at);
  };
  auto stats = run_pipeline(g, ctx, run);
  for (size_t i = 0; i < stats.size(); ++i) {
    f.dumps[i + 1].ms = stats[i].ms;
    f.dumps[i + 1].changed = stats[i].changed;
  }
  functions_.push_back(std::move(f));
}

std::string HtmlReport::page(std::string_view title) const {
  Table texts, scopes, ops, infos;
  std::string functions, summaries;
  auto quote = Table::script_string;
  for (auto& f : functions_) {
    functions += fmt::format("{}{{\"name\":{},\"passes\":[",
                             functions.empty() ? "" : ",", quote(f.name));
    for (size_t i = 0; i < f.dumps.size(); ++i) {
      auto& d = f.dumps[i];
      const PassInfo* pass = find_pass(d.pass);
      functions += fmt::format(
          "{}{{\"n\":{},\"pass\":{},\"summary\":{},\"ms\":{:.3f},"
          "\"changed\":{},\"nodes\":{},\"lines\":[",
          i ? "," : "", d.number, quote(d.pass),
          quote(pass ? pass->summary : "as the model states it"), d.ms,
          d.changed, d.nodes);
      // An unchanged graph is the one before.
      if (i == 0 || d.changed)
        for (size_t l = 0; l < d.lines.size(); ++l) {
          auto& line = d.lines[l];
          i64 info = -1;
          if (line.info >= 0) {
            auto& n = infos_[size_t(line.info)];
            info = i64(infos.of(fmt::format("{}|{}|{}|{}", ops.of(n.op),
                                            n.flops, n.bytes, n.source)));
          }
          functions +=
              fmt::format("{}{},{},{}", l ? "," : "", texts.of(line.text),
                          scopes.of(line.scope), info);
        }
      functions += "]}";
    }
    functions += "]}";
  }
  for (int op = 0; op < kNumOps; ++op)
    summaries += fmt::format("{}{}:{}", op ? "," : "", quote(op_name(Op(op))),
                             quote(def(Op(op)).summary));
  std::string data = fmt::format(
      "{{\"title\":{},\"functions\":[{}],\"texts\":{},\"scopes\":{},"
      "\"ops\":{},\"infos\":{},\"summaries\":{{{}}}}}",
      quote(title), functions, texts.json(), scopes.json(), ops.json(),
      infos.json(), summaries);
  std::string page = kHtmlPage;
  constexpr std::string_view kPlace = "MOEC_DATA";
  size_t at = page.find(kPlace);
  MOEC_CHECK(at != page.npos);
  return page.replace(at, kPlace.size(), data);
}

}  // namespace moec
