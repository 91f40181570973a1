#include <algorithm>
#include <bit>
#include <limits>

#include "codegen/cpu/philox.h"
#include "codegen/cpu/row_emitter.h"
#include "codegen/cpu/scalar_emit.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {

DType register_dtype(DType t) {
  return t == DType::BF16 || t == DType::F16 ? DType::F32 : t;
}

V emit_identity(Emit& e, Reduction r, DType t) {
  if (r == Reduction::Sum) return emit_constant(e, t, 0);
  bool low = r != Reduction::Min;
  switch (t) {
    case DType::I32: return e.i32(low ? INT32_MIN : INT32_MAX);
    case DType::U32: return e.i32(low ? 0 : 0xffffffff);
    case DType::I64: return e.i(low ? INT64_MIN : INT64_MAX);
    case DType::Bool: return e.i1(!low);
    default: {
      double inf = std::numeric_limits<double>::infinity();
      return emit_constant(e, t, low ? -inf : inf);
    }
  }
}

V emit_combine(Emit& e, Reduction r, DType t, V acc, V x) {
  switch (r) {
    case Reduction::Sum: return e.add(acc, x);
    case Reduction::MaxNumber: return e.max(x, acc);
    case Reduction::Max: return emit_scalar(e, Op::Maximum, "", t, t, {acc, x});
    case Reduction::Min: return emit_scalar(e, Op::Minimum, "", t, t, {acc, x});
  }
  return acc;
}

V emit_horizontal(Emit& e, Reduction r, DType t, V v) {
  for (int w = e.width(v); w > 1; w /= 2) {
    if (w == 2) return emit_combine(e, r, t, e.extract(v, 0), e.extract(v, 1));
    v = emit_combine(e, r, t, e.slice(v, 0, w / 2), e.slice(v, w / 2, w / 2));
  }
  return v;
}

RowEvaluator::RowEvaluator(Emit& e, const RowProgram& p) : e_(e), p_(p) {
  i64 cols = std::max<i64>(p.cols(), 4);
  width_ = int(std::min<i64>(e.lanes(), i64(std::bit_ceil(uint64_t(cols)))));
  double cost = 0;
  bool random = false;
  for (const Expr& x : p.exprs) {
    if (!x.full) continue;
    cost += x.kind == ExprKind::Scalar ? scalar_cost(x.op) : 1;
    if (x.kind != ExprKind::Random) continue;
    random = true;
    const auto& s = x.access.strides;
    aligned_random_ =
        width_ == 16 && s.back() == 1 && x.access.offset % 64 == 0;
    for (size_t k = 0; k + 1 < s.size(); ++k)
      aligned_random_ = aligned_random_ && s[k] % 64 == 0;
  }
  aligned_random_ = aligned_random_ && random;
  unroll_ = aligned_random_ ? 4 : random ? 1 : cost < 8 ? 4 : cost < 30 ? 2 : 1;
  streams_ = std::ranges::none_of(p.exprs, [](const Expr& x) {
    return x.kind == ExprKind::Reduce || x.kind == ExprKind::Random;
  });
  size_t n = p.exprs.size();
  uniform_.assign(n, nullptr);
  base_.assign(n, nullptr);
  valid_.assign(n, nullptr);
  keys_.resize(n);
  words_.resize(n);
}

std::vector<V> RowEvaluator::coordinates(Emit& e, const Dims& outer, V row) {
  std::vector<V> c(outer.size());
  for (size_t k = outer.size(); k-- > 0;) {
    if (k == 0) {
      c[k] = row;
    } else {
      c[k] = e.urem(row, e.i(outer[k]));
      row = e.udiv(row, e.i(outer[k]));
    }
  }
  return c;
}

void RowEvaluator::begin_task() {
  row_ = uniform_;
  for (size_t i = 0; i < p_.exprs.size(); ++i) {
    const Expr& x = p_.exprs[i];
    if (x.kind == ExprKind::Random) {
      V key = e_.buffer(x.access.buffer);
      keys_[i] = {e_.load(DType::U32, key), e_.load(DType::U32, e_.at(key, 1))};
    }
    if (x.uniform && x.phase == 0 && x.kind != ExprKind::Random)
      row_[i] = uniform_[i] = compute_row(x);
  }
}

