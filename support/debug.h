// MOEC_DEBUG: how much moec tells of its work, on stderr. 1: pass times and
// node counts; 2: the graph after each changed pass; 3: why fusions did not
// match; 4: LLVM IR; 5: assembly.
#pragma once

namespace moec {

// 0 if unset; a UsageError if it is not a number from 0 to 5.
int debug_level();

}  // namespace moec
