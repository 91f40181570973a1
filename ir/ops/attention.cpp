// Rotary positions, the causal mask and attention.
#include <cmath>
#include <limits>

#include "ir/ops/common.h"
#include "ir/rope.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

// ---- rope ------------------------------------------------------------------

Types infer_rope(const InferArgs& a) {
  expect_float(a, 0);
  expect_min_rank(a, 0, 2);
  const Type& x = a.in[0];
  i64 axis = axis_attr(a);
  if (axis == x.rank() - 1)
    user_error("rope: axis={} is the last of {}, which is rotated",
               a.node.i("axis"), to_string(x));
  if (x.dim(-1) % 2 != 0)
    user_error("rope: the last dimension of {} should be even", to_string(x));
  if (a.in.size() > 1) {
    expect_dtype(a, 1, DType::I32);
    bool by_row = a.in[1].rank() == 2;
    if (by_row && axis == 0)
      user_error("rope: positions {} by row need x with rows, not {}",
                 to_string(a.in[1]), to_string(x));
    Dims shared = {x.dims[axis]}, rows = {x.dims[0], x.dims[axis]};
    expect_dims(a, 1, by_row ? rows : shared);
  }
  return {x};
}

void eval_rope(const EvalArgs& a) {
  const Type& t = a.in[0]->type;
  i64 width = t.dim(-1), half = width / 2;
  if (t.numel() == 0) return;
  AxisView v(t, axis_of(a.node));
  i64 per_position = v.inner / width, rows_per_batch = v.outer / t.dims[0];
  bool given = a.in.size() > 1;
  bool by_row = given && a.in[1]->type.rank() == 2;
  double sign = a.node.b("inverse") ? -1 : 1;
  std::vector<float> frequency;
  for (i64 i = 0; i < half; ++i)
    frequency.push_back(rope_frequency(a.node.f("theta"), i, width));
  const double* x = a.in[0]->data.data();
  double* y = a.out[0].data.data();
  for (i64 r = 0; r < t.numel() / width; ++r, x += width, y += width) {
    i64 step = r / per_position % v.n;
    double at = double(step);
    if (given) {
      i64 batch = by_row ? r / per_position / v.n / rows_per_batch : 0;
      at = a.in[1]->data[batch * v.n + step];
    }
    for (i64 i = 0; i < half; ++i) {
      // The angle is rounded to f32 as in the compiled code.
      auto angle = double(float(at) * frequency[i]);
      double c = std::cos(angle), d = sign * std::sin(angle);
      y[i] = x[i] * c - x[i + half] * d;
      y[i + half] = x[i + half] * c + x[i] * d;
    }
  }
}

Values vjp_rope(Builder& b, Node& n, Gradients dy) {
  Values in(n.operands().begin(), n.operands().end());
  in[0] = dy[0];
  Values g(in.size());
  g[0] = b.node(Op::Rope, in,
                {{"theta", n.f("theta")},
                 {"inverse", !n.b("inverse")},
                 {"axis", n.i("axis")}})
             ->result();
  return g;
}

// ---- causal mask -----------------------------------------------------------

Types infer_mask(const InferArgs& a) {
  expect_float(a, 0);
  expect_min_rank(a, 0, 2);
  if (a.in.size() > 1) {
    expect_dtype(a, 1, DType::I32);
    expect_min_rank(a, 0, 3);
    expect_dims(a, 1, {a.in[0].dims[0]});
  } else if (a.in[0].dim(-2) > a.in[0].dim(-1)) {
    user_error(
        "causal_mask: {} has more queries than keys; the first would "
        "see none",
        to_string(a.in[0]));
  }
  if (a.node.i("window") < 0) user_error("causal_mask: window is negative");
  return {a.in[0]};
}

void eval_mask(const EvalArgs& a) {
  const Type& t = a.in[0]->type;
  i64 queries = t.dim(-2), keys = t.dim(-1), window = a.node.i("window");
  i64 per_row = t.numel() / std::max<i64>(t.dims[0], 1);
  for (i64 i = 0; i < t.numel(); ++i) {
    i64 start =
        a.in.size() > 1 ? i64(a.in[1]->data[i / per_row]) : keys - queries;
    i64 distance = i / keys % queries + start - i % keys;
    bool seen = distance >= 0 && (window == 0 || distance < window);
    a.out[0].data[i] =
        seen ? a.in[0]->data[i] : -std::numeric_limits<double>::infinity();
  }
}

