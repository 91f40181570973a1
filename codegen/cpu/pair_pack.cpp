// Rows packed as operands of the fused kernels, and unpacked from their sums.
#include <algorithm>

#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

namespace {

int64_t element_bytes(int planes) { return planes > 1 ? 4 : 2; }

V row_address(Emit& e, const PairRows& rows, V r) {
  V last = e.add(rows.count, -1), row = e.mul(e.min(r, last), rows.stride);
  return e.at(rows.base, row, element_bytes(rows.planes));
}

// `n` f32 of a row, zeros up to lanes().
V load_f32(Emit& e, V p, int64_t n) {
  if (n <= 0) return e.zero(Ty::F32, 0);
  return e.vload(DType::F32, p,
                 n < e.lanes() ? e.mask(e.i(n), e.lanes()) : nullptr);
}

// 2 * lanes() f32 along the sum as a step of an operand A.
void store_row(Emit& e, V first, V second, V to) {
  store_planes(e, split_row(e, first, second), to, 2 * kPairStep, 4);
}

// A line of an operand B: where the pair that begins with element `k` stands.
V pair_line(Emit& e, V dst, V k, int64_t ld) {
  V step = e.mul(e.lshr(k, e.i(5)), kSplitPlanes * kPairStep / 2);
  V pair = e.lshr(e.and_(k, e.i(kPairStep - 1)), e.i(1));
  return e.at(dst, e.mul(e.add(step, pair), ld), 1);
}

// `n` channels of width `room`, in dwords; zeros after them.
V load_pairs(Emit& e, V p, int64_t n) {
  const int L = e.lanes();
  if (n >= 2 * L) return e.load_raw(Ty::I32, p, 0, 2);
  V mask = e.mask(e.i(n), 2 * L);
  return e.revector(e.load_raw(Ty::I16, p, 2 * L, 2, mask), Ty::I32);
}

// A dword of each of `n` channels: that of row r low, of row r + 1 high.
V load_two_rows(Emit& e, V low, V high, int64_t n) {
  const int L = e.lanes();
  auto load = [&](V p) {
    V mask = n < L ? e.mask(e.i(n), L) : nullptr;
    return e.zext(e.load_raw(Ty::I16, p, L, 2, mask), Ty::I32);
  };
  return e.or_(load(low), e.shl(load(high), e.i32(16)));
}

// The same of two vectors, one after the other.
Vs join_rows(Emit& e, V low, V high, int64_t n) {
  const int L = e.lanes();
  V even = e.revector(load_pairs(e, low, n), Ty::I16);
  V odd = e.revector(load_pairs(e, high, n), Ty::I16);
  Vs out;
  for (int half = 0; half < 2; ++half) {
    std::vector<int> pick;
    for (int k = half * L; k < (half + 1) * L; ++k)
      pick.insert(pick.end(), {k, 2 * L + k});
    out.push_back(e.revector(e.shuffle(even, odd, pick), Ty::I32));
  }
  return out;
}

// body(first channel, how many of `step` exist) up to the padded width.
void for_channels(Emit& e, int64_t channels, int64_t step,
                  const std::function<void(V c, int64_t n)>& body) {
  const int64_t whole = channels / step * step;
  if (whole) e.loop(e.i(0), e.i(whole), step, [&](V c) { body(c, step); });
  for (int64_t c = whole; c < pair_padded(channels); c += step)
    body(e.i(c), std::max<int64_t>(0, channels - c));
}

}  // namespace

void pack_plain(Emit& e, const PairRows& rows, V from, V n, V dst, int64_t ld) {
  const int L = e.lanes();
  e.loop(e.i(0), n, 1, [&](V r) {
    V src = row_address(e, rows, e.add(from, r));
    V to = e.at(dst, e.mul(r, ld), 1);
    for_channels(e, rows.channels, 2 * L, [&](V c, int64_t n) {
      if (rows.planes > 1) {
        V p = e.at(src, c);
        if (rows.ahead)
          for (int half = 0; half < 2; ++half)
            e.prefetch(e.at(p, rows.ahead + half * L), 2);
        return store_row(e, load_f32(e, p, n), load_f32(e, e.at(p, L), n - L),
                         e.at(to, c, 2 * kSplitPlanes));
      }
      V x = n ? load_pairs(e, e.at(src, c, 2), n) : e.zero(Ty::I32, 0);
      e.store_raw(x, e.at(to, c, 2), 4);
    });
  });
}

void pack_columns(Emit& e, const PairRows& rows, V from, V dst, int64_t ld,
                  bool negate) {
  Vs src;
  for (int r = 0; r < e.lanes(); ++r)
    src.push_back(row_address(e, rows, e.add(from, r)));
  pack_columns(e, src, rows.channels, dst, ld, negate, rows.planes);
}

void pack_columns(Emit& e, const Vs& src, int64_t channels, V dst, int64_t ld,
                  bool negate, int planes) {
  const int L = e.lanes();
  if (planes > 1)
    return for_channels(e, channels, L, [&](V c, int64_t n) {
      V to = pair_line(e, dst, c, ld);
      Vs x;
      for (V p : src) {
        V v = load_f32(e, e.at(p, c), n);
        x.push_back(negate ? e.neg(v) : v);
      }
      x = e.transpose(x);
      for (int k = 0; k < L; k += 2)
        store_planes(e, split_pair(e, x[k], x[k + 1]), e.at(to, k / 2 * ld, 1),
                     kPairStep / 2 * ld, 4);
    });
  for_channels(e, channels, 2 * L, [&](V c, int64_t n) {
    V to = e.at(dst, e.mul(c, ld / 2), 1);
    Vs x;
    for (V p : src) {
      V v = n ? load_pairs(e, e.at(p, c, 2), n) : e.zero(Ty::I32, 0);
      x.push_back(negate ? e.xor_(v, e.i32(0x80008000u)) : v);
    }
    x = e.transpose(x);
    for (int k = 0; k < L; ++k) e.store_raw(x[k], e.at(to, k * ld, 1), 4);
  });
}

