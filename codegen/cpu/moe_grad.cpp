#include "codegen/cpu/moe_grad.h"

namespace moec {

std::vector<ColumnRun> column_runs(int64_t columns, const Target& t) {
  const int L = t.lanes, wide = wide_vectors(t);
  const int64_t vectors = (columns + L - 1) / L;
  int64_t many = vectors / wide, rest = vectors % wide;
  // two of two rather than three and one
  const bool even = wide == 3 && rest == 1 && many;
  if (even) --many;
  std::vector<ColumnRun> runs;
  int64_t first = 0;
  auto add = [&](int64_t count, int64_t width) {
    if (!count || !width) return;
    const int64_t end = first + count * width * L, last = end - width * L;
    const bool whole = end <= columns;
    if (whole || count > 1)
      runs.push_back({first, whole ? end : last, int(width)});
    if (!whole) runs.push_back({last, columns, int(width)});
    first = end;
  };
  add(many, wide);
  if (even)
    add(2, 2);
  else
    add(1, rest);
  return runs;
}

HiddenGrad::HiddenGrad(Emit& e, const MoeSpec& s, const MoeBuffers& buffer,
                       const ExpertTask& t)
    : e(e),
      features((s.hidden + e.lanes() - 1) / e.lanes() * e.lanes()),
      dh(e.at(buffer(MoeBuffer::DHidden),
              e.mul(t.begin, features * (is_gated(s.activation) ? 2 : 1)))),
      a(e.at(buffer(MoeBuffer::Activated), e.mul(t.begin, features))),
      slots(t.total) {}

V HiddenGrad::hidden(int gate, V feature, V slot) const {
  V row = gate ? e.add(feature, features) : feature;
  return e.at(dh, e.add(e.mul(row, slots), e.mul(slot, e.lanes())));
}

Fn collect_function(Emit& e, const std::string& name, const MoeSpec& s,
                    const std::vector<ColumnRun>& runs, int64_t pitch) {
  const int64_t L = e.lanes(), columns = runs.back().end;
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define(name + std::to_string(columns), params, [&](const Vs& a) {
    auto row_of = [&](V slot) {
      V choice = e.zext(e.load(DType::I32, e.at(a[1], slot)), Ty::I64);
      return e.at(a[0], e.mul(e.udiv(choice, e.i(s.top_k)), s.dim));
    };
    V last = e.add(a[3], -1);
    V mask = columns % L ? e.mask(e.i(columns % L)) : nullptr;
    e.loop(e.i(0), a[3], 1, [&](V slot) {
      V later = row_of(e.min(e.add(slot, 8), last));
      for (int64_t c = 0; c < columns; c += 16) e.prefetch(e.at(later, c));
      V from = row_of(slot);
      auto vector = [&](int64_t c) {
        if (c >= columns) return e.zero(Ty::F32, 0);
        return e.vload(DType::F32, e.at(from, c),
                       c + L > columns ? mask : nullptr);
      };
      for (const ColumnRun& r : runs) {
        const int64_t width = r.width(e);
        V to = e.at(a[2], e.mul(slot, width));
        for (int64_t tile = r.first; tile < r.end; tile += width)
          for (int64_t c = 0; c < width; c += L)
            e.vstore(DType::F32, vector(tile + c), e.at(to, tile * pitch + c));
      }
    });
  });
}

}  // namespace moec
