// Row ops in terms of reductions and scalar formulas.
#include <cmath>
#include <limits>

#include "codegen/cpu/row_build.h"
#include "support/error.h"

namespace moec {

int RowBuilder::column(const View& view, i64 axis) const {
  MOEC_CHECK(view[axis].dim == int(space_.size()) - 1 &&
                 view[axis].offset == 0 && view[axis].stride == 1,
             "a row op over other than the columns inside a fusion");
  return view[axis].dim;
}

// softmax, softmax_grad, layer_norm, rms_norm; and with results per row
// logsumexp, argmax.
int RowBuilder::norm(Node& n, int, const View& view) {
  const Type& t = n.operand(0).type();
  DType w = wide(n.operand(0));
  i64 cols = space_.back();
  View full = view;
  if (n.op() == Op::LogSumExp || n.op() == Op::ArgMax) {
    i64 axis = n.i("axis") < 0 ? n.i("axis") + t.rank() : n.i("axis");
    full.insert(full.begin() + axis, Axis{int(space_.size()) - 1, 0, 1});
  }
  auto in = [&](int i) { return cast(value(n.operand(i), full), w); };
  auto gain = [&](int i) {
    return cast(value(n.operand(i), {full.back()}), w);
  };
  auto mul = [&](int a, int b) { return scalar(Op::Mul, w, {a, b}); };
  auto sub = [&](int a, int b) { return scalar(Op::Sub, w, {a, b}); };
  auto sum = [&](int a) { return reduce(Reduction::Sum, a); };
  auto mean = [&](int a) {
    return mul(sum(a), constant(w, 1.0 / double(cols)));
  };
  auto exp_shifted = [&](int x, int top) {
    return scalar(Op::Exp, w, {sub(x, top)}, "nonpositive");
  };
  const double inf = std::numeric_limits<double>::infinity();
  switch (n.op()) {
    case Op::Softmax: {
      int x = in(0);
      int e = exp_shifted(x, reduce(Reduction::MaxNumber, x));
      return mul(e, scalar(Op::Div, w, {constant(w, 1), sum(e)}));
    }
    case Op::SoftmaxGrad: {
      int y = in(0), dy = in(1);
      return mul(y, sub(dy, sum(mul(y, dy))));
    }
    case Op::LogSumExp: {
      int x = in(0), top = reduce(Reduction::MaxNumber, x);
      int empty =
          scalar(Op::Compare, DType::Bool, {top, constant(w, -inf)}, "eq");
      top = scalar(Op::Select, w, {empty, constant(w, 0), top});
      int total = sum(exp_shifted(x, top));
      return scalar(Op::Add, w, {scalar(Op::Log, w, {total}), top});
    }
    case Op::ArgMax: {
      int x = value(n.operand(0), full);
      int top = reduce(Reduction::MaxNumber, x);
      Access place;
      place.strides.assign(space_.size(), 0);
      place.strides.back() = 1;
      int hit = scalar(Op::Compare, DType::Bool, {x, top}, "eq");
      int none = constant(DType::I32, double(cols - 1));
      return reduce(Reduction::Min,
                    scalar(Op::Select, DType::I32, {hit, index(place), none}));
    }
    case Op::LayerNorm:
    case Op::RmsNorm: {
      column(full, t.rank() - 1);
      int x = in(0);
      if (n.op() == Op::LayerNorm) x = sub(x, mean(x));
      int inverse = scalar(
          Op::Rsqrt, w,
          {scalar(Op::Add, w, {mean(mul(x, x)), constant(w, n.f("eps"))})});
      int y = mul(mul(x, inverse), gain(1));
      return n.op() == Op::RmsNorm ? y : scalar(Op::Add, w, {y, gain(2)});
    }
    default: MOEC_CHECK(false, "no row form of op {}", int(n.op()));
  }
}

// With g = dy gamma, c = x - mean (x itself for the RMS norm):
//   dx = inv (g - mean(g)) - c inv^3 mean(g c),  dgamma = sum dy c inv
int RowBuilder::norm_grad(Node& n, int result, const View& view) {
  bool layer = n.op() == Op::LayerNormGrad;
  DType w = wide(n.operand(0));
  auto mul = [&](int a, int b) { return scalar(Op::Mul, w, {a, b}); };
  auto sub = [&](int a, int b) { return scalar(Op::Sub, w, {a, b}); };
  int per = constant(w, 1.0 / double(space_.back()));
  auto mean = [&](int a) { return mul(reduce(Reduction::Sum, a), per); };
  column(view, n.operand(0).type().rank() - 1);
  int dy = cast(value(n.operand(2), view), w);
  if (result == 2) return dy;
  int c = cast(value(n.operand(0), view), w);
  if (layer) c = sub(c, mean(c));
  int inverse =
      scalar(Op::Rsqrt, w,
             {scalar(Op::Add, w, {mean(mul(c, c)), constant(w, n.f("eps"))})});
  if (result == 1) return mul(dy, mul(c, inverse));
  int g = mul(dy, cast(value(n.operand(1), {view.back()}), w));
  int slope = mul(mean(mul(g, c)), mul(inverse, mul(inverse, inverse)));
  int centred = layer ? sub(g, mean(g)) : g;
  return sub(mul(inverse, centred), mul(c, slope));
}

// Entry `index` of each row of `table`.
int RowBuilder::pick(Value table, const View& row, int at) {
  View full = row;
  full.push_back({int(space_.size()) - 1, 0, 1});
  if (is_leaf(table)) {
    View without = row;
    without.push_back({});
    int e = leaf(table, table.type(), without);
    Expr x = program_.exprs[e];
    x.access.index = at;
    x.access.index_stride = 1;
    x.access.index_limit = table.type().dim(-1);
    return add(std::move(x));
  }
  Access place;
  place.strides.assign(space_.size(), 0);
  place.strides.back() = 1;
  int hit = scalar(Op::Compare, DType::Bool, {index(place), at}, "eq");
  DType t = table.type().dtype;
  return reduce(
      Reduction::Sum,
      scalar(Op::Select, t, {hit, value(table, full), constant(t, 0)}));
}

int RowBuilder::loss(Node& n, int result, const View& view) {
  Value logits = n.operand(0);
  DType w = wide(logits);
  bool backward = n.op() == Op::CrossEntropyGrad;
  View row = view;
  if (backward) row.pop_back();
  View full = row;
  full.push_back({int(space_.size()) - 1, 0, 1});
  int x = cast(value(logits, full), w);
  int target = cast(value(n.operand(1), row), DType::I32);
  int zero = constant(DType::I32, 0);
  int counts = scalar(Op::Compare, DType::Bool, {target, zero}, "ge");
  auto sub = [&](int a, int b) { return scalar(Op::Sub, w, {a, b}); };
  if (backward) {
    int lse = cast(value(n.operand(2), row), w);
    int dloss = cast(value(n.operand(3), row), w);
    dloss = scalar(Op::Select, w, {counts, dloss, constant(w, 0)});
    Access place;
    place.strides.assign(space_.size(), 0);
    place.strides.back() = 1;
    int hit = scalar(Op::Compare, DType::Bool, {index(place), target}, "eq");
    int p = scalar(Op::Exp, w, {sub(x, lse)}, "nonpositive");
    int q = scalar(Op::Select, w, {hit, sub(p, constant(w, 1)), p});
    return scalar(Op::Mul, w, {q, dloss});
  }
  int top = reduce(Reduction::MaxNumber, x);
  int e = scalar(Op::Exp, w, {sub(x, top)}, "nonpositive");
  int lse = scalar(Op::Add, w,
                   {scalar(Op::Log, w, {reduce(Reduction::Sum, e)}), top});
  if (result == 1) return lse;
  int chosen = cast(pick(logits, row, target), w);
  return scalar(Op::Select, w, {counts, sub(lse, chosen), constant(w, 0)});
}

int RowBuilder::random(Node& n, const View& view) {
  const Type& t = n.type();
  Value key = n.op() == Op::Dropout ? n.operand(1) : n.operand(0);
  MOEC_CHECK(is_leaf(key), "a key computed inside a fusion");
  Expr e;
  e.kind = ExprKind::Random;
  e.access = access(-1, Type{DType::U32, t.dims}, view);
  e.access.buffer = program_.exprs[leaf(key, key.type(), {{}})].access.buffer;
  e.number = double(n.i("stream"));
  e.attr = n.op() == Op::RandomUniform  ? "uniform"
           : n.op() == Op::RandomNormal ? "normal"
                                        : "word";
  e.dtype = n.op() == Op::Dropout ? DType::U32 : DType::F32;
  if (n.op() != Op::Dropout) return add(std::move(e));
  // Kept iff uniform_from_word(word) >= p: its top 23 bits k satisfy
  // (2k + 1) / 2^24 >= p.
  double p = n.f("p");
  DType w = wide(n.operand(0));
  double least = std::max(0.0, std::ceil((p * 0x1p24 - 1) / 2));
  int word = add(std::move(e));
  int keep = scalar(Op::Compare, DType::Bool,
                    {word, constant(DType::U32, least * 512)}, "ge");
  int x = cast(value(n.operand(0), view), w);
  int scaled = scalar(Op::Mul, w, {x, constant(w, 1 / (1 - p))});
  return scalar(Op::Select, w, {keep, scaled, constant(w, 0)});
}

// Loads through an index.
int RowBuilder::indexed(Node& n, const View& view) {
  Value table = n.operand(0), at = n.operand(1);
  MOEC_CHECK(is_leaf(table), "an indexed value computed inside a fusion");
  const Type& t = table.type();
  Dims strides = row_major_strides(t.dims);
  View rest;
  int where = 0;
  i64 stride = 0, limit = 0;
  if (n.op() == Op::TakeAlong) {
    rest.assign(view.begin(), view.end() - 1);
    rest.push_back({});
    where = value(at, view);
    stride = 1;
    limit = t.dim(-1);
  } else if (n.op() == Op::DynamicSlice) {
    i64 axis = n.i("axis") < 0 ? n.i("axis") + t.rank() : n.i("axis");
    i64 last = t.dims[axis] - n.i("size");
    rest = view;
    where = value(at, {});
    DType i = dtype(where);
    where = scalar(Op::Maximum, i, {where, constant(i, 0)});
    where = scalar(Op::Minimum, i, {where, constant(i, double(last))});
    stride = strides[axis];
    limit = last + 1;
  } else {
    i64 rank = at.type().rank();
    where = value(at, View(view.begin(), view.begin() + rank));
    rest.push_back({});
    rest.insert(rest.end(), view.begin() + rank, view.end());
    stride = strides[0];
    limit = t.dims[0];
  }
  Expr e = program_.exprs[leaf(table, t, rest)];
  e.access.index = where;
  e.access.index_stride = stride;
  e.access.index_limit = limit;
  return add(std::move(e));
}

}  // namespace moec