// bool[Tq,Tk], or [B,1,..,Tq,Tk] with starts by row: which keys each query
// sees.
Value seen_keys(Builder& b, const Node& n) {
  const Type& t = n.type();
  i64 queries = t.dim(-2), keys = t.dim(-1), window = n.i("window");
  auto index = [&](i64 axis) {
    return b.op(Op::Iota, {},
                {{"shape", std::vector<i64>{queries, keys}}, {"axis", axis}});
  };
  Value at = index(0);
  if (n.num_operands() > 1) {
    Dims rows(size_t(t.rank()), 1);
    rows[0] = t.dims[0];
    at = b.add(at, b.reshape(n.operand(1), rows));
  } else {
    at = b.add(at, double(keys - queries));
  }
  Value distance = b.sub(at, index(1));
  Value seen = b.compare(distance, b.scalar(0, DType::I32), "ge");
  if (window == 0) return seen;
  return b.op(
      Op::And,
      {seen, b.compare(distance, b.scalar(double(window), DType::I32), "lt")});
}

Value where_seen(Builder& b, const Node& n, Value x, double otherwise) {
  return b.select(seen_keys(b, n), x, b.scalar(otherwise, n.type().dtype));
}

// ---- attention -------------------------------------------------------------

bool heads_second(const Node& n) { return n.s("layout") == "bthd"; }

// The dimensions as [B,H,T,D] whatever the layout, and back.
Dims heads_first(const Node& n, Dims d) {
  if (heads_second(n)) std::swap(d[1], d[2]);
  return d;
}

// q[B,H,T,D], k[B,Hkv,Tk,D], v[B,Hkv,Tk,Dv] at operands 0..2 in the layout,
// an optional key at operand `key`.
void expect_heads(const InferArgs& a, int key) {
  expect_float(a, 0);
  for (int i : {0, 1, 2}) {
    expect_rank(a, i, 4);
    expect_dtype_of(a, i, 0);
  }
  auto op = op_of(a);
  const std::string& layout = a.node.s("layout");
  if (layout != "bhtd" && layout != "bthd")
    user_error("{}: layout \"{}\" is neither \"bhtd\" nor \"bthd\"", op,
               layout);
  Dims q = heads_first(a.node, a.in[0].dims);
  Dims k = heads_first(a.node, a.in[1].dims);
  Dims v = heads_first(a.node, a.in[2].dims);
  if (k[0] != q[0] || k[3] != q[3])
    user_error("{}: {} does not fit {}: batch and head width should be equal",
               op, describe(a, 1), describe(a, 0));
  if (k[1] == 0 || q[1] % k[1] != 0)
    user_error("{}: the {} heads of {} are no multiple of the {} of {}", op,
               q[1], describe(a, 0), k[1], describe(a, 1));
  if (v[0] != k[0] || v[1] != k[1] || v[2] != k[2])
    user_error("{}: {} and {} should differ in the last dimension only", op,
               describe(a, 1), describe(a, 2));
  bool causal = a.node.b("causal");
  if (causal && q[2] > k[2])
    user_error(
        "{}: {} has more queries than {} has keys; the first would "
        "see none",
        op, describe(a, 0), describe(a, 1));
  i64 window = a.node.i("window");
  if (window < 0 || (window > 0 && !causal))
    user_error("{}: window={} should be 0, or positive and causal", op, window);
  double p = a.node.f("dropout");
  if (!(p >= 0 && p < 1))
    user_error("{}: dropout={} should be in [0, 1)", op, p);
  bool has_key = int(a.in.size()) > key;
  if (p > 0 && !has_key) user_error("{}: dropout needs a key operand", op);
  if (has_key) expect_key(a, key);
}

Types infer_attention(const InferArgs& a) {
  expect_heads(a, 3);
  Type o = a.in[0];
  o.dims[3] = a.in[2].dims[3];
  Dims rows = heads_first(a.node, o.dims);
  rows.pop_back();
  return {o, Type{stat_dtype(o.dtype), rows}};
}

