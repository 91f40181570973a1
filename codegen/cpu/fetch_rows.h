// Rows that come from beyond L2, fetched a few lines at a time beside products
// in tile registers: a burst would fill the miss buffers. An address and a
// count of lines in memory tell how far it is.
#pragma once
#include <vector>

#include "codegen/cpu/emit.h"

namespace moec {

struct FetchedRows {
  int64_t row, channels;        // f32 from row to row, and of a row
  int64_t count;                // rows
  int64_t heads = 1, head = 0;  // so often, `head` f32 from one to the next
  int64_t lines = 2;            // at a time, at most a row
  bool write = false;
};
inline constexpr int64_t kFetchBytes = 16;  // of what is in memory
void start_fetch(Emit&, V record, V base);
void fetch_some(Emit&, V record, const FetchedRows&);
// The same of several, whose records follow each other, by one function.
void fetch_some(Emit&, V records, const std::vector<FetchedRows>&);

}  // namespace moec
