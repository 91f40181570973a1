// One scalar formula per element. Each op's row holds its formula in double
// (the reference for every backend) and its derivative.
#include <cmath>
#include <functional>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

// ---- types -----------------------------------------------------------------

enum class Accepts { Float, Number, Bool };

template <Accepts kind>
void check_element(const InferArgs& a, int i) {
  DType t = a.in[i].dtype;
  if (kind == Accepts::Float) return expect_float(a, i);
  if (kind == Accepts::Bool) return expect_dtype(a, i, DType::Bool);
  if (t == DType::Bool)
    user_error("{}: {} should hold numbers; cast it", op_of(a), describe(a, i));
}

template <Accepts kind>
Types infer_unary(const InferArgs& a) {
  check_element<kind>(a, 0);
  return {a.in[0]};
}

template <Accepts kind>
Types infer_binary(const InferArgs& a) {
  check_element<kind>(a, 0);
  expect_dtype_of(a, 1, 0);
  return {Type{a.in[0].dtype, broadcast_dims(op_of(a), a.in[0], a.in[1])}};
}

// ---- evaluation ------------------------------------------------------------

template <double (*f)(double)>
void eval_unary(const EvalArgs& a) {
  const auto& x = a.in[0]->data;
  auto& y = a.out[0].data;
  for (size_t i = 0; i < y.size(); ++i) y[i] = f(x[i]);
}

template <class F>
void loop_binary(const EvalArgs& a, F f) {
  const Dims& dims = a.out[0].type.dims;
  Dims sx = broadcast_strides(a.in[0]->type, dims);
  Dims sy = broadcast_strides(a.in[1]->type, dims);
  const double *x = a.in[0]->data.data(), *y = a.in[1]->data.data();
  double* out = a.out[0].data.data();
  i64 dx = dims.empty() ? 0 : sx.back(), dy = dims.empty() ? 0 : sy.back();
  // Both inputs are walked in step: the rows of x are visited in order, and
  // those of y by their own odometer.
  std::vector<i64> rows;
  for_each_row(dims, sy, [&](i64, i64 in, i64) { rows.push_back(in); });
  size_t row = 0;
  for_each_row(dims, sx, [&](i64 o, i64 in, i64 run) {
    const double *px = x + in, *py = y + rows[row++];
    for (i64 i = 0; i < run; ++i) out[o + i] = f(px[i * dx], py[i * dy]);
  });
}

template <double (*f)(double, double)>
void eval_binary(const EvalArgs& a) {
  loop_binary(a, f);
}

// ---- gradients -------------------------------------------------------------

// factor(b, x, y) = dy/dx.
template <Value (*factor)(Builder&, Value, Value)>
Values vjp_unary(Builder& b, Node& n, Gradients dy) {
  return {b.mul(dy[0], factor(b, n.operand(0), n.result()))};
}

// The gradients of two broadcast operands, made only where they can be used.
template <class F, class G>
Values binary_gradients(Builder& b, Node& n, F dx, G dy) {
  Values g(2);
  if (wants_grad(n.operand(0))) g[0] = b.sum_to(dx(), n.operand(0).type().dims);
  if (wants_grad(n.operand(1))) g[1] = b.sum_to(dy(), n.operand(1).type().dims);
  return g;
}

// 1 - y^2 and y (1 - y)
Value one_minus_square(Builder& b, Value, Value y) {
  return b.add(b.neg(b.mul(y, y)), 1.0);
}
Value sigmoid_slope(Builder& b, Value, Value y) {
  return b.mul(y, b.add(b.neg(y), 1.0));
}

constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;

// d silu = s + x s (1 - s), s = sigmoid(x)
Values decompose_silu_slope(Builder& b, Node& n) {
  Value x = n.operand(0), s = b.op(Op::Sigmoid, {x});
  return {b.mul(s, b.add(b.mul(x, b.add(b.neg(s), 1.0)), 1.0))};
}

// gelu(x) = x s with s = sigmoid(2 u), u = kGeluScale (x + kGeluCubic x^3), so
// its slope is s + x s (1 - s) 2 u'.
Values decompose_gelu_slope(Builder& b, Node& n) {
  Value x = n.operand(0), square = b.mul(x, x);
  Value cubic = b.mul(x, b.add(b.mul(square, kGeluCubic), 1.0));
  Value u = b.mul(cubic, kGeluScale), s = b.op(Op::Sigmoid, {b.add(u, u)});
  Value slope = b.mul(b.add(b.mul(square, 6 * kGeluCubic), 2.0), kGeluScale);
  Value rest = b.mul(b.mul(x, b.add(b.neg(s), 1.0)), slope);
  return {b.mul(s, b.add(rest, 1.0))};
}

