// The reference of all ops, written from their definitions.
#pragma once
#include <string>

namespace moec {

// The text of docs/ops.md; a test keeps the file equal to it.
std::string ops_markdown();

}  // namespace moec
