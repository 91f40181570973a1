// Parsing: one recursive-descent reader over the text, with positions for
// errors. Every name, type and attribute is checked; nothing aborts.
#include <absl/container/flat_hash_map.h>

#include <charconv>
#include <cmath>
#include <utility>

#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"

namespace moec {
namespace {

constexpr int kMaxDepth = 8;  // of fusion bodies

bool is_word(char c) {
  return std::isalnum((unsigned char)c) || c == '_' || c == '.' || c == '-' ||
         c == '/';
}
bool is_name(char c) {
  return std::isalnum((unsigned char)c) || c == '_' || c == '.';
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view file)
      : text_(text), file_(file) {}

  Module module() {
    Module m;
    for (skip(); at_ < text_.size(); skip()) {
      auto g = function();
      if (m.find(g->name())) fail("function @" + g->name() + " is there twice");
      m.functions.push_back(std::move(g));
    }
    if (m.functions.empty()) fail("there is no function ('func @name(...)')");
    return m;
  }

 private:
  using Names = absl::flat_hash_map<std::string, Value>;

  [[noreturn]] void fail(const std::string& why) const { fail_at(at_, why); }

  [[noreturn]] void fail_at(size_t place, const std::string& why) const {
    int line = 1, column = 1;
    for (size_t i = 0; i < place && i < text_.size(); ++i) {
      if (text_[i] == '\n') {
        ++line;
        column = 1;
      } else {
        ++column;
      }
    }
    user_error("{}:{}:{}: {}", file_, line, column, why);
  }

  // Skips space and comments; a comment alone on its line that is one word
  // (or empty) sets the scope of the nodes that follow.
  void skip() {
    while (at_ < text_.size()) {
      char c = text_[at_];
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        ++at_;
      } else if (c == '/' && text_.substr(at_, 2) == "//") {
        size_t end = std::min(text_.find('\n', at_), text_.size());
        read_scope(text_.substr(at_ + 2, end - at_ - 2));
        at_ = end;
      } else {
        break;
      }
    }
  }

  void read_scope(std::string_view comment) {
    size_t line = text_.rfind('\n', at_);
    line = line == std::string_view::npos ? 0 : line + 1;
    for (size_t i = line; i < at_; ++i)
      if (text_[i] != ' ' && text_[i] != '\t') return;
    while (!comment.empty() && std::isspace((unsigned char)comment.back()))
      comment.remove_suffix(1);
    if (!comment.empty() && comment[0] == ' ') comment.remove_prefix(1);
    for (char c : comment)
      if (!is_word(c)) return;
    scope_ = comment;
  }

  bool peek(char c) {
    skip();
    return at_ < text_.size() && text_[at_] == c;
  }
  bool accept(char c) {
    if (!peek(c)) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (accept(c)) return;
    std::string found = at_ < text_.size() ? fmt::format("'{}'", text_[at_])
                                           : std::string("the end of the text");
    fail(fmt::format("expected '{}', found {}", c, found));
  }

  std::string word(const char* what) {
    skip();
    size_t start = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    if (start == at_) fail(fmt::format("expected {}", what));
    return std::string(text_.substr(start, at_ - start));
  }
  std::string value_name() {
    expect('%');
    return word("a value's name");
  }

  i64 integer() {
    skip();
    i64 v = 0;
    auto r =
        std::from_chars(text_.data() + at_, text_.data() + text_.size(), v);
    if (r.ec != std::errc()) fail("expected an integer that fits 64 bits");
    at_ = size_t(r.ptr - text_.data());
    return v;
  }

  Type type() {
    size_t start = at_;
    std::string name = word("a type");
    auto dtype = parse_dtype(name);
    if (!dtype) fail_at(start, "there is no element type '" + name + "'");
    Type t{*dtype, {}};
    expect('[');
    if (accept(']')) return t;
    do {
      t.dims.push_back(integer());
      if (t.dims.back() < 0) fail("a dimension is negative");
      if (t.dims.size() > 16) fail("more than 16 dimensions");
    } while (accept(','));
    expect(']');
    double n = 1;
    for (i64 d : t.dims) n *= double(d);
    if (n > 1e13) fail_at(start, "type " + to_string(t) + " is too large");
    return t;
  }

  AttrValue attr_value() {
    skip();
    if (at_ >= text_.size()) fail("expected an attribute's value");
    char c = text_[at_];
    if (c == '"') return quoted();
    if (c == '[') return integers();
    if (c == '-' || c == '+' || std::isdigit((unsigned char)c)) return number();
    size_t start = at_;
    std::string w = word("an attribute's value");
    if (w == "true") return true;
    if (w == "false") return false;
    if (w == "inf") return double(INFINITY);
    if (auto d = parse_dtype(w)) return *d;
    fail_at(start, "'" + w + "' is not a value");
  }