// q, k, v, o, lse, do, optional key
Types infer_attention_grad(const InferArgs& a) {
  expect_heads(a, 6);
  Dims o = a.in[0].dims;
  o[3] = a.in[2].dims[3];
  for (int i : {3, 5}) {
    expect_dtype_of(a, i, 0);
    expect_dims(a, i, o);
  }
  Dims rows = heads_first(a.node, o);
  rows.pop_back();
  expect_dtype(a, 4, stat_dtype(a.in[0].dtype));
  expect_dims(a, 4, rows);
  return {a.in[0], a.in[1], a.in[2]};
}

// The primitive graph of one attention node, heads first. Query heads that
// share a kv head are rows of one matrix: [B,H,T,x] <-> [B,Hkv,G T,x].
struct AttentionGraph {
  Builder& b;
  Node& n;
  Value q, k, v, key;

  AttentionGraph(Builder& builder, Node& node, int key_operand)
      : b(builder),
        n(node),
        q(flip(node.operand(0))),
        k(flip(node.operand(1))),
        v(flip(node.operand(2))) {
    if (n.num_operands() > key_operand) key = n.operand(key_operand);
  }

  // From the node's layout to heads first, and back.
  Value flip(Value x) const {
    return heads_second(n) ? b.transpose(x, {0, 2, 1, 3}) : x;
  }
  Value group(Value x) const {
    const Dims& d = x.type().dims;
    i64 heads = k.type().dims[1];
    if (heads == d[1]) return x;
    return b.reshape(x, {d[0], heads, d[1] / heads * d[2], d[3]});
  }
  Value ungroup(Value x) const {
    const Dims& d = q.type().dims;
    return b.reshape(x, {d[0], d[1], d[2], x.type().dims[3]});
  }
  // scale q k^T, masked: [B,H,T,Tk]
  Value scores() const {
    Value s = ungroup(b.matmul(group(q), k, false, true, n.f("scale")));
    if (!n.b("causal")) return s;
    return b.op(Op::CausalMask, {s}, {{"window", n.i("window")}});
  }
  Value dropout(Value p) const {
    if (n.f("dropout") == 0) return p;
    return b.op(Op::Dropout, {p, key},
                {{"p", n.f("dropout")}, {"stream", n.i("stream")}});
  }
  Value stats_column(Value rows) const {
    Dims d = rows.type().dims;
    d.push_back(1);
    return b.reshape(rows, d);
  }
  // e^(scores - lse), the softmax from its saved statistics, in lse's dtype.
  Value probabilities(Value lse) const {
    Value s = b.cast(scores(), lse.type().dtype);
    return b.exp(b.sub(s, stats_column(lse)));
  }
  // dq and dk from the gradient of the scores, in the node's layout.
  Value dq(Value ds) const {
    return flip(ungroup(b.matmul(group(ds), k, false, false, n.f("scale"))));
  }
  Value dk(Value ds) const {
    return flip(b.matmul(group(ds), group(q), true, false, n.f("scale")));
  }
};

Values decompose_attention(Builder& b, Node& n) {
  AttentionGraph g(b, n, 3);
  Value s = g.scores();
  DType stat = n.type(1).dtype;
  Value lse = b.op(Op::LogSumExp, {b.cast(s, stat)}, {{"axis", i64(-1)}});
  Value p = g.dropout(b.softmax(s));
  return {g.flip(g.ungroup(b.matmul(g.group(p), g.v))), lse};
}

// With p the softmax, m the dropout mask and delta = sum(do o) per row:
//   dv = (p m)^T do,  dp = m (do v^T),  ds = p (dp - delta)
Values decompose_attention_grad(Builder& b, Node& n) {
  AttentionGraph g(b, n, 6);
  Value o = g.flip(n.operand(3)), lse = n.operand(4), dy = g.flip(n.operand(5));
  DType t = dy.type().dtype, stat = lse.type().dtype;
  Value p = g.probabilities(lse);
  Value dropped = b.cast(g.dropout(p), t);
  Value dv = g.flip(b.matmul(g.group(dropped), g.group(dy), true, false));
  Value dp = g.ungroup(b.matmul(g.group(dy), g.v, false, true));
  Value delta = b.sum(b.mul(b.cast(dy, stat), b.cast(o, stat)), {-1}, true);
  Value ds = b.mul(p, b.sub(g.dropout(b.cast(dp, stat)), delta));
  ds = b.cast(ds, t);
  return {g.dq(ds), g.dk(ds), dv};
}