void RowEvaluator::begin_row(const Vs& coords) {
  coords_ = coords;
  row_ = uniform_;
  std::fill(base_.begin(), base_.end(), nullptr);
  std::fill(valid_.begin(), valid_.end(), nullptr);
}

V RowEvaluator::row_offset(const Access& a) {
  V at = e_.i(a.offset);
  for (size_t k = 0; k < coords_.size(); ++k)
    if (a.strides[k]) at = e_.add(at, e_.mul(coords_[k], a.strides[k]));
  return at;
}

void RowEvaluator::prepare(int phase) {
  for (size_t i = 0; i < p_.exprs.size(); ++i) {
    const Expr& x = p_.exprs[i];
    if (x.phase > phase) continue;
    if (!x.full) {
      if (!row_[i] && x.kind != ExprKind::Reduce) row_[i] = compute_row(x);
      continue;
    }
    if (base_[i] || x.access.strides.empty()) continue;
    V place = row_offset(x.access);
    if (x.kind != ExprKind::Load) {
      base_[i] = place;  // Index and Random: the place itself
      continue;
    }
    const Access& a = x.access;
    if (a.index >= 0 && !p_.exprs[a.index].full) {
      V index = row_[a.index];
      if (p_.exprs[a.index].dtype != DType::I64)
        index = e_.sext(index, Ty::I64);
      valid_[i] = e_.ult(index, e_.i(a.index_limit));
      index = e_.select(valid_[i], index, e_.i(0));
      place = e_.add(place, e_.mul(index, a.index_stride));
    }
    base_[i] = e_.at(e_.buffer(a.buffer), place, dtype_size(a.dtype));
  }
}

V RowEvaluator::compute_row(const Expr& x) {
  const Access& a = x.access;
  switch (x.kind) {
    case ExprKind::Constant: return emit_constant(e_, x.dtype, x.number);
    case ExprKind::Index: return e_.trunc(row_offset(a), Ty::I32);
    case ExprKind::Load: {
      V place = x.uniform ? e_.i(a.offset) : row_offset(a);
      V valid = nullptr;
      if (a.index >= 0) {
        V index = row_[a.index];
        if (p_.exprs[a.index].dtype != DType::I64)
          index = e_.sext(index, Ty::I64);
        valid = e_.ult(index, e_.i(a.index_limit));
        index = e_.select(valid, index, e_.i(0));
        place = e_.add(place, e_.mul(index, a.index_stride));
      }
      V v = e_.load(a.dtype,
                    e_.at(e_.buffer(a.buffer), place, dtype_size(a.dtype)));
      return valid ? e_.select(valid, v,
                               emit_constant(e_, register_dtype(a.dtype), 0))
                   : v;
    }
    case ExprKind::Scalar: {
      Vs in;
      for (int i : x.in) in.push_back(row_[i]);
      return scalar_op(x, in);
    }
    default: MOEC_CHECK(false, "no row form of expression {}", int(x.kind));
  }
}

V RowEvaluator::scalar_op(const Expr& x, const Vs& in) {
  DType from = p_.exprs[x.in[x.op == Op::Select ? 1 : 0]].dtype;
  return emit_scalar(e_, x.op, x.attr, from, x.dtype, in);
}

void RowEvaluator::begin_vector(int phase, V c, V mask, int group) {
  phase_ = phase;
  column_ = c;
  mask_ = mask;
  group_ = aligned_random_ ? group : -1;
  full_.assign(p_.exprs.size(), nullptr);
}

V RowEvaluator::vector(int i) {
  const Expr& x = p_.exprs[i];
  if (!x.full) return e_.splat(row_[i], width_);
  if (!full_[i]) {
    if (kept_ && (*kept_)[i] && x.phase < phase_) {
      DType t = register_dtype(x.dtype);
      full_[i] = e_.vload(t, e_.at((*kept_)[i], column_, dtype_size(t)), mask_,
                          width_);
    } else {
      full_[i] = compute_vector(i);
    }
  }
  return full_[i];
}

