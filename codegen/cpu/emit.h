// The facade over LLVM's IRBuilder that every kernel emitter uses; including
// it pulls in no LLVM header. One Emit writes one kernel of the ABI in
// runtime/abi.h.
//
// A value `V` is a scalar or a vector. Arithmetic works on both, and a scalar
// operand beside a vector is splat. Register types of memory dtypes: f32,
// bf16, f16 -> f32; f64 -> f64; i32, u32 -> i32; i64 -> i64; bool -> i1 (one
// byte in memory). `lanes()` is the natural f32 vector width; functions with
// `width` take 0 for it. Code is not optimised afterwards: hoist invariants
// out of loops yourself. Constants and `at` with constant index are free.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "support/dtype.h"

namespace llvm {
class Function;
class Module;
class Type;
class Value;
}  // namespace llvm

namespace moec {

struct Target;

using V = llvm::Value*;
using Vs = std::vector<V>;
using Fn = llvm::Function*;

enum class Ty : uint8_t { I1, I8, I16, I32, I64, F32, F64, Ptr };

class Emit {
 public:
  // Starts the function `name` in the module; used by the JIT and the dumps.
  Emit(llvm::Module&, const Target&, const std::string& name);
  ~Emit();
  Emit(const Emit&) = delete;
  Emit& operator=(const Emit&) = delete;
  void finish();  // ends the kernel with a return
  // Says that the kernel's loops have long bodies, in which how addresses are
  // computed does not matter: tuning that takes time.
  void set_long_loops();
  bool long_loops() const;

  const Target& target() const;
  int lanes() const;

  // --- the kernel's arguments
  V buffer(int i);  // address of buffer i, loaded once in the entry block
  V task();         // i64
  V scratch();      // address of this thread's scratch

  // --- constants
  V i(int64_t);                            // i64
  V i32(int64_t);                          // i32, also u32
  V f(double);                             // f32
  V f64(double);                           // f64
  V i1(bool);                              // i1
  V zero(Ty, int width = -1);              // 0; width -1: scalar, 0: lanes()
  V iota(Ty, int width = 0);               // 0, 1, 2, ...
  V vec(Ty, const std::vector<int64_t>&);  // integer vector constant
  V vec(const std::vector<double>&);       // f32 vector constant

  // --- types
  int width(V) const;      // lanes of a vector, 1 for a scalar
  bool is_float(V) const;  // f32 or f64, scalar or vector
  bool is_vector(V) const;

  // --- arithmetic; integer or float by operand type
  V add(V, V);
  V sub(V, V);
  V mul(V, V);
  V div(V, V);  // float, or signed integer towards zero
  V rem(V, V);  // signed integer; sign of the dividend
  V udiv(V, V);
  V urem(V, V);
  V neg(V);
  V fma(V a, V b, V c);  // a*b + c: one rounding where the target has FMA
  V min(V a, V b);       // float: b if either is NaN; signed integer
  V max(V a, V b);       // float: b if either is NaN; signed integer
  V nan_min(V a, V b);   // NaN if either is NaN
  V nan_max(V a, V b);
  V umin(V, V);
  V umax(V, V);
  V abs(V);  // float or signed integer
  V sqrt(V);
  V floor(V);  // f32, as the two below
  V ceil(V);
  V round_even(V);  // to the nearest integer, ties to even
  V copysign(V magnitude, V sign);
  // Only where target().avx512, on vectors of lanes().
  V fraction(V);            // x - floor(x); 0 for infinities
  V scale_power(V x, V n);  // x * 2^floor(n); 0 for n = -inf
  // Element i is table[at[i] % 64] for i16 vectors; only where target().vbmi.
  V lookup(const std::vector<int64_t>& table, V at);
  V and_(V, V);  // integer or i1
  V or_(V, V);
  V xor_(V, V);
  V not_(V);
  V shl(V, V);
  V lshr(V, V);
  V ashr(V, V);
  V mulhi_u32(V, V);  // high 32 bits of the 64-bit product of u32
  V sub_floor(V, V);  // unsigned; 0 instead of what is below
  // Convenience with constants.
  V add(V, int64_t);
  V mul(V, int64_t);
  V ceil_div(V n, int64_t d);  // n >= 0

  // --- comparisons give i1; float comparisons are false on NaN but ne
  V eq(V, V);
  V ne(V, V);
  V lt(V, V);  // signed
  V le(V, V);
  V gt(V, V);
  V ge(V, V);
  V ult(V, V);  // unsigned integer
  V is_nan(V);
  V select(V cond, V yes, V no);

  // --- casts
  V cast(V, DType from, DType to);  // register types; to bf16/f16 rounds the
                                    // f32; float to int saturates, NaN gives 0
  V sext(V, Ty);                    // i1 becomes -1
  V zext(V, Ty);                    // i1 becomes 1
  V trunc(V, Ty);
  V bits(V, Ty);      // reinterpret, same element size
  V revector(V, Ty);  // reinterpret a vector in elements of type Ty
  V to_f32(V);        // from signed integer, f64 or f32
  V u32_to_f32(V);
  V to_f64(V);               // from signed integer or f32
  V to_bf16(V);              // f32 -> i16 holding bf16, nearest even
  V to_bf16(V low, V high);  // both, one after the other
  V from_bf16(V);            // i16 -> f32
  V to_f16(V);               // f32 -> i16 holding f16, nearest even
  V from_f16(V);

