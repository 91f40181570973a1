// Printing. Names: a value's hint if it is free, else the hint with a number;
// values without one are numbered in order, so that printing what was parsed
// gives the same text. Within one scope the '=' and ':' columns line up.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include <algorithm>

#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"

namespace moec {
namespace {

constexpr size_t kMaxColumn = 72;  // longer lines do not move the ':' column
constexpr size_t kWrap = 92;

std::string clean(const std::string& hint) {
  std::string s;
  for (char c : hint) s += std::isalnum((unsigned char)c) || c == '.' ? c : '_';
  if (s.empty() || std::isdigit((unsigned char)s[0])) return {};
  return s;
}

std::string pad(std::string s, size_t width) {
  if (s.size() < width) s.append(width - s.size(), ' ');
  return s;
}

// "a, b, c", broken after commas where a line would pass kWrap; `column` is
// where the list starts.
std::string fill(absl::Span<const std::string> items, size_t column,
                 size_t indent) {
  std::string s;
  for (size_t i = 0; i < items.size(); ++i) {
    bool last = i + 1 == items.size();
    size_t need = items[i].size() + !last;
    if (i > 0) {
      if (column + 1 + need > kWrap) {
        s += "\n" + std::string(indent, ' ');
        column = indent;
      } else {
        s += ' ';
        ++column;
      }
    }
    s += items[i];
    if (!last) s += ',';
    column += need;
  }
  return s;
}

class Printer {
 public:
  Printer(const Graph& g, bool canonical,
          std::vector<TextMark>* marks = nullptr)
      : graph_(g), canonical_(canonical), marks_(marks) {
    for (Node* a : g.args()) assign(a);
    for (Node* n : g)
      if (n->op() != Op::Arg) assign(n);
  }

  std::string function() {
    std::vector<std::string> args;
    for (Node* a : graph_.args())
      args.push_back(name(a->result()) + ": " + to_string(a->type()));
    std::string head = "func @" + graph_.name() + "(";
    std::string out = head + fill(args, head.size(), 4) + ") {\n";
    body(2, out);
    return out + "}\n";
  }

  void body(size_t indent, std::string& out) {
    std::string scope;
    Node* n = graph_.first();
    while (n) {
      if (n->op() == Op::Arg) {
        n = n->next();
        continue;
      }
      if (!canonical_ && n->op() != Op::Return && n->where.scope != scope) {
        scope = n->where.scope;
        out += pad("", indent) + (scope.empty() ? "//" : "// " + scope) + "\n";
      }
      Node* end = n->next();
      while (end && end->where.scope == n->where.scope &&
             end->op() != Op::Return)
        end = end->next();
      if (n->op() == Op::Return) end = n->next();
      block(n, end, indent, out);
      n = end;
    }
  }

  std::string line(const Node& n) {
    std::string left = results(n);
    if (!left.empty()) left += " = ";
    return left + call(n, left.size(), 0) + types(n);
  }

 private:
  void mark(const Node& n, const std::string& out) const {
    if (marks_) marks_->push_back({out.size(), &n});
  }

  void assign(Node* n) {
    for (int i = 0; i < n->num_results(); ++i) {
      std::string hint;
      if (!canonical_ && i < int(n->names.size())) hint = clean(n->names[i]);
      std::string s = hint;
      if (hint.empty()) s = fmt::format("{}", counter_++);
      while (!taken_.insert(s).second)
        s = fmt::format("{}_{}", hint, ++repeats_[hint]);
      names_[n->result(i)] = "%" + s;
    }
  }

  const std::string& name(Value v) const { return names_.at(v); }

  std::string results(const Node& n) const {
    std::vector<std::string> items;
    for (int i = 0; i < n.num_results(); ++i)
      items.push_back(name(const_cast<Node&>(n).result(i)));
    return fill(items, 2, 6);
  }

  std::string attrs(const Node& n) const {
    std::string s;
    const auto& defs = n.def().attrs;
    for (size_t i = 0; i < defs.size(); ++i) {
      const AttrValue& v = n.attrs()[i];
      bool is_default = !defs[i].required && v == defs[i].value;
      if (is_default && !defs[i].shown) continue;
      s += s.empty() ? " {" : ", ";
      s += defs[i].name;
      if (!(std::holds_alternative<bool>(v) && std::get<bool>(v)))
        s += "=" + to_string(v);
    }
    return s.empty() ? s : s + "}";
  }