V RowEvaluator::compute_vector(int i) {
  const Expr& x = p_.exprs[i];
  const Access& a = x.access;
  switch (x.kind) {
    case ExprKind::Load: return load_vector(i);
    case ExprKind::Index: {
      V first = e_.add(base_[i], e_.mul(column_, a.strides.back()));
      V lanes = e_.mul(e_.iota(Ty::I32, width_),
                       e_.splat(e_.i32(a.strides.back()), width_));
      return e_.add(e_.splat(e_.trunc(first, Ty::I32), width_), lanes);
    }
    case ExprKind::Random: {
      V place = e_.add(base_[i], e_.mul(column_, a.strides.back()));
      V w = random(i, place, group_);
      if (x.attr == "word") return w;
      V u = emit_uniform(e_, w);
      return x.attr == "uniform" ? u : emit_normal(e_, u);
    }
    case ExprKind::Scalar: {
      Vs in;
      for (int k : x.in) in.push_back(vector(k));
      return scalar_op(x, in);
    }
    default: MOEC_CHECK(false, "no vector form of expression {}", int(x.kind));
  }
}

V RowEvaluator::load_vector(int i) {
  const Access& a = p_.exprs[i].access;
  i64 stride = a.strides.back(), size = dtype_size(a.dtype);
  if (a.index >= 0 && p_.exprs[a.index].full) {
    V index = vector(a.index);
    if (p_.exprs[a.index].dtype != DType::I64) index = e_.sext(index, Ty::I64);
    V inside = e_.ult(index, e_.splat(e_.i(a.index_limit), width_));
    if (mask_) inside = e_.and_(inside, mask_);
    V place = e_.mul(index, e_.splat(e_.i(a.index_stride), width_));
    if (stride) {
      V lanes = e_.add(e_.splat(column_, width_), e_.iota(Ty::I64, width_));
      place = e_.add(place, e_.mul(lanes, e_.splat(e_.i(stride), width_)));
    }
    return e_.gather(a.dtype, base_[i], place, inside);
  }
  V v;
  if (stride == 1) {
    constexpr i64 kAhead = 2048;  // bytes
    V p = e_.at(base_[i], column_, size);
    if (streams_) e_.prefetch(e_.at(p, kAhead, 1), 2);
    v = e_.vload(a.dtype, p, mask_, width_);
  } else if (stride) {
    V p = e_.at(base_[i], e_.mul(column_, stride), size);
    v = e_.vload_strided(a.dtype, p, e_.i(stride), mask_, width_);
  } else {
    v = e_.splat(e_.load(a.dtype, base_[i]), width_);
  }
  if (!valid_[i]) return v;
  V zero = emit_constant(e_, register_dtype(a.dtype), 0);
  return e_.select(e_.splat(valid_[i], width_), v, e_.splat(zero, width_));
}

V RowEvaluator::random(int i, V place, int group) {
  const Expr& x = p_.exprs[i];
  auto stream = uint64_t(x.number);
  if (group > 0) return words_[i][group];
  if (group == 0) {
    V block = e_.mul(e_.udiv(place, e_.i(64)), 16);
    words_[i] =
        emit_philox(e_, e_.add(e_.splat(block, 16), e_.iota(Ty::I64, 16)),
                    keys_[i], stream);
    return words_[i][0];
  }
  i64 stride = x.access.strides.back();
  auto all = [&](int64_t v) { return e_.splat(e_.i(v), width_); };
  V index = e_.add(e_.splat(place, width_),
                   e_.mul(e_.iota(Ty::I64, width_), all(stride)));
  V block =
      e_.add(e_.mul(e_.lshr(index, all(6)), all(16)), e_.and_(index, all(15)));
  auto words = emit_philox(e_, block, keys_[i], stream);
  V which = e_.and_(e_.lshr(index, all(4)), all(3));
  V w = words[0];
  for (int k = 1; k < 4; ++k) w = e_.select(e_.eq(which, all(k)), words[k], w);
  return w;
}

V RowEvaluator::address(const Access& a, V column) {
  V place = row_offset(a);
  if (a.strides.back()) place = e_.add(place, e_.mul(column, a.strides.back()));
  return e_.at(e_.buffer(a.buffer), place, dtype_size(a.dtype));
}

void RowEvaluator::store(const Access& a, V v) {
  V p = address(a, column_);
  i64 stride = a.strides.back();
  if (stride == 1)
    e_.vstore(a.dtype, v, p, mask_);
  else
    e_.vstore_strided(a.dtype, v, p, e_.i(stride), mask_);
}

}  // namespace moec
