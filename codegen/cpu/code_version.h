#pragma once

namespace moec {

// Hash of the sources of codegen/, computed by the build: objects cached by
// other emitters are never taken.
extern const char* const kCodeVersion;

}  // namespace moec