void pack_interleaved(Emit& e, const PairRows& rows, V from, V n, V dst,
                      int64_t ld) {
  const int L = e.lanes();
  e.loop(e.i(0), n, 2, [&](V r) {
    V low = row_address(e, rows, e.add(from, r));
    V high = row_address(e, rows, e.add(e.add(from, r), 1));
    if (rows.planes > 1) {
      V to = pair_line(e, dst, r, ld);
      return for_channels(e, rows.channels, L, [&](V c, int64_t n) {
        store_planes(e,
                     split_pair(e, load_f32(e, e.at(low, c), n),
                                load_f32(e, e.at(high, c), n)),
                     e.at(to, c), kPairStep / 2 * ld, 4);
      });
    }
    V to = e.at(dst, e.mul(r, ld / 2), 1);
    for_channels(e, rows.channels, 2 * L, [&](V c, int64_t n) {
      Vs pairs(2, e.zero(Ty::I32, 0));
      if (n) pairs = join_rows(e, e.at(low, c, 2), e.at(high, c, 2), n);
      for (int half = 0; half < 2; ++half)
        e.store_raw(pairs[half], e.at(e.at(to, c), half * L), 4);
    });
  });
}

namespace {

void pack_transposed_planes(Emit& e, const PairRows& rows, V from, V n, V dst,
                            int64_t ld) {
  const int L = e.lanes();
  V src = e.local(8 * 2 * L);  // the rows' addresses
  e.loop(e.i(0), n, 2 * L, [&](V r) {
    V first_row = e.add(from, r);
    e.loop(e.i(0), e.i(2 * L), 1, [&](V k) {
      V p = row_address(e, rows, e.add(first_row, k));
      e.store_raw(p, e.at(src, k, 8), 8);
    });
    V to = e.at(dst, r, 2 * rows.planes);
    for_channels(e, rows.channels, L, [&](V c, int64_t n) {
      V column = e.at(to, e.mul(c, ld), 1);
      split_turned(
          e,
          [&](V first, int k) {
            V at = e.at(e.at(src, first, 8), k, 8);
            V p = e.at(e.load_raw(Ty::Ptr, at, -1, 8), c);
            if (rows.ahead) e.prefetch(e.at(p, rows.ahead), 2);
            return load_f32(e, p, n);
          },
          [&](V k, const Vs& row) {
            store_planes(e, row, e.at(column, e.mul(k, ld), 1), 2 * kPairStep,
                         4);
          });
    });
  });
}

}  // namespace

void pack_transposed(Emit& e, const PairRows& rows, V from, V n, V dst,
                     int64_t ld) {
  if (rows.planes > 1) return pack_transposed_planes(e, rows, from, n, dst, ld);
  const int L = e.lanes();
  e.loop(e.i(0), n, 2 * L, [&](V r) {
    Vs src;
    for (int k = 0; k < 2 * L; ++k)
      src.push_back(row_address(e, rows, e.add(e.add(from, r), k)));
    V to = e.at(dst, r, 2);
    for_channels(e, rows.channels, L, [&](V c, int64_t n) {
      V column = e.at(to, e.mul(c, ld), 1);
      Vs x;
      for (int k = 0; k < L; ++k)
        x.push_back(n ? load_two_rows(e, e.at(src[2 * k], c, 2),
                                      e.at(src[2 * k + 1], c, 2), n)
                      : e.zero(Ty::I32, 0));
      x = e.transpose(x);
      for (int k = 0; k < L; ++k) e.store_raw(x[k], e.at(column, k * ld, 1), 2);
    });
  });
}

Vs unpack_pairs(Emit& e, V even, V odd) {
  const int n = e.width(even);
  Vs out;
  for (int half = 0; half < 2; ++half) {
    std::vector<int> pick;
    for (int t = 0; t < n / 2; ++t)
      for (int k : {0, n}) pick.push_back(pair_lane(t, half) + k);
    out.push_back(e.revector(e.shuffle(even, odd, pick), Ty::I32));
  }
  return out;
}

void unpack_columns(Emit& e, V src, int64_t ld, int64_t channels, V factor,
                    V dst, int64_t stride, V count,
                    const std::vector<int>& row_of, DType dtype) {
  const int L = e.lanes();
  auto block = [&](V c, int n) {
    V p = e.at(src, e.mul(c, ld), 1);
    Vs x;
    for (int k = 0; k < L; ++k)
      x.push_back(k < n ? e.mul(factor, e.vload(DType::F32, e.at(p, k * ld, 1)))
                        : e.zero(Ty::F32, 0));
    x = e.transpose(x);
    V mask = n < L ? e.mask(e.i(n)) : nullptr;
    auto store = [&](int k) {
      V row = e.at(dst, row_of[k] * stride, dtype_size(dtype));
      e.vstore(dtype, x[k], e.at(row, c, dtype_size(dtype)), mask);
    };
    e.if_(
        e.gt(count, e.i(*std::ranges::max_element(row_of))),
        [&] {
          for (int k = 0; k < L; ++k) store(k);
        },
        [&] {
          for (int k = 0; k < L; ++k)
            e.if_(e.lt(e.i(row_of[k]), count), [&] { store(k); });
        });
  };
  const int64_t whole = channels / L * L;
  if (whole) e.loop(e.i(0), e.i(whole), L, [&](V c) { block(c, L); });
  if (whole < channels) block(e.i(whole), int(channels - whole));
}

}  // namespace moec
