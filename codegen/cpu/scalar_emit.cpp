#include "codegen/cpu/scalar_emit.h"

#include "support/error.h"

namespace moec {
namespace {

bool is_unsigned(DType t) { return t == DType::U32 || t == DType::Bool; }

V compare(Emit& b, std::string_view how, DType t, V x, V y) {
  if (how == "eq") return b.eq(x, y);
  if (how == "ne") return b.ne(x, y);
  if (is_unsigned(t)) {
    if (how == "lt") return b.ult(x, y);
    if (how == "gt") return b.ult(y, x);
    if (how == "le") return b.not_(b.ult(y, x));
    return b.not_(b.ult(x, y));
  }
  if (how == "lt") return b.lt(x, y);
  if (how == "gt") return b.gt(x, y);
  if (how == "le") return b.le(x, y);
  return b.ge(x, y);
}

V sign(Emit& b, DType t, V x) {
  V zero = emit_constant(b, t, 0), one = emit_constant(b, t, 1);
  if (t == DType::U32) return b.select(b.ne(x, zero), one, zero);
  V s = b.select(b.gt(x, zero), one, b.select(b.lt(x, zero), b.neg(one), zero));
  return is_float(t) ? b.select(b.is_nan(x), x, s) : s;
}

// Division by zero gives 0.
V integer_div(Emit& b, DType t, V x, V y) {
  V zero = emit_constant(b, t, 0);
  V none = b.eq(y, zero);
  V safe = b.select(none, emit_constant(b, t, 1), y);
  return b.select(none, zero,
                  t == DType::U32 ? b.udiv(x, safe) : b.div(x, safe));
}

}  // namespace

V emit_constant(Emit& b, DType t, double v) {
  switch (t) {
    case DType::F64: return b.f64(v);
    case DType::I32: return b.i32(int64_t(v));
    case DType::U32: return b.i32(int64_t(v));
    case DType::I64: return b.i(int64_t(v));
    case DType::Bool: return b.i1(v != 0);
    default: return b.f(v);
  }
}

V emit_scalar(Emit& b, Op op, std::string_view attr, DType from, DType to,
              const std::vector<V>& in) {
  V x = in[0], y = in.size() > 1 ? in[1] : nullptr;
  if (op == Op::Exp && attr == "nonpositive") return b.exp_neg(x);
  if (op == Op::Exp && attr == "minus_one") return b.expm1(x);
  switch (op) {
#define MOEC_SCALAR1(E, formula, cost) \
  case Op::E: return formula;
#define MOEC_SCALAR2(E, formula, cost) MOEC_SCALAR1(E, formula, cost)
#include "codegen/scalar_ops.def"
#undef MOEC_SCALAR1
#undef MOEC_SCALAR2
    case Op::Cast: return b.cast(x, from, to);
    case Op::Compare: return compare(b, attr, from, x, y);
    case Op::Select: return b.select(x, y, in[2]);
    case Op::And: return b.and_(x, y);
    case Op::Or: return b.or_(x, y);
    case Op::Not: return b.not_(x);
    case Op::Sign: return sign(b, from, x);
    case Op::Relu: return b.max(emit_constant(b, from, 0), x);  // NaN stays
    case Op::Div:
      return is_float(from) ? b.div(x, y) : integer_div(b, from, x, y);
    case Op::Maximum:
      if (is_unsigned(from)) return b.umax(x, y);
      return is_float(from) ? b.nan_max(x, y) : b.max(x, y);
    case Op::Minimum:
      if (is_unsigned(from)) return b.umin(x, y);
      return is_float(from) ? b.nan_min(x, y) : b.min(x, y);
    default: MOEC_CHECK(false, "op {} has no scalar formula", int(op));
  }
}

double scalar_cost(Op op) {
  switch (op) {
#define MOEC_SCALAR1(E, formula, cost) \
  case Op::E: return cost;
#define MOEC_SCALAR2(E, formula, cost) MOEC_SCALAR1(E, formula, cost)
#include "codegen/scalar_ops.def"
#undef MOEC_SCALAR1
#undef MOEC_SCALAR2
    case Op::Div: return 8;
    default: return 1;
  }
}

bool is_scalar_op(Op op) {
  switch (op) {
#define MOEC_SCALAR1(E, formula, cost) case Op::E:
#define MOEC_SCALAR2(E, formula, cost) case Op::E:
#include "codegen/scalar_ops.def"
#undef MOEC_SCALAR1
#undef MOEC_SCALAR2
    case Op::Cast:
    case Op::Compare:
    case Op::Select:
    case Op::And:
    case Op::Or:
    case Op::Not:
    case Op::Sign:
    case Op::Relu:
    case Op::Div:
    case Op::Maximum:
    case Op::Minimum: return true;
    default: return false;
  }
}

}  // namespace moec
