// Functions of a file that run only where the processor has more than the rest
// of the build may use:
//   MOEC_TARGET_BEGIN("avx2,bmi")
//   ...
//   MOEC_TARGET_END
// Headers come before it, so that their inline functions stay for everyone.
#pragma once

#define MOEC_PRAGMA(...) _Pragma(#__VA_ARGS__)
#ifdef __clang__
#define MOEC_TARGET_BEGIN(features)                                   \
  MOEC_PRAGMA(clang attribute push(__attribute__((target(features))), \
                                   apply_to = function))
#define MOEC_TARGET_END MOEC_PRAGMA(clang attribute pop)
#else
#define MOEC_TARGET_BEGIN(features) \
  MOEC_PRAGMA(GCC push_options) MOEC_PRAGMA(GCC target(features))
#define MOEC_TARGET_END MOEC_PRAGMA(GCC pop_options)
#endif