// dy where a wins, the rest to b; ties go to a.
Values vjp_extremum(Builder& b, Node& n, Gradients dy, const char* wins) {
  Value x = n.operand(0), y = n.operand(1);
  Value first = b.compare(x, y, wins);
  Value zero = b.scalar(0, dy[0].type().dtype);
  return binary_gradients(
      b, n, [&] { return b.select(first, dy[0], zero); },
      [&] { return b.select(first, zero, dy[0]); });
}

Values vjp_pow(Builder& b, Node& n, Gradients dy) {
  Value x = n.operand(0), e = n.operand(1);
  return binary_gradients(
      b, n,
      [&] {
        Value lower = b.op(Op::Pow, {x, b.add(e, -1.0)});
        return b.mul(dy[0], b.mul(e, lower));
      },
      [&] { return b.mul(dy[0], b.mul(n.result(), b.log(x))); });
}

Values vjp_div(Builder& b, Node& n, Gradients dy) {
  Value y = n.operand(1);
  return binary_gradients(
      b, n, [&] { return b.div(dy[0], y); },
      [&] { return b.neg(b.mul(dy[0], b.div(n.result(), y))); });
}

// ---- compare ---------------------------------------------------------------

Types infer_compare(const InferArgs& a) {
  expect_dtype_of(a, 1, 0);
  const std::string& d = a.node.s("direction");
  for (const char* known : {"lt", "le", "gt", "ge", "eq", "ne"})
    if (d == known)
      return {Type{DType::Bool, broadcast_dims("compare", a.in[0], a.in[1])}};
  user_error("compare: direction \"{}\" is none of lt le gt ge eq ne", d);
}

void eval_compare(const EvalArgs& a) {
  const std::string& d = a.node.s("direction");
  if (d == "lt") return loop_binary(a, std::less<>());
  if (d == "le") return loop_binary(a, std::less_equal<>());
  if (d == "gt") return loop_binary(a, std::greater<>());
  if (d == "ge") return loop_binary(a, std::greater_equal<>());
  if (d == "eq") return loop_binary(a, std::equal_to<>());
  loop_binary(a, std::not_equal_to<>());
}

const AttrDef kCompareAttrs[] = {
    required("direction", AttrKind::String,
             "\"lt\" \"le\" \"gt\" \"ge\" \"eq\" \"ne\"")};

// ---- rows ------------------------------------------------------------------

using Infer = Types (*)(const InferArgs&);
using Eval = void (*)(const EvalArgs&);
using Vjp = Values (*)(Builder&, Node&, Gradients);

OpDef unary(std::string_view name, std::string_view summary, Eval eval, Vjp vjp,
            Infer infer = infer_unary<Accepts::Float>) {
  return {.name = name,
          .summary = summary,
          .min_inputs = 1,
          .max_inputs = 1,
          .traits = kElementwise | (vjp ? 0u : kNotDifferentiable),
          .operand_names = {"x"},
          .infer = infer,
          .vjp = vjp,
          .eval = eval};
}

// The derivative of an activation: one op, so that an unfused gradient is one
// pass, whose own gradient is that of its formula.
OpDef derivative(std::string_view name, std::string_view summary, Eval eval,
                 Values (*formula)(Builder&, Node&)) {
  OpDef d = unary(name, summary, eval, nullptr);
  d.traits = kElementwise;
  d.decompose = formula;
  return d;
}

OpDef binary(std::string_view name, std::string_view summary, Eval eval,
             Vjp vjp, uint32_t traits = 0,
             Infer infer = infer_binary<Accepts::Number>) {
  return {.name = name,
          .summary = summary,
          .min_inputs = 2,
          .max_inputs = 2,
          .traits = kElementwise | traits | (vjp ? 0u : kNotDifferentiable),
          .operand_names = {"a", "b"},
          .infer = infer,
          .vjp = vjp,
          .eval = eval};
}

double sigmoid(double x) {
  double e = std::exp(-std::abs(x));
  return (x >= 0 ? 1 : e) / (1 + e);
}

// Integers divide towards zero; x / 0 is 0.
void eval_div(const EvalArgs& a) {
  if (is_float(a.out[0].type.dtype)) return loop_binary(a, std::divides<>());
  loop_binary(
      a, [](double x, double y) { return y == 0 ? 0 : std::trunc(x / y); });
}

