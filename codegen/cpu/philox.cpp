#include "codegen/cpu/philox.h"

namespace moec {

std::array<V, 4> emit_philox(Emit& e, V block, std::array<V, 2> key,
                             uint64_t stream) {
  int w = e.width(block);
  auto all = [&](V scalar) { return e.splat(scalar, w); };
  // Words live in the low halves of 64-bit lanes, whose products then need no
  // taking apart; what is in the high halves does not matter.
  V low = all(e.i(0xffffffff)), half = all(e.i(32));
  // The even counters come first, then the odd ones: two vectors of words are
  // one of 32 bits by a shift and a blend.
  std::vector<int> even, odd;
  std::vector<int64_t> is_odd;
  for (int l = 0; l < w; ++l) {
    (l % 2 ? odd : even).push_back(l);
    is_odd.push_back(l % 2);
  }
  if (w > 1)
    block = e.concat(e.shuffle(block, nullptr, even),
                     e.shuffle(block, nullptr, odd));
  std::array<V, 4> c = {block, e.lshr(block, half),
                        all(e.i(int64_t(stream & 0xffffffff))),
                        all(e.i(int64_t(stream >> 32)))};
  V m0 = all(e.i(0xD2511F53)), m1 = all(e.i(0xCD9E8D57));
  V k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    V a = e.mul(m0, e.and_(c[0], low)), b = e.mul(m1, e.and_(c[2], low));
    auto next = [&](V product, V word, V k) {
      return e.xor_(e.xor_(e.lshr(product, half), word),
                    all(e.zext(k, Ty::I64)));
    };
    c = {next(b, c[1], k0), b, next(a, c[3], k1), a};
    k0 = e.add(k0, e.i32(0x9E3779B9));
    k1 = e.add(k1, e.i32(0xBB67AE85));
  }
  for (V& word : c) {
    if (w == 1) {
      word = e.trunc(word, Ty::I32);
      continue;
    }
    V high = e.shl(e.slice(word, w / 2, w / 2), e.splat(e.i(32), w / 2));
    word = e.select(e.ne(e.vec(Ty::I32, is_odd), e.zero(Ty::I32, w)),
                    e.revector(high, Ty::I32),
                    e.revector(e.slice(word, 0, w / 2), Ty::I32));
  }
  return c;
}

V emit_uniform(Emit& e, V word) {
  int w = e.width(word);
  auto all = [&](int64_t v) { return e.splat(e.i32(v), w); };
  V k = e.lshr(word, all(9));
  return e.mul(e.to_f32(e.add(e.add(k, k), all(1))), e.splat(e.f(0x1p-24), w));
}

V emit_normal(Emit& e, V u) {
  constexpr double kNear[9] = {2.81022636e-08,  3.43273939e-07, -3.5233877e-06,
                               -4.39150654e-06, 0.00021858087,  -0.00125372503,
                               -0.00417768164,  0.246640727,    1.50140941};
  constexpr double kFar[9] = {-0.000200214257, 0.000100950558, 0.00134934322,
                              -0.00367342844,  0.00573950773,  -0.0076224613,
                              0.00943887047,   1.00167406,     2.83297682};
  int w = e.width(u);
  auto all = [&](double v) { return e.splat(e.f(v), w); };
  V one = all(1);
  V x = e.sub(e.add(u, u), one);
  V y = e.neg(e.log(e.mul(e.sub(one, x), e.add(one, x))));
  V near = e.lt(y, all(5));
  V z = e.select(near, e.sub(y, all(2.5)), e.sub(e.sqrt(y), all(3)));
  V p = e.select(near, all(kNear[0]), all(kFar[0]));
  for (int i = 1; i < 9; ++i)
    p = e.fma(p, z, e.select(near, all(kNear[i]), all(kFar[i])));
  return e.mul(e.mul(all(1.41421356237309504880), p), x);
}

}  // namespace moec
