#include "models/moe/config.h"

#include <fmt/format.h>

#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include <algorithm>
#include <numeric>

#include "models/moe/config_fields.h"
#include "support/error.h"
#include "support/file.h"

namespace moec::moe {
namespace {

// Edit distance, for suggestions.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t(0));
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      size_t change = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

std::string nearest(std::string_view wrong,
                    const std::vector<std::string>& known) {
  auto at = std::min_element(known.begin(), known.end(), [&](auto& a, auto& b) {
    return distance(wrong, a) < distance(wrong, b);
  });
  return *at;
}

template <class List>
std::string join(const List& list) {
  std::string s;
  for (auto& x : list) s += fmt::format("{}\"{}\"", s.empty() ? "" : ", ", x);
  return s;
}

std::string shown(const toml::node& n) {
  std::ostringstream s;
  n.visit([&](auto& v) { s << v; });
  return s.str();
}

// One setting: where it stands, for errors, and its value.
struct Setting {
  std::string where, name;  // "a.toml:3", "model.vocab"
  const toml::node& value;

  [[noreturn]] void fail(const std::string& why) const {
    usage_error("{}: {} = {}: {}", where, name, shown(value), why);
  }
};

struct Assign {
  const Setting& s;
  const Field& f;

  void range(double v) const {
    if (!(v >= f.min && v <= f.max))
      s.fail(f.max >= 1e9 ? fmt::format("must be at least {}", f.min)
                          : fmt::format("must be from {} to {}", f.min, f.max));
  }
  void operator()(i64* p) const {
    auto v = s.value.value_exact<int64_t>();
    if (!v) s.fail("must be an integer");
    range(double(*v));
    *p = *v;
  }
  void operator()(double* p) const {
    if (!s.value.is_number()) s.fail("must be a number");
    double v = *s.value.value<double>();
    range(v);
    *p = v;
  }
  void operator()(bool* p) const {
    auto v = s.value.value_exact<bool>();
    if (!v) s.fail("must be true or false");
    *p = *v;
  }
  void operator()(std::string* p) const {
    auto v = s.value.value_exact<std::string>();
    // A flag or text: off is written as a bool too.
    if (auto b = s.value.value_exact<bool>(); b && !*b && f.key == "qk_norm")
      v = "none";
    if (auto b = s.value.value_exact<bool>(); b && f.key == "fuse")
      v = *b ? "on" : "off";
    if (!v) s.fail("must be a string");
    if (!f.allowed.empty() &&
        std::find(f.allowed.begin(), f.allowed.end(), *v) == f.allowed.end())
      s.fail("must be one of " + join(f.allowed));
    *p = *v;
  }
  void operator()(std::vector<i64>* p) const {
    auto* a = s.value.as_array();
    if (!a) s.fail("must be a list of integers");
    p->clear();
    for (auto& e : *a) {
      auto v = e.value_exact<int64_t>();
      if (!v) s.fail("must be a list of integers");
      range(double(*v));
      p->push_back(*v);
    }
  }
  void operator()(std::vector<std::string>* p) const {
    p->clear();
    auto add = [&](const toml::node& e) {
      auto v = e.value_exact<std::string>();
      if (!v) s.fail("must be a string or a list of strings");
      if (!v->empty()) p->push_back(*v);
    };
    auto* a = s.value.as_array();
    if (!a) return add(s.value);
    for (auto& e : *a) add(e);
  }
  void operator()(Biases* p) const {
    *p = {};
    if (auto b = s.value.value_exact<bool>()) {
      if (*b) *p = {true, true, true, false, true};
      return;
    }
    auto* a = s.value.as_array();
    if (!a) s.fail("must be true, false or a list");
    for (auto& e : *a) {
      auto v = e.value_exact<std::string>().value_or("");
      bool* flag = v == "qkv"        ? &p->qkv
                   : v == "attn_out" ? &p->attn_out
                   : v == "ffn"      ? &p->ffn
                   : v == "router"   ? &p->router
                   : v == "head"     ? &p->head
                                     : nullptr;
      if (!flag)
        s.fail(
            "entries are \"qkv\", \"attn_out\", \"ffn\", \"router\", "
            "\"head\"");
      *flag = true;
    }
  }
  void operator()(std::map<std::string, i64>* p) const {
    auto* t = s.value.as_table();
    if (!t) s.fail("must be a table such as {data=2, expert=2}");
    p->clear();
    for (auto&& [k, e] : *t) {
      auto v = e.value_exact<int64_t>();
      if (!v) s.fail("sizes must be integers");
      range(double(*v));
      (*p)[std::string(k.str())] = *v;
    }
  }
  void operator()(std::map<std::string, std::string>* p) const {
    auto* t = s.value.as_table();
    if (!t) s.fail("must be a table such as {batch=\"data\"}");
    p->clear();
    for (auto&& [k, e] : *t) {
      auto v = e.value_exact<std::string>();
      if (!v) s.fail("mesh axes must be strings");
      (*p)[std::string(k.str())] = *v;
    }
  }
};

struct Reader {
  std::vector<Field> fields;
  std::vector<std::string> seen;

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (auto& f : fields)
      all.push_back(fmt::format("{}.{}", f.section, f.key));
    return all;
  }