  AttrValue quoted() {
    std::string s;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) ++at_;
      s += text_[at_];
    }
    expect('"');
    return s;
  }

  AttrValue integers() {
    std::vector<i64> v;
    expect('[');
    if (accept(']')) return v;
    do v.push_back(integer());
    while (accept(','));
    expect(']');
    return v;
  }

  AttrValue number() {
    size_t end = at_ + 1;
    auto in = [](char c) { return std::isalnum((unsigned char)c) || c == '.'; };
    while (end < text_.size() &&
           (in(text_[end]) || ((text_[end] == '-' || text_[end] == '+') &&
                               (text_[end - 1] == 'e'))))
      ++end;
    std::string s(text_.substr(at_, end - at_));
    if (s == "-inf" || s == "-nan" || s == "nan") {
      at_ = end;
      return s == "-inf" ? -double(INFINITY) : double(NAN);
    }
    bool real = s.find_first_of(".eE") != std::string::npos;
    const char *b = s.data(), *e = b + s.size();
    if (!real) {
      i64 i = 0;
      auto r = std::from_chars(b, e, i);
      if (r.ec == std::errc() && r.ptr == e) {
        at_ = end;
        return i;
      }
    }
    double d = 0;
    auto r = std::from_chars(b, e, d);
    if (r.ec != std::errc() || r.ptr != e) fail("bad number '" + s + "'");
    at_ = end;
    return d;
  }

  struct Attrs {
    std::vector<std::pair<std::string, AttrValue>> list;
  };
  Attrs attributes() {
    Attrs a;
    if (!accept('{')) return a;
    if (accept('}')) return a;
    do {
      std::string name = word("an attribute's name");
      AttrValue v = true;
      if (accept('=')) v = attr_value();
      a.list.emplace_back(std::move(name), std::move(v));
    } while (accept(','));
    expect('}');
    return a;
  }

  void define(Names& names, const std::string& name, Value v) {
    if (!names.emplace(name, v).second) fail("%" + name + " is defined twice");
    bool numbered = std::isdigit((unsigned char)name[0]);
    auto& list = v.node->names;
    if (v.node->op() == Op::Arg) return;
    if (numbered) return;
    list.resize(std::max(list.size(), size_t(v.index) + 1));
    list[v.index] = name;
  }

  Value use(const Names& names) {
    size_t start = at_;
    std::string n = value_name();
    auto it = names.find(n);
    if (it == names.end()) fail_at(start, "%" + n + " is not defined");
    return it->second;
  }

  std::unique_ptr<Graph> function() {
    scope_.clear();
    if (word("'func'") != "func") fail("expected 'func'");
    expect('@');
    auto g = std::make_unique<Graph>(word("a function's name"));
    Names names;
    expect('(');
    if (!accept(')')) {
      do {
        std::string n = value_name();
        expect(':');
        define(names, n, g->add_arg(n, type()));
      } while (accept(','));
      expect(')');
    }
    expect('{');
    body(*g, names, 0);
    return g;
  }

  void body(Graph& g, Names& names, int depth) {
    for (;;) {
      skip();
      if (text_.substr(at_, 6) == "return" &&
          (at_ + 6 >= text_.size() || !is_name(text_[at_ + 6])))
        break;
      statement(g, names, depth);
    }
    at_ += 6;
    std::vector<Value> values;
    std::vector<std::string> output_names;
    if (!peek('}')) {
      do {
        if (!peek('%')) {
          output_names.push_back(word("an output's name"));
          expect('=');
        }
        values.push_back(use(names));
      } while (accept(','));
    }
    if (!output_names.empty() && output_names.size() != values.size())
      fail("either every output has a name or none");
    g.set_outputs(values, std::move(output_names));
    expect('}');
  }

  void statement(Graph& g, Names& names, int depth) {
    std::vector<std::string> results;
    size_t start = at_;
    if (peek('%')) {
      do results.push_back(value_name());
      while (accept(','));
      expect('=');
    }
    skip();
    size_t op_at = at_;
    Provenance where{scope_, "", 0};
    std::string op_text = word("an op's name");
    auto op = parse_op(op_text);
    if (!op || *op == Op::Arg || *op == Op::Return)
      fail_at(op_at, "there is no op '" + op_text + "'");
    std::vector<Value> operands;
    std::vector<std::string> inner;
    expect('(');
    if (!accept(')')) {
      do {
        if (*op == Op::Fusion) {
          inner.push_back(value_name());
          expect('=');
        }
        operands.push_back(use(names));
      } while (accept(','));
      expect(')');
    }
    Attrs attrs = attributes();
    size_t types_at = at_;
    std::vector<Type> types;
    if (accept(':')) {
      do types.push_back(type());
      while (accept(','));
    }
    std::unique_ptr<Graph> fused;
    if (*op == Op::Fusion) fused = fusion_body(operands, inner, depth);
    AttrList list;
    for (auto& [n, v] : attrs.list) list.emplace_back(n, v);
    Node* n = nullptr;
    try {
      n = g.create(*op, operands, list, nullptr, where, std::move(fused));
    } catch (const UserError& e) {
      fail_at(op_at, e.what());
    }
    if (int(results.size()) != n->num_results())
      fail_at(start, fmt::format("{} gives {} results, not {}", op_text,
                                 n->num_results(), results.size()));
    if (absl::MakeConstSpan(types) != n->types())
      fail_at(types_at,
              fmt::format("{} has the type {}", op_text,
                          n->num_results() ? to_string(n->type()) : "()"));
    for (size_t i = 0; i < results.size(); ++i)
      define(names, results[i], n->result(int(i)));
  }

  std::unique_ptr<Graph> fusion_body(const std::vector<Value>& operands,
                                     const std::vector<std::string>& inner,
                                     int depth) {
    if (depth >= kMaxDepth) fail("fusions are nested too deep");
    auto g = std::make_unique<Graph>("fusion");
    Names names;
    for (size_t i = 0; i < operands.size(); ++i)
      define(names, inner[i], g->add_arg(inner[i], operands[i].type()));
    expect('{');
    std::string outer = std::exchange(scope_, "");
    body(*g, names, depth + 1);
    scope_ = std::move(outer);
    return g;
  }

  std::string_view text_;
  std::string file_, scope_;
  size_t at_ = 0;
};

}  // namespace

Module parse_module(std::string_view text, std::string_view name) {
  return Parser(text, name).module();
}

std::unique_ptr<Graph> parse_graph(std::string_view text,
                                   std::string_view name) {
  Module m = parse_module(text, name);
  if (m.functions.size() != 1)
    user_error("{}: expected one function, found {}", name, m.functions.size());
  return std::move(m.functions[0]);
}

}  // namespace moec