Values vjp_attention(Builder& b, Node& n, Gradients dy) {
  Values g(size_t(n.num_operands()));
  if (dy[0]) {
    Values in = {n.operand(0), n.operand(1), n.operand(2),
                 n.result(0),  n.result(1),  dy[0]};
    if (n.num_operands() > 3) in.push_back(n.operand(3));
    Node* grad = b.node(Op::AttentionGrad, in, n.attr_list());
    for (int i : {0, 1, 2}) g[i] = grad->result(i);
  }
  if (dy[1]) {  // d lse / d scores is the softmax
    AttentionGraph graph(b, n, 3);
    Value p = graph.probabilities(n.result(1));
    Value ds = b.cast(b.mul(p, graph.stats_column(dy[1])), n.type().dtype);
    g[0] = add_some(b, g[0], graph.dq(ds));
    g[1] = add_some(b, g[1], graph.dk(ds));
  }
  return g;
}

Cost attention_cost(const Node& n) {
  Dims q = heads_first(n, n.operand(0).type().dims);
  Dims v = heads_first(n, n.operand(2).type().dims);
  double pairs = double(q[0] * q[1] * q[2]) * double(v[2]);
  if (n.b("causal")) pairs /= 2;
  double flops = 2 * pairs * double(q[3] + v[3]);
  return io_cost(n, n.op() == Op::Attention ? flops : 2.5 * flops);
}

// ---- attention over a cache ------------------------------------------------

// q[B,T,H,D], k[B,L,Hkv,D], v[B,L,Hkv,Dv], start i32[B]
Types infer_cached_attention(const InferArgs& a) {
  expect_float(a, 0);
  for (int i : {0, 1, 2}) {
    expect_rank(a, i, 4);
    expect_dtype_of(a, i, 0);
  }
  const Dims &q = a.in[0].dims, &k = a.in[1].dims, &v = a.in[2].dims;
  if (k[0] != q[0] || k[3] != q[3])
    user_error(
        "cached_attention: {} does not fit {}: batch and head width should be "
        "equal",
        describe(a, 1), describe(a, 0));
  if (k[2] == 0 || q[2] % k[2] != 0)
    user_error(
        "cached_attention: the {} heads of {} are no multiple of the {} of {}",
        q[2], describe(a, 0), k[2], describe(a, 1));
  if (v[0] != k[0] || v[1] != k[1] || v[2] != k[2])
    user_error(
        "cached_attention: {} and {} should differ in the last dimension only",
        describe(a, 1), describe(a, 2));
  expect_dtype(a, 3, DType::I32);
  expect_dims(a, 3, {q[0]});
  if (a.node.i("window") < 0)
    user_error("cached_attention: window is negative");
  return {Type{a.in[0].dtype, {q[0], q[1], q[2], v[3]}}};
}

Values decompose_cached_attention(Builder& b, Node& n) {
  auto flip = [&](Value x) { return b.transpose(x, {0, 2, 1, 3}); };
  Value q = flip(n.operand(0)), k = flip(n.operand(1)), v = flip(n.operand(2));
  const Dims d = q.type().dims, kd = k.type().dims;
  Dims grouped = {d[0], kd[1], d[1] / kd[1] * d[2], d[3]};
  Value s = b.matmul(b.reshape(q, grouped), k, false, true, n.f("scale"));
  s = b.reshape(s, {d[0], d[1], d[2], kd[2]});
  s = b.op(Op::CausalMask, {s, n.operand(3)}, {{"window", n.i("window")}});
  grouped[3] = kd[2];
  Value o = b.matmul(b.reshape(b.softmax(s), grouped), v);
  return {flip(b.reshape(o, {d[0], d[1], d[2], v.type().dims[3]}))};
}

Cost cached_attention_cost(const Node& n) {
  const Dims &q = n.operand(0).type().dims, &v = n.operand(2).type().dims;
  double pairs = double(q[0] * q[1] * q[2]) * double(v[1]);
  return io_cost(n, 2 * pairs * double(q[3] + v[3]));
}

