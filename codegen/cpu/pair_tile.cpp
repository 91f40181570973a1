#include "codegen/cpu/pair_tile.h"

#include <algorithm>
#include <cmath>

#include "codegen/cpu/lane_tile.h"
#include "codegen/cpu/split_f32.h"
#include "support/error.h"

namespace moec {

namespace {

// Two by two tile registers of sums, two of A, two of B.
enum TileName { kSums = 0, kLeft = 4, kRight = 6 };

// The steps of a tile's sums.
void plain_steps(Emit& e, const PairProduct& m, V a, V k) {
  V lda = e.i(m.lda), ldb = e.i(m.ldb);
  e.loop(e.i(0), k, kPairStep, [&](V x) {
    V left = e.at(a, e.mul(x, m.a_step / kPairStep), 1);
    V right = e.at(m.b, e.mul(x, m.ldb / 2), 1);
    auto load_left = [&](int tile, V p) {
      m.stream_a ? e.tile_load_stream(tile, p, lda) : e.tile_load(tile, p, lda);
    };
    load_left(kLeft, left);
    e.tile_load(kRight, right, ldb);
    e.tile_dpbf16(kSums, kLeft, kRight);
    if (m.beside) m.beside(x, 0);
    const bool both = m.vectors > 1;
    if (both) {
      e.tile_load(kRight + 1, e.at(right, 64, 1), ldb);
      e.tile_dpbf16(kSums + 1, kLeft, kRight + 1);
    }
    load_left(kLeft + 1, e.at(left, 16 * m.lda, 1));
    e.tile_dpbf16(kSums + 2, kLeft + 1, kRight);
    if (both) e.tile_dpbf16(kSums + 3, kLeft + 1, kRight + 1);
  });
}

// The same in three planes. Of an operand only one plane is in registers; on
// the way through the six products it is the left one or the right one that
// changes, and a register is loaded as soon as it is free. The next step's
// lines, too many for the hardware's prefetcher, are asked for two products at
// a time.
void split_steps(Emit& e, const PairProduct& m, V a, V k) {
  e.set_long_loops();
  constexpr int kHigh = 0, kMid = 1, kLow = 2;
  const int64_t plane_b = m.ldb * kPairStep / 2;
  V lda = e.i(m.lda), ldb = e.i(m.ldb);
  e.loop(e.i(0), k, kPairStep, [&](V x) {
    V left = e.at(a, e.mul(x, m.a_step / kPairStep), 1);
    V right = e.at(m.b, e.mul(x, plane_b * m.planes / kPairStep), 1);
    auto load_left = [&](int half, int plane) {
      V p = e.at(left, plane * m.a_plane + half * 16 * m.lda, 1);
      e.tile_load(kLeft + half, p, lda);
    };
    auto load_right = [&](int half, int plane) {
      if (half >= m.vectors) return;
      e.tile_load(kRight + half, e.at(right, plane * plane_b + half * 64, 1),
                  ldb);
    };
    auto multiply = [&](int i, int j) {
      if (j < m.vectors)
        e.tile_dpbf16(kSums + 2 * i + j, kLeft + i, kRight + j);
    };
    int pairs = 0, line = 0, turns = 0;
    constexpr int kStepPairs = kSplitPlanes * int(kPairStep) / 2;
    constexpr int kShare = 32 * kSplitPlanes / 12;  // lines of each operand
    auto fetch = [&] {
      for (int end = line + kShare; line < end; ++line) {
        const int row = line / kSplitPlanes, plane = line % kSplitPlanes;
        V next_a = e.at(left, m.a_step + plane * m.a_plane + row * m.lda, 1);
        if (m.fetch_a) e.prefetch(next_a);
        e.prefetch(
            e.at(right, (line / 2 + kStepPairs) * m.ldb + line % 2 * 64, 1));
      }
    };
    // the four products of the planes, then the next plane of one side, or none
    auto products = [&](int next_left, int next_right) {
      for (int outer = 0; outer < 2; ++outer) {
        const bool by_right = next_right >= 0;
        for (int inner = 0; inner < 2; ++inner)
          by_right ? multiply(inner, outer) : multiply(outer, inner);
        fetch();
        if (next_right >= 0) load_right(outer, next_right);
        if (next_left >= 0) load_left(outer, next_left);
        if (m.beside && ++pairs % 3 == 0) m.beside(x, pairs / 3 - 1);
      }
      if (m.job && ++turns % (6 / kSplitTurns) == 0)
        split_job_turn(e, m.job, m.job_kind);
    };
    for (int half = 0; half < 2; ++half)
      load_left(half, kHigh), load_right(half, kLow);
    products(-1, kMid);   // high low
    products(kMid, -1);   // high mid
    products(-1, kHigh);  // mid mid
    products(kLow, -1);   // mid high
    products(kHigh, -1);  // low high
    products(-1, -1);     // high high
  });
}

void product_in_tiles(Emit& e, const PairProduct& m, V rows, V k,
                      V accumulate) {
  V ldc = e.i(m.ldc);
  e.loop(e.i(0), rows, 32, [&](V row) {
    V a = e.at(m.a, e.mul(row, m.lda), 1), c = e.at(m.c, e.mul(row, m.ldc), 1);
    auto sums = [&](int t) {
      return e.at(c, t / 2 * 16 * m.ldc + t % 2 * 64, 1);
    };
    auto for_sums = [&](auto&& f) {
      for (int t = 0; t < 4; t += 3 - m.vectors) f(t);
    };
    e.if_(
        accumulate,
        [&] { for_sums([&](int t) { e.tile_load(kSums + t, sums(t), ldc); }); },
        [&] { for_sums([&](int t) { e.tile_zero(kSums + t); }); });
    m.planes > 1 ? split_steps(e, m, a, k) : plain_steps(e, m, a, k);
    for_sums([&](int t) { e.tile_store(kSums + t, sums(t), ldc); });
  });
}

void product_in_vectors(Emit& e, const PairProduct& m, V rows, V k,
                        V accumulate) {
  MOEC_CHECK(!m.beside && m.planes == 1);
  const int L = e.lanes(), R = tile_rows(e.target());
  const int cols = m.vectors;
  LaneTile t{R, cols, L};
  e.loop(e.i(0), rows, R, [&](V row) {
    V c = e.at(m.c, e.mul(row, m.ldc), 1);
    Vs acc = e.if_values(
        accumulate, [&] { return load_tile(e, t, c, m.ldc / 4); },
        [&] { return zero_tile(e, t); });
    const size_t sums = acc.size();
    acc.push_back(e.at(m.a, e.mul(row, m.lda), 1));
    acc.push_back(m.b);
    auto steps = [&](Vs x, V n) {
      return e.loop(e.i(0), n, 2, std::move(x), [&](V, Vs x) {
        V& a = x[sums];
        V& b = x[sums + 1];
        Vs lanes;
        for (int j = 0; j < cols; ++j)
          lanes.push_back(e.load_raw(Ty::I32, e.at(b, j * L), 0));
        for (int r = 0; r < R; ++r) {
          V pair = e.splat(e.load_raw(Ty::I32, e.at(a, r * m.lda, 1), -1, 2));
          for (int j = 0; j < cols; ++j) {
            V& sum = x[cols * r + j];
            sum = e.dpbf16(sum, pair, lanes[j]);
          }
        }
        a = e.at(a, 1);
        b = e.at(b, m.ldb, 1);
        return x;
      });
    };
    if (m.a_step == 2 * kPairStep)
      acc = steps(acc, k);
    else
      acc = e.loop(e.i(0), k, kPairStep, acc, [&](V from, Vs x) {
        x = steps(x, e.min(e.sub(k, from), e.i(kPairStep)));
        x[sums] = e.at(x[sums], m.a_step - 2 * kPairStep, 1);
        return x;
      });
    acc.resize(sums);
    store_tile(e, t, acc, c, m.ldc / 4);
  });
}

}  // namespace

void begin_pairs(Emit& e) {
  if (e.target().amx_bf16) e.tile_config(std::vector<Emit::Tile>(8));
}
void end_pairs(Emit& e) {
  if (e.target().amx_bf16) e.tile_release();
}

void pair_product(Emit& e, const PairProduct& m, V rows, V k, V accumulate) {
  if (e.target().amx_bf16)
    product_in_tiles(e, m, rows, k, accumulate);
  else
    product_in_vectors(e, m, rows, k, accumulate);
}

V exp2_coarse(Emit& e, V x) {
  auto polynomial = [&](V r, std::initializer_list<double> coefficients) {
    V p = nullptr;
    for (double c : coefficients) p = p ? e.fma(p, r, e.f(c)) : e.f(c);
    return p;
  };
  if (e.target().avx512 && e.width(x) == e.lanes()) {
    V p = polynomial(e.fraction(x), {7.802452147e-2, 2.260671556e-1,
                                     6.958335638e-1, 9.999251962e-1});
    return e.scale_power(p, x);
  }
  // the exponent field n + 127 is 0 for the smallest x: a factor of zero
  V magic = e.f(12582912.0 + 127);
  x = e.max(e.f(-127), x);
  V t = e.add(x, magic);
  V p = polynomial(e.sub(x, e.sub(t, magic)),
                   {0.05517167, 0.24261113, 0.69326099, 0.99992807});
  return e.mul(p, e.bits(e.shl(e.bits(t, Ty::I32), e.i32(23)), Ty::F32));
}

namespace {

// The integer n in the low half of the f32 with the unit 1: there it is the
// exponent field in its high bits and kPowerSteps steps to the next below.
constexpr double kIntegers = 12582912;  // 1.5 * 2^23
constexpr int kPowerBits = 9, kBf16Bits = 7;
static_assert(kPowerSteps == 1 << kPowerBits);

// What the integers in the low halves stand for; `low` less what is the same in
// all.
V power_of_integers(Emit& e, V low, V high) {
  auto shifted = [&](V x, int n) {
    return e.lshr(x, e.vec(Ty::I16, std::vector<int64_t>(32, n)));
  };
  V n = e.revector(e.or_(e.shl(high, e.i32(16)), low), Ty::I16);
  // 1 + f stands for 2^f until here: less what that is too much
  std::vector<int64_t> excess;
  for (int k = 0; k < 64; ++k) {
    double f = (k + 0.2) / 64;  // fitted, so that the errors' mean is 0
    excess.push_back(std::lround((1 + f - std::exp2(f)) * kPowerSteps + 0.5));
  }
  V at = shifted(n, kPowerBits - 6);
  n = e.sub_floor(n, e.lookup(excess, at));
  return e.revector(shifted(n, kPowerBits - kBf16Bits), Ty::I32);
}

}  // namespace

V power_origin(Emit& e, V b) {
  constexpr int half = 1 << (kPowerBits - kBf16Bits - 1);  // rounds
  V n = e.fma(b, e.f(kPowerSteps), e.f(kIntegers + 127 * kPowerSteps + half));
  // so large that rounding could raise it past 16 bits: lower it by more
  constexpr double kLarge = 1 << 30, kShare = 1.0 / (1 << 22);
  V past = e.max(e.fma(e.abs(b), e.f(kPowerSteps), e.f(-kLarge)), e.f(0));
  return e.fma(past, e.f(-kShare), n);
}

V power_pair(Emit& e, V low, V high) {
  V base = e.bits(e.f(kIntegers), Ty::I32);
  auto integer = [&](V x) { return e.bits(e.max(x, e.f(kIntegers)), Ty::I32); };
  return power_of_integers(e, e.xor_(integer(low), base), integer(high));
}

V power_pair_inside(Emit& e, V low, V high, V* outside) {
  V base = e.bits(e.f(kIntegers), Ty::I32);
  Vs x;
  for (V v : {low, high}) {
    x.push_back(e.xor_(e.bits(v, Ty::I32), base));
    *outside = e.or_(*outside, x.back());
  }
  return power_of_integers(e, x[0], x[1]);
}

V power_outside(Emit& e, V outside) {
  return e.ne(e.lshr(outside, e.i32(16)), e.zero(Ty::I32, 0));
}

V round_pair(Emit& e, V low, V high) {
  auto rounded = [&](V x) { return e.add(e.bits(x, Ty::I32), e.i32(0x8000)); };
  V kept = e.and_(rounded(high), e.i32(int64_t(0xffff0000)));
  return e.or_(kept, e.lshr(rounded(low), e.i32(16)));
}

}  // namespace moec