// Products of integers wrap, for hashes.
template <class Int, class Bits>
void eval_mul_int(const EvalArgs& a) {
  loop_binary(a, [](double x, double y) {
    return double(Int(Bits(i64(x)) * Bits(i64(y))));
  });
}

void eval_mul(const EvalArgs& a) {
  switch (a.out[0].type.dtype) {
    case DType::U32: return eval_mul_int<uint32_t, uint32_t>(a);
    case DType::I32: return eval_mul_int<int32_t, uint32_t>(a);
    case DType::I64: return eval_mul_int<i64, uint64_t>(a);
    default: return loop_binary(a, std::multiplies<>());
  }
}

Values vjp_mul(Builder& b, Node& n, Gradients dy) {
  return binary_gradients(
      b, n, [&] { return b.mul(dy[0], n.operand(1)); },
      [&] { return b.mul(dy[0], n.operand(0)); });
}

}  // namespace

const OpDef kNeg = unary(
    "neg", "-x.", eval_unary<[](double x) { return -x; }>,
    [](Builder& b, Node&, Gradients dy) { return Values{b.neg(dy[0])}; },
    infer_unary<Accepts::Number>);

const OpDef kAbs = unary(
    "abs", "|x|.", eval_unary<[](double x) { return std::abs(x); }>,
    vjp_unary<[](Builder& b, Value x, Value) { return b.op(Op::Sign, {x}); }>,
    infer_unary<Accepts::Number>);

const OpDef kSign =
    unary("sign", "-1, 0 or 1.",
          eval_unary<[](double x) { return double((x > 0) - (x < 0)); }>,
          nullptr, infer_unary<Accepts::Number>);

const OpDef kExp =
    unary("exp", "e^x.", eval_unary<[](double x) { return std::exp(x); }>,
          vjp_unary<[](Builder&, Value, Value y) { return y; }>);

const OpDef kLog = unary("log", "Natural logarithm.",
                         eval_unary<[](double x) { return std::log(x); }>,
                         [](Builder& b, Node& n, Gradients dy) {
                           return Values{b.div(dy[0], n.operand(0))};
                         });

const OpDef kSqrt = unary("sqrt", "Square root.",
                          eval_unary<[](double x) { return std::sqrt(x); }>,
                          [](Builder& b, Node& n, Gradients dy) {
                            return Values{b.div(b.mul(dy[0], 0.5), n.result())};
                          });

const OpDef kRsqrt =
    unary("rsqrt", "1 / sqrt(x).",
          eval_unary<[](double x) { return 1 / std::sqrt(x); }>,
          vjp_unary<[](Builder& b, Value, Value y) {
            return b.mul(b.mul(y, b.mul(y, y)), -0.5);
          }>);

const OpDef kTanh = unary("tanh", "Hyperbolic tangent.",
                          eval_unary<[](double x) { return std::tanh(x); }>,
                          vjp_unary<one_minus_square>);

const OpDef kErf =
    unary("erf", "The error function.",
          eval_unary<[](double x) { return std::erf(x); }>,
          vjp_unary<[](Builder& b, Value x, Value) {
            constexpr double two_over_root_pi = 1.1283791670955126;
            return b.mul(b.exp(b.neg(b.mul(x, x))), two_over_root_pi);
          }>);

const OpDef kSigmoid = unary("sigmoid", "1 / (1 + e^-x).", eval_unary<sigmoid>,
                             vjp_unary<sigmoid_slope>);

const OpDef kRelu = unary(
    "relu", "max(x, 0).", eval_unary<[](double x) { return x < 0 ? 0 : x; }>,
    [](Builder& b, Node& n, Gradients dy) {
      Value zero = b.scalar(0, dy[0].type().dtype);
      return Values{b.select(b.compare(n.operand(0), zero, "gt"), dy[0], zero)};
    });

const OpDef kSilu = unary("silu", "x sigmoid(x).",
                          eval_unary<[](double x) { return x * sigmoid(x); }>,
                          vjp_unary<[](Builder& b, Value x, Value) {
                            return b.op(Op::SiluSlope, {x});
                          }>);

const OpDef kSiluSlope = derivative(
    "silu_slope", "The derivative of silu at x.", eval_unary<[](double x) {
      double s = sigmoid(x);
      return s * (1 + x * (1 - s));
    }>,
    decompose_silu_slope);