const AttrDef kRopeAttrs[] = {
    optional("theta", 10000.0, "base of the frequencies"),
    optional("inverse", false, "rotate backwards"),
    optional("axis", i64(-2), "the axis of positions")};
const AttrDef kMaskAttrs[] = {
    optional("window", i64(0), "keys seen, itself included; 0 is all")};
const AttrDef kCachedAttentionAttrs[] = {
    optional("window", i64(0), "keys seen, itself included; 0 is all"),
    optional("scale", 1.0, "factor on q k^T")};
const AttrDef kAttentionAttrs[] = {
    optional("causal", false, "query i sees keys j <= i + Tk - T"),
    optional("window", i64(0), "keys seen, itself included; 0 is all"),
    optional("scale", 1.0, "factor on q k^T"),
    optional("dropout", 0.0, "share of probabilities dropped, in [0, 1)"),
    optional("stream", i64(0), "which of the key's sequences"),
    optional("layout", std::string("bhtd"),
             "\"bhtd\", or \"bthd\": heads after positions")};

}  // namespace

const OpDef kRope = {
    .name = "rope",
    .summary =
        "Rotates the pairs (x[i], x[i+D/2]) of the last axis by "
        "position * theta^(-2i/D) (Su et al., 2021), in f32; the "
        "position is the index on `axis`, or given as [T] or [B,T].",
    .min_inputs = 1,
    .max_inputs = 2,
    .attrs = kRopeAttrs,
    .operand_names = {"x", "positions"},
    .infer = infer_rope,
    .vjp = vjp_rope,
    .eval = eval_rope,
    .cost =
        [](const Node& n) {
          return io_cost(n, 3.0 * double(n.type().numel()));
        },
};

const OpDef kCausalMask = {
    .name = "causal_mask",
    .summary =
        "Scores s[B,...,Tq,Tk] where 0 <= i + start - j < window, else -inf; "
        "start[B] is the key at which each row's first query stands, Tk - Tq "
        "if not given.",
    .min_inputs = 1,
    .max_inputs = 2,
    .attrs = kMaskAttrs,
    .operand_names = {"s", "start"},
    .infer = infer_mask,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          Values g(size_t(n.num_operands()));
          g[0] = where_seen(b, n, dy[0], 0);
          return g;
        },
    .decompose =
        [](Builder& b, Node& n) {
          double none = -std::numeric_limits<double>::infinity();
          return Values{where_seen(b, n, n.operand(0), none)};
        },
    .eval = eval_mask,
};

const OpDef kAttention = {
    .name = "attention",
    .summary =
        "softmax(scale q k^T) v, masked and with dropout if asked, and "
        "the logsumexp of the scores: q[B,H,T,D], k[B,Hkv,Tk,D], "
        "v[B,Hkv,Tk,Dv]; query head h uses kv head h / (H/Hkv).",
    .min_inputs = 3,
    .max_inputs = 4,
    .traits = kFused,
    .attrs = kAttentionAttrs,
    .operand_names = {"q", "k", "v", "key"},
    .infer = infer_attention,
    .vjp = vjp_attention,
    .decompose = decompose_attention,
    .cost = attention_cost,
};

const OpDef kAttentionGrad = {
    .name = "attention_grad",
    .summary = "dq, dk and dv of attention (Dao et al., 2022).",
    .min_inputs = 6,
    .max_inputs = 7,
    .traits = kFused,
    .attrs = kAttentionAttrs,
    .operand_names = {"q", "k", "v", "o", "lse", "do", "key"},
    .infer = infer_attention_grad,
    .decompose = decompose_attention_grad,
    .cost = attention_cost,
};

const OpDef kCachedAttention = {
    .name = "cached_attention",
    .summary =
        "softmax(scale q k^T) v over a cache, for generation: query t of row "
        "b stands at key start[b] + t and sees it and the keys before; "
        "q[B,T,H,D], k[B,L,Hkv,D], v[B,L,Hkv,Dv].",
    .min_inputs = 4,
    .max_inputs = 4,
    .traits = kFused,
    .attrs = kCachedAttentionAttrs,
    .operand_names = {"q", "k", "v", "start"},
    .infer = infer_cached_attention,
    .decompose = decompose_cached_attention,
    .cost = cached_attention_cost,
};

}  // namespace moec::ops
