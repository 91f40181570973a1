#include "codegen/cpu/split_f32.h"

namespace moec {

Vs split_f32(Emit& e, V x) {
  e.set_long_loops();
  auto rounded = [&](V v) {
    V up = e.add(e.bits(v, Ty::I32), e.i32(0x8000));
    V kept = e.and_(up, e.i32(int64_t(0xffff0000)));
    return e.opaque(e.bits(kept, Ty::F32));
  };
  x = e.opaque(x);
  V high = rounded(x), rest = e.sub(x, high);
  V mid = rounded(rest);
  return {high, mid, e.sub(rest, mid)};
}

V join_pair(Emit& e, V low, V high) {
  return e.or_(e.lshr(e.bits(low, Ty::I32), e.i32(16)), e.bits(high, Ty::I32));
}

V join_row(Emit& e, V first, V second) {
  std::vector<int> odd;
  for (int k = 0; k < 2 * e.lanes(); ++k) odd.push_back(2 * k + 1);
  return e.shuffle(e.revector(first, Ty::I16), e.revector(second, Ty::I16),
                   odd);
}

namespace {

Vs join(Emit& e, V (*joined)(Emit&, V, V), V x, V y) {
  Vs a = split_f32(e, x), b = split_f32(e, y), planes;
  for (int i = 0; i < kSplitPlanes; ++i)
    planes.push_back(joined(e, a[i], b[i]));
  return planes;
}

}  // namespace

Vs split_pair(Emit& e, V low, V high) { return join(e, join_pair, low, high); }

Vs split_row(Emit& e, V first, V second) {
  return join(e, join_row, first, second);
}

void store_planes(Emit& e, const Vs& planes, V to, int64_t distance,
                  int align) {
  for (size_t i = 0; i < planes.size(); ++i)
    e.store_raw(planes[i], e.at(to, int64_t(i) * distance, 1), align);
}

void split_turned(Emit& e, const std::function<V(V first, int k)>& load,
                  const std::function<void(V r, const Vs& planes)>& put) {
  // all at once would not fit the registers
  const int L = e.lanes();
  V turned = e.local(4 * 2 * L * L);
  e.loop(e.i(0), e.i(2 * L), L, [&](V first) {
    Vs x;
    for (int k = 0; k < L; ++k) x.push_back(load(first, k));
    x = e.transpose(x);
    for (int r = 0; r < L; ++r)
      e.vstore_aligned(DType::F32, x[r], e.at(e.at(turned, first), 2 * L * r));
  });
  e.loop(e.i(0), e.i(L), 1, [&](V r) {
    V row = e.at(turned, e.mul(r, 2 * L));
    auto half = [&](int i) {
      return e.vload_aligned(DType::F32, e.at(row, i));
    };
    put(r, split_row(e, half(0), half(L)));
  });
}

}  // namespace moec