  std::string call(const Node& n, size_t column, size_t indent) const {
    std::vector<std::string> items;
    for (int i = 0; i < n.num_operands(); ++i) {
      std::string s = name(n.operand(i));
      if (n.body())
        s = (canonical_ ? fmt::format("%{}", i)
                        : "%" + clean(n.body()->arg_name(i))) +
            " = " + s;
      items.push_back(s);
    }
    std::string head = std::string(op_name(n.op())) + "(";
    return head + fill(items, column + head.size(), indent + 4) + ")" +
           attrs(n);
  }

  std::string types(const Node& n) const {
    std::string s;
    for (const Type& t : n.types())
      s += (s.empty() ? " : " : ", ") + to_string(t);
    return s;
  }

  std::string return_line(const Node& n, size_t indent) const {
    std::vector<std::string> items;
    const auto& names = graph_.output_names;
    for (int i = 0; i < n.num_operands(); ++i) {
      std::string s = name(n.operand(i));
      items.push_back(names.empty() ? s : names[i] + " = " + s);
    }
    return pad("", indent) + "return " + fill(items, indent + 7, indent + 4) +
           "\n";
  }

  // Lines [n, end) share a scope.
  void block(Node* n, Node* end, size_t indent, std::string& out) const {
    size_t equals = 0, colon = 0;
    std::vector<std::pair<std::string, std::string>> lines;
    for (Node* i = n; i != end; i = i->next()) {
      if (i->op() == Op::Return) {
        mark(*i, out);
        out += return_line(*i, indent);
        return;
      }
      size_t w = results(*i).size();
      if (!canonical_ && w <= 24) equals = std::max(equals, w);
    }
    for (Node* i = n; i != end; i = i->next()) {
      std::string left = pad(results(*i), equals) + " = ";
      std::string right = call(*i, indent + left.size(), indent);
      lines.emplace_back(left, right);
      size_t w = left.size() + right.size();
      if (!canonical_ && w <= kMaxColumn) colon = std::max(colon, w);
    }
    size_t at = 0;
    for (Node* i = n; i != end; i = i->next(), ++at) {
      auto& [left, right] = lines[at];
      mark(*i, out);
      out += pad("", indent) + pad(left + right, colon) + types(*i);
      if (i->body()) {
        Printer p(*i->body(), canonical_, marks_);
        out += " {\n";
        p.body(indent + 2, out);
        out += pad("", indent) + "}";
      }
      out += "\n";
    }
  }

  const Graph& graph_;
  bool canonical_;
  std::vector<TextMark>* marks_;
  int counter_ = 0;
  absl::flat_hash_set<std::string> taken_;
  absl::flat_hash_map<std::string, int> repeats_;
  absl::flat_hash_map<Value, std::string> names_;
};

}  // namespace

std::string print(const Graph& g) { return Printer(g, false).function(); }

std::string print(const Graph& g, std::vector<TextMark>& marks) {
  return Printer(g, false, &marks).function();
}

std::string print(const Module& m) {
  std::string s;
  for (const auto& f : m.functions) s += (s.empty() ? "" : "\n") + print(*f);
  return s;
}

std::string print(const Node& n) {
  if (n.op() == Op::Arg) return "%" + n.names[0] + ": " + to_string(n.type());
  return Printer(n.graph(), false).line(n);
}

std::string label_of(const Node& n) {
  if (n.where.scope.empty()) return std::string(op_name(n.op()));
  return fmt::format("{} {}", op_name(n.op()), n.where.scope);
}

std::string source_of(const Node& n) {
  std::string_view file = n.where.file;
  if (file.empty()) return {};
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), n.where.line);
}

std::string structural_key(const Graph& g) {
  std::string s;
  for (Node* a : g.args()) s += to_string(a->type()) + ",";
  s += "\n";
  Printer(g, true).body(0, s);
  return s;
}

}  // namespace moec