  void set(const std::string& where, const std::string& name,
           const toml::node& value) {
    for (auto& f : fields)
      if (fmt::format("{}.{}", f.section, f.key) == name) {
        Setting s{where, name, value};
        std::visit(Assign{s, f}, f.target);
        seen.push_back(name);
        return;
      }
    usage_error("{}: unknown key {}; did you mean {}?", where, name,
                nearest(name, names()));
  }

  void file(const toml::table& root, std::string_view file) {
    for (auto&& [section, node] : root) {
      auto line = section.source().begin.line;
      auto where = fmt::format("{}:{}", file, line);
      auto* table = node.as_table();
      bool known = std::any_of(
          fields.begin(), fields.end(),
          [&, s = section.str()](auto& f) { return f.section == s; });
      if (!known || !table) {
        std::vector<std::string> all = {"model", "moe",  "data",
                                        "train", "mesh", "compile"};
        if (table)
          usage_error("{}: unknown section [{}]; did you mean [{}]?", where,
                      section.str(), nearest(section.str(), all));
        usage_error("{}: {} stands outside a section; sections are [{}]", where,
                    section.str(), fmt::join(all, "] ["));
      }
      for (auto&& [key, value] : *table)
        set(fmt::format("{}:{}", file, key.source().begin.line),
            fmt::format("{}.{}", section.str(), key.str()), value);
    }
  }

  void override_with(const std::string& text) {
    auto eq = text.find('=');
    if (eq == std::string::npos || eq == 0)
      usage_error("--set {}: expected key=value, such as train.lr=1e-3", text);
    auto key = text.substr(0, eq), value = text.substr(eq + 1);
    toml::table t;
    try {
      t = toml::parse("v = " + value);
      if (t.size() != 1) t.clear();
    } catch (const toml::parse_error&) {
    }
    if (t.empty()) t.insert("v", value);
    set("--set", key, *t.get("v"));
  }

  bool has(std::string_view name) const {
    return std::find(seen.begin(), seen.end(), name) != seen.end();
  }
};

template <class... A>
[[noreturn]] void fail_at(std::string_view file, fmt::format_string<A...> f,
                          A&&... a) {
  usage_error("{}: {}", file, fmt::format(f, std::forward<A>(a)...));
}

void resolve(Config& c, const Reader& r, std::string_view file) {
  auto& m = c.model;
  for (auto need : {"model.d_model", "model.n_layers", "model.n_heads",
                    "model.d_ff", "train.batch", "train.seq"})
    if (!r.has(need)) usage_error("{}: {} is missing", file, need);
  if (!m.n_kv_heads) m.n_kv_heads = m.n_heads;
  if (m.n_heads % m.n_kv_heads)
    fail_at(file,
            "model.n_heads = {} is not a multiple of model.n_kv_heads = {}",
            m.n_heads, m.n_kv_heads);
  if (!m.d_head) {
    if (m.d_model % m.n_heads)
      fail_at(file,
              "model.d_model = {} is not a multiple of model.n_heads = {}; set "
              "model.d_head",
              m.d_model, m.n_heads);
    m.d_head = m.d_model / m.n_heads;
  }
  if (!m.d_value) m.d_value = m.d_head;
  if (m.pos == "rope" && m.d_head % 2)
    fail_at(file,
            "model.d_head = {} is odd, and model.pos = \"rope\" turns pairs",
            m.d_head);
  if (m.dense_ffn.empty()) m.dense_ffn = m.ffn;
  if (!m.d_ff_dense) m.d_ff_dense = m.d_ff;
  for (i64 l : m.moe_layers)
    if (l >= m.n_layers)
      fail_at(file, "model.moe_layers has {}, and the last layer is {}", l,
              m.n_layers - 1);
  if (c.num_moe_layers()) {
    if (c.moe.experts && !c.moe.top_k) fail_at(file, "moe.top_k is missing");
    if (c.moe.top_k > c.moe.experts)
      fail_at(file, "moe.top_k = {} is more than moe.experts = {}", c.moe.top_k,
              c.moe.experts);
  }
  if (m.tied && m.bias.head)
    fail_at(file, "model.tied = true has no head of its own for bias \"head\"");
  if (c.train.min_lr > c.train.lr)
    fail_at(file, "train.min_lr = {} is more than train.lr = {}",
            c.train.min_lr, c.train.lr);
}

}  // namespace

bool Config::is_moe_layer(i64 layer) const {
  if (moe.experts == 0) return false;
  auto& list = model.moe_layers;
  if (!list.empty())
    return std::find(list.begin(), list.end(), layer) != list.end();
  return layer % model.moe_every == 0;
}

i64 Config::num_moe_layers() const {
  i64 n = 0;
  for (i64 l = 0; l < model.n_layers; ++l) n += is_moe_layer(l);
  return n;
}

Config parse_config(std::string_view text, std::string_view name,
                    const std::vector<std::string>& overrides) {
  toml::table root;
  try {
    root = toml::parse(text, name);
  } catch (const toml::parse_error& e) {
    auto at = e.source().begin;
    usage_error("{}:{}:{}: {}", name, at.line, at.column, e.description());
  }
  Config c;
  Reader r{fields(c), {}};
  r.file(root, name);
  for (auto& o : overrides) r.override_with(o);
  resolve(c, r, name);
  return c;
}

Config load_config(const std::filesystem::path& file,
                   const std::vector<std::string>& overrides) {
  std::string text;
  try {
    text = read_file(file);
  } catch (const UserError& e) {
    throw UsageError(e.what());
  }
  return parse_config(text, file.string(), overrides);
}

}  // namespace moec::moe