const OpDef kGelu =
    unary("gelu", "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).",
          eval_unary<[](double x) {
            double u = kGeluScale * (x + kGeluCubic * x * x * x);
            return x * sigmoid(2 * u);
          }>,
          vjp_unary<[](Builder& b, Value x, Value) {
            return b.op(Op::GeluSlope, {x});
          }>);

const OpDef kGeluSlope = derivative(
    "gelu_slope", "The derivative of gelu at x.", eval_unary<[](double x) {
      double u = kGeluScale * (x + kGeluCubic * x * x * x);
      double s = sigmoid(2 * u);
      double slope = kGeluScale * (1 + 3 * kGeluCubic * x * x);
      return s * (1 + x * (1 - s) * 2 * slope);
    }>,
    decompose_gelu_slope);

const OpDef kSoftplus =
    unary("softplus", "log(1 + e^x).", eval_unary<[](double x) {
            return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
          }>,
          vjp_unary<[](Builder& b, Value x, Value) {
            return b.op(Op::Sigmoid, {x});
          }>);

const OpDef kSin = unary(
    "sin", "Sine of an angle in radians.",
    eval_unary<[](double x) { return std::sin(x); }>,
    vjp_unary<[](Builder& b, Value x, Value) { return b.op(Op::Cos, {x}); }>);

const OpDef kCos = unary("cos", "Cosine of an angle in radians.",
                         eval_unary<[](double x) { return std::cos(x); }>,
                         vjp_unary<[](Builder& b, Value x, Value) {
                           return b.neg(b.op(Op::Sin, {x}));
                         }>);

const OpDef kNot = unary("not", "Logical not.",
                         eval_unary<[](double x) -> double { return x == 0; }>,
                         nullptr, infer_unary<Accepts::Bool>);

const OpDef kAdd = binary(
    "add", "a + b.", eval_binary<[](double x, double y) { return x + y; }>,
    [](Builder& b, Node& n, Gradients dy) {
      auto same = [&] { return dy[0]; };
      return binary_gradients(b, n, same, same);
    },
    kCommutative);

const OpDef kSub = binary(
    "sub", "a - b.", eval_binary<[](double x, double y) { return x - y; }>,
    [](Builder& b, Node& n, Gradients dy) {
      // Negated after the sum, which may be much smaller.
      Values g(2);
      if (wants_grad(n.operand(0)))
        g[0] = b.sum_to(dy[0], n.operand(0).type().dims);
      if (wants_grad(n.operand(1)))
        g[1] = b.neg(b.sum_to(dy[0], n.operand(1).type().dims));
      return g;
    });

const OpDef kMul = binary("mul", "a b.", eval_mul, vjp_mul, kCommutative);

const OpDef kDiv =
    binary("div", "a / b; integers towards zero, and 0 where b is 0.", eval_div,
           vjp_div);

const OpDef kMaximum = binary(
    "maximum", "The larger of a and b; the gradient of a tie goes to a.",
    eval_binary<[](double x, double y) { return x >= y ? x : y; }>,
    [](Builder& b, Node& n, Gradients dy) {
      return vjp_extremum(b, n, dy, "ge");
    },
    kCommutative);

const OpDef kMinimum = binary(
    "minimum", "The smaller of a and b; the gradient of a tie goes to a.",
    eval_binary<[](double x, double y) { return x <= y ? x : y; }>,
    [](Builder& b, Node& n, Gradients dy) {
      return vjp_extremum(b, n, dy, "le");
    },
    kCommutative);

const OpDef kPow =
    binary("pow", "a to the power b.",
           eval_binary<[](double x, double y) { return std::pow(x, y); }>,
           vjp_pow, 0, infer_binary<Accepts::Float>);

const OpDef kAnd = binary(
    "and", "Logical and.",
    eval_binary<[](double x, double y) -> double { return x != 0 && y != 0; }>,
    nullptr, kCommutative, infer_binary<Accepts::Bool>);

const OpDef kOr = binary(
    "or", "Logical or.",
    eval_binary<[](double x, double y) -> double { return x != 0 || y != 0; }>,
    nullptr, kCommutative, infer_binary<Accepts::Bool>);

const OpDef kCompare = {
    .name = "compare",
    .summary = "a against b, as a bool; false if either is NaN, but ne.",
    .min_inputs = 2,
    .max_inputs = 2,
    .traits = kElementwise | kNotDifferentiable,
    .attrs = kCompareAttrs,
    .operand_names = {"a", "b"},
    .infer = infer_compare,
    .eval = eval_compare,
};

}  // namespace moec::ops
