// Polynomials of Emit, written on the facade itself. Coefficients: Cephes
// (Moshier) for exp, log, sin, cos; rational minimax forms as in Eigen and XLA
// for tanh and erf.
#include <cmath>
#include <limits>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/target.h"

namespace moec {

namespace {

V horner(Emit& e, V x, std::initializer_list<double> c) {
  V p = nullptr;
  for (double k : c) p = p ? e.fma(p, x, e.f(k)) : e.f(k);
  return p;
}

// x = n ln2 + r; scale = 2^(n + bias - 127), expm1 = e^r - 1. The caller has
// clamped x so that the exponent field n + bias stays in 0..254.
struct ExpParts {
  V scale, expm1;
};

// 1.5 * 2^23 plus the exponent bias: adding it leaves round(v) + bias in the
// low mantissa bits, which shifted up are the float 2^(round(v) + bias - 127).
// NaN flows through; there is no float-to-int conversion to poison it.
ExpParts exp_parts(Emit& e, V x, int bias, bool base2) {
  V magic = e.f(12582912.0 + bias);
  V t = base2 ? e.add(x, magic) : e.fma(x, e.f(1.4426950408889634), magic);
  V n = e.sub(t, magic);
  V r;
  if (base2) {
    r = e.mul(e.sub(x, n), e.f(0.6931471805599453));
  } else {
    r = e.fma(n, e.f(-0.693359375), x);
    r = e.fma(n, e.f(2.12194440e-4), r);
  }
  V p = horner(e, r,
               {1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1});
  return {e.bits(e.shl(e.bits(t, Ty::I32), e.i32(23)), Ty::F32),
          e.fma(e.mul(r, r), p, r)};
}

// exp for arguments known to be below 88.3, one multiplication less.
V exp_bounded(Emit& e, V x) {
  auto [s, m] = exp_parts(e, e.max(e.f(-88.0), x), 127, false);
  return e.mul(e.add(m, e.f(1)), s);
}

}  // namespace

V Emit::exp_neg(V x) { return exp_bounded(*this, x); }

V Emit::exp(V x) {
  // half the result is scaled, so that overflow reaches infinity
  x = max(f(-87.4), min(f(89), x));
  auto [s, m] = exp_parts(*this, x, 126, false);
  return mul(mul(add(m, f(1)), s), f(2));
}

V Emit::exp2(V x) {
  x = max(f(-126.1), min(f(128.4), x));
  auto [s, m] = exp_parts(*this, x, 126, true);
  return mul(mul(add(m, f(1)), s), f(2));
}

V Emit::expm1(V x) {
  x = max(f(-87.4), min(f(89), x));
  auto [s, m] = exp_parts(*this, x, 126, false);
  return mul(fma(s, m, sub(s, f(0.5))), f(2));
}

namespace {

struct Logistic {
  V value, rest;  // sigmoid(x), sigmoid(-x): neither loses digits
};

Logistic logistic(Emit& e, V x) {
  // bounded so that the reciprocal stays a normal number
  V t = exp_bounded(e, e.min(e.f(87.3), e.neg(x)));
  V value = e.div(e.f(1), e.add(e.f(1), t));
  return {value, e.mul(t, value)};
}

// gelu(x) = x sigmoid(z), z = x (kGelu + kGelu3 x^2)
constexpr double kGelu = 1.5957691216057308, kGelu3 = 0.044715 * kGelu;

Logistic gelu_logistic(Emit& e, V x, V square) {
  return logistic(e, e.mul(x, e.fma(square, e.f(kGelu3), e.f(kGelu))));
}

V clamp(Emit& e, V x, double limit) {
  return e.max(e.f(-limit), e.min(e.f(limit), x));
}

}  // namespace

V Emit::sigmoid(V x) { return logistic(*this, x).value; }

V Emit::silu(V x) { return mul(x, sigmoid(x)); }

V Emit::silu_slope(V x) {
  x = clamp(*this, x, 87);  // further out it is 0 or 1
  auto [s, rest] = logistic(*this, x);
  return mul(s, fma(x, rest, f(1)));
}

V Emit::gelu(V x) { return mul(x, gelu_logistic(*this, x, mul(x, x)).value); }

V Emit::gelu_slope(V x) {
  x = clamp(*this, x, 10);  // further out it is 0 or 1
  V square = mul(x, x);
  auto [s, rest] = gelu_logistic(*this, x, square);
  V slope = fma(square, f(3 * kGelu3), f(kGelu));
  return mul(s, fma(mul(x, rest), slope, f(1)));
}

V Emit::log(V x) {
  // subnormals are scaled up; m in [sqrt(1/2), sqrt(2)), x = m 2^e
  V tiny = lt(x, f(1.17549435e-38));
  V y = select(tiny, mul(x, f(8388608.0)), x);
  V b = sub(bits(y, Ty::I32), i32(0x3f3504f3));
  V e = add(ashr(b, i32(23)), select(tiny, i32(-23), i32(0)));
  V m = bits(add(and_(b, i32(0x007fffff)), i32(0x3f3504f3)), Ty::F32);
  V n = to_f32(e), r = sub(m, f(1)), r2 = mul(r, r);
  V p = horner(*this, r,
               {7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1,
                -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
                2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1});
  V z = mul(mul(p, r2), r);
  z = fma(n, f(-2.12194440e-4), z);
  z = fma(r2, f(-0.5), z);
  z = fma(n, f(0.693359375), add(r, z));
  const double inf = std::numeric_limits<double>::infinity();
  z = select(lt(x, f(inf)), z, x);  // +inf and NaN
  z = select(lt(x, f(0)), f(std::nan("")), z);
  return select(eq(x, f(0)), f(-inf), z);
}

V Emit::log1p(V x) {
  V y = add(x, f(1));
  V lost = div(sub(x, sub(y, f(1))), y);
  // for x so large or so small that nothing is lost the quotient is no help
  lost = select(lt(abs(x), f(1e10)), lost, f(0));
  V r = add(log(y), select(gt(x, f(-1)), lost, f(0)));
  return select(eq(x, f(0)), x, r);
}

V Emit::softplus(V x) {
  return add(nan_max(x, f(0)), log1p(exp_bounded(*this, neg(abs(x)))));
}

V Emit::tanh(V x) {
  V c = max(f(-7.90531110763549805), min(f(7.90531110763549805), x));
  V c2 = mul(c, c);
  V p =
      horner(*this, c2,
             {-2.76076847742355e-16, 2.00018790482477e-13,
              -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
              6.37261928875436e-04, 4.89352455891786e-03});
  V q = horner(*this, c2,
               {1.19825839466702e-06, 1.18534705686654e-04,
                2.26843463243900e-03, 4.89352518554385e-03});
  V r = div(mul(c, p), q);
  return select(lt(abs(x), f(0.0004)), x, r);
}

V Emit::erf(V x) {
  V c = max(f(-4), min(f(4), x));
  V c2 = mul(c, c);
  V p = horner(
      *this, c2,
      {-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06,
       -5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03,
       -1.60960333262415e-02});
  V q = horner(
      *this, c2,
      {-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03,
       -7.37332916720468e-03, -1.42647390514189e-02});
  return div(mul(c, p), q);
}

namespace {

// quadrant 0: sin, 1: cos; x = j pi/2 + r with |r| <= pi/4
V sin_quadrant(Emit& e, V x, int quadrant) {
  V magic = e.f(12582912.0);
  V t = e.fma(x, e.f(0.6366197723675814), magic);
  V n = e.sub(t, magic);
  V r;
  if (e.target().fma) {
    r = e.fma(n, e.f(-1.57079637050628662), x);
    r = e.fma(n, e.f(4.37113900018624283e-8), r);
  } else {  // parts short enough for exact products
    r = e.fma(n, e.f(-1.5703125), x);
    r = e.fma(n, e.f(-4.837512969970703125e-4), r);
    r = e.fma(n, e.f(-7.549789954891882e-8), r);
  }
  V r2 = e.mul(r, r);
  V s = horner(e, r2, {-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1});
  s = e.fma(e.mul(s, r2), r, r);
  V c = horner(
      e, r2,
      {2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2});
  c = e.fma(e.mul(c, r2), r2, e.fma(r2, e.f(-0.5), e.f(1)));
  V j = e.add(e.bits(t, Ty::I32), quadrant);
  V odd = e.ne(e.and_(j, e.i32(1)), e.i32(0));
  V sign = e.shl(e.and_(j, e.i32(2)), e.i32(30));
  return e.bits(e.xor_(e.bits(e.select(odd, c, s), Ty::I32), sign), Ty::F32);
}

}  // namespace

V Emit::sin(V x) { return sin_quadrant(*this, x, 0); }
V Emit::cos(V x) { return sin_quadrant(*this, x, 1); }

V Emit::rsqrt(V x) { return div(f(1), sqrt(x)); }

V Emit::pow(V x, V y) { return exp(mul(y, log(x))); }

// Truncation by the same magic addition works on every level; SSE2 has no
// rounding instruction, and llvm.floor would be a library call per lane.
V Emit::round_even(V x) {
  V big = copysign(f(8388608.0), x);
  V r = copysign(sub(add(x, big), big), x);
  return select(lt(abs(x), f(8388608.0)), r, x);
}

V Emit::floor(V x) {
  V r = round_even(x);
  return select(gt(r, x), sub(r, f(1)), r);
}

V Emit::ceil(V x) { return neg(floor(neg(x))); }

}  // namespace moec