  // --- vectors
  V splat(V scalar, int width = 0);
  V extract(V, int lane);
  V extract(V, V lane);
  V insert(V, V scalar, int lane);
  V shuffle(V a, V b, const std::vector<int>& lanes);  // b may be null
  V concat(V low, V high);
  V slice(V, int from, int width);  // lanes from .. from+width-1
  Vs transpose(Vs);                 // n vectors of n lanes, n = 4, 8 or 16
  // v; how it was made is hidden, if it has 32 bits a lane, from instruction
  // selection, which else slowly looks for patterns through whole networks.
  V opaque(V v);
  V hsum(V);  // pairwise tree: halves added, log2 rounds
  V hmax(V);  // NaN in any lane gives NaN
  V hmin(V);
  V any(V mask);               // i1
  V mask(V n, int width = 0);  // first n lanes (i64, any sign) as i1 vector

  // --- memory. `at` gives base + index * elem_bytes; index is an i64
  V at(V base, V index, int64_t elem_bytes = 4);
  V at(V base, int64_t index, int64_t elem_bytes = 4);
  V load(DType, V p);           // scalar in its register type
  void store(DType, V v, V p);  // scalar or vector, any alignment >= element
  // Vector of `width` elements. Masked-off lanes read 0 and touch no memory.
  V vload(DType, V p, V mask = nullptr, int width = 0);
  void vstore(DType, V v, V p, V mask = nullptr);
  V vload_aligned(DType, V p, int width = 0);  // to the vector's size
  void vstore_aligned(DType, V v, V p);
  void vstore_stream(DType, V v, V p);  // non-temporal, aligned; then fence()
  void fence();                         // sfence
  V gather(DType, V base, V index, V mask = nullptr);  // base[index[l]]
  V vload_strided(DType, V p, V stride, V mask = nullptr, int width = 0);
  void vstore_strided(DType, V v, V p, V stride, V mask = nullptr);
  // Raw forms: no conversion, element type as given, width -1 for a scalar.
  V load_raw(Ty, V p, int width = -1, int align = 0, V mask = nullptr);
  void store_raw(V v, V p, int align = 0, V mask = nullptr);
  V local(int64_t bytes, int align = 64);  // stack array of this call
  void prefetch(V p, int locality = 3, bool write = false);  // 3 = L1, 2 = L2

  // --- bf16 dot: acc[l] += a[2l]*b[2l] + a[2l+1]*b[2l+1]; a and b have twice
  // the lanes of acc as i16 (or the same bytes as i32). vdpbf16ps where the
  // target has it, else two fma on widened halves.
  V dpbf16(V acc, V a, V b);
  // Lane l of the result holds bf16(a[l]) in its low and bf16(b[l]) in its
  // high half, as i32: one row pair for dpbf16.
  V pack_bf16_pair(V a, V b);

  // --- bf16 tiles (AMX), where target().amx_bf16. Registers 0..7 hold up to 16
  // rows of up to 64 bytes. Each kernel that uses them configures them first,
  // which also zeroes them, and releases them in every path before it ends; a
  // function called in between may use them as it likes, but keeps the
  // configuration. Strides are in bytes.
  struct Tile {
    int rows = 16, bytes = 64;
  };
  void tile_config(const std::vector<Tile>&);  // of registers 0, 1, ...
  void tile_release();
  void tile_zero(int tile);
  void tile_load(int tile, V p, V stride);
  void tile_load_stream(int tile, V p, V stride);  // will not be read again
  void tile_store(int tile, V p, V stride);
  // c[m][n] += sum over k of a[m][2k] * b[k][2n] + a[m][2k+1] * b[k][2n+1]:
  // a has c's rows, b has c's columns as pairs, and its rows are a's pairs.
  void tile_dpbf16(int c, int a, int b);

  // --- control flow. Bodies may open further blocks.
  // for (k = from; k < to; k += step) carried = body(k, carried)
  Vs loop(V from, V to, int64_t step, Vs init,
          const std::function<Vs(V k, Vs carried)>& body);
  void loop(V from, V to, int64_t step, const std::function<void(V k)>& body);
  // carried = body(carried) while cond(carried)
  Vs while_(Vs init, const std::function<V(const Vs&)>& cond,
            const std::function<Vs(Vs)>& body);
  void if_(V cond, const std::function<void()>& then,
           const std::function<void()>& otherwise = nullptr);
  Vs if_values(V cond, const std::function<Vs()>& then,
               const std::function<Vs()>& otherwise);
  // A function private to this kernel, defined once per name; not inlined.
  // Parameter types by `params`; the body gets the arguments. `local`,
  // `buffer`, `task` and `scratch` inside mean the function's own frame and
  // may not reach the kernel's arguments: pass what it needs.
  Fn define(const std::string& name, const std::vector<Ty>& params,
            const std::function<void(const Vs& args)>& body);
  void call(Fn, const Vs& args);

  // --- math on f32, scalar or vector; branch-free polynomials. NaN passes.
  V exp(V);      // <= 2 ulp; overflows to inf, results below 2^-125 are 0
  V exp_neg(V);  // exp(x) for x <= 0 (x < 88 works): cheaper, for softmax
  V exp2(V);     // 2^x, as exp
  V log(V);      // <= 2 ulp; log(0) = -inf, negative gives NaN
  V log1p(V);    // accurate near 0
  V expm1(V);    // accurate near 0
  V tanh(V);
  V sigmoid(V);
  V erf(V);
  V silu(V);        // x * sigmoid(x)
  V silu_slope(V);  // its derivative
  V gelu(V);        // tanh form
  V gelu_slope(V);
  V softplus(V);  // log(1 + exp(x))
  V sin(V);       // |x| up to 1e5 or so
  V cos(V);
  V rsqrt(V);       // 1 / sqrt(x), two correctly rounded steps
  V reciprocal(V);  // 1 / x of normal x to 1e-7: cheaper than div on AVX-512
  V pow(V x, V y);  // x > 0: exp(y * log(x))

 private:
  struct Impl;
  std::unique_ptr<Impl> p_;
};

}  // namespace moec
