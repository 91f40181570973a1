#include "codegen/cpu/fetch_rows.h"

#include <algorithm>
#include <bit>

namespace moec {

void start_fetch(Emit& e, V record, V base) {
  e.store_raw(base, record, 8);
  e.store_raw(e.i(0), e.at(record, 8, 1));
}

void fetch_some(Emit& e, V record, const FetchedRows& r) {
  constexpr int64_t kLine = 64;
  // a power of two; what follows a row does no harm
  const auto lines =
      int64_t(std::bit_ceil(uint64_t(r.channels * 4 + kLine - 1) / kLine));
  const int64_t some = std::min(lines, r.lines);
  V counter = e.at(record, 8, 1), line = e.load_raw(Ty::I64, counter);
  e.if_(e.lt(line, e.i(r.heads * r.count * lines)), [&] {
    e.store_raw(e.add(line, some), counter);
    V row = e.div(line, e.i(lines)), index = e.mul(row, r.row);
    if (r.heads > 1)
      index = e.add(e.mul(e.div(row, e.i(r.count)), r.head),
                    e.mul(e.rem(row, e.i(r.count)), r.row));
    V p = e.at(e.load_raw(Ty::Ptr, record, -1, 8), index);
    p = e.at(p, e.mul(e.rem(line, e.i(lines)), kLine), 1);
    for (int64_t k = 0; k < some; ++k)
      e.prefetch(e.at(p, kLine * k, 1), 2, r.write);
  });
}

void fetch_some(Emit& e, V records, const std::vector<FetchedRows>& all) {
  Fn fetch = e.define("fetch", {Ty::Ptr}, [&](const Vs& a) {
    for (size_t i = 0; i < all.size(); ++i)
      fetch_some(e, e.at(a[0], int64_t(i) * kFetchBytes, 1), all[i]);
  });
  e.call(fetch, {records});
}

}  // namespace moec
