#include "codegen/cpu/emit.h"

#include <llvm/IR/IntrinsicsX86.h>

#include <array>

#include "codegen/cpu/emit_impl.h"
#include "support/error.h"

namespace moec {
using namespace llvm;

namespace {

bool fp(V v) { return v->getType()->isFPOrFPVectorTy(); }

int lanes_of(Type* t) {
  auto* v = dyn_cast<FixedVectorType>(t);
  return v ? static_cast<int>(v->getNumElements()) : 1;
}

}  // namespace

// ---------------------------------------------------------------- types

Type* Emit::Impl::scalar(Ty t) {
  switch (t) {
    case Ty::I1: return b.getInt1Ty();
    case Ty::I8: return b.getInt8Ty();
    case Ty::I16: return b.getInt16Ty();
    case Ty::I32: return b.getInt32Ty();
    case Ty::I64: return b.getInt64Ty();
    case Ty::F32: return b.getFloatTy();
    case Ty::F64: return b.getDoubleTy();
    case Ty::Ptr: return b.getPtrTy();
  }
  return nullptr;
}

Type* Emit::Impl::type(Ty t, int width) {
  if (width < 0) return scalar(t);
  return FixedVectorType::get(scalar(t), width ? width : target.lanes);
}

void Emit::Impl::match(V& x, V& y) {
  int wx = lanes_of(x->getType()), wy = lanes_of(y->getType());
  bool vx = x->getType()->isVectorTy(), vy = y->getType()->isVectorTy();
  if (vx && !vy) y = b.CreateVectorSplat(wx, y);
  if (vy && !vx) x = b.CreateVectorSplat(wy, x);
  MOEC_CHECK(x->getType() == y->getType(), "operands of unlike types in {}",
             std::string(fn->getName()));
}

V Emit::Impl::intrinsic(unsigned id, std::initializer_list<V> args) {
  return b.CreateIntrinsic(id, {(*args.begin())->getType()}, ArrayRef(args));
}

// ------------------------------------------------------------- function

Emit::Emit(Module& m, const Target& t, const std::string& name)
    : p_(std::make_unique<Impl>(m, t)) {
  auto& b = p_->b;
  Type* args[] = {b.getPtrTy(), b.getInt64Ty(), b.getPtrTy()};
  p_->fn = p_->kernel =
      Function::Create(FunctionType::get(b.getVoidTy(), args, false),
                       Function::ExternalLinkage, name, m);
  p_->fn->addFnAttr(Attribute::NoUnwind);  // no unwind table per kernel
  p_->fn->getArg(0)->setName("buffers");
  p_->fn->getArg(1)->setName("task");
  p_->fn->getArg(2)->setName("scratch");
  b.SetInsertPoint(BasicBlock::Create(m.getContext(), "entry", p_->fn));
}

Emit::~Emit() = default;

void Emit::finish() { p_->b.CreateRetVoid(); }

void Emit::set_long_loops() { p_->long_loops = true; }
bool Emit::long_loops() const { return p_->long_loops; }

const Target& Emit::target() const { return p_->target; }

int Emit::lanes() const { return p_->target.lanes; }

V Emit::buffer(int i) {
  MOEC_CHECK(p_->fn == p_->kernel, "buffer() inside a defined function");
  V& v = p_->buffers[i];
  if (v) return v;
  BasicBlock& entry = p_->fn->getEntryBlock();
  IRBuilder<> b(&entry, entry.begin());
  V slot = b.CreateConstGEP1_64(b.getPtrTy(), p_->fn->getArg(0), i);
  return v = b.CreateLoad(b.getPtrTy(), slot, "buf" + std::to_string(i));
}

V Emit::task() { return p_->kernel->getArg(1); }

V Emit::scratch() { return p_->kernel->getArg(2); }

Fn Emit::define(const std::string& name, const std::vector<Ty>& params,
                const std::function<void(const Vs&)>& body) {
  Fn& known = p_->defined[name];
  if (known) return known;
  auto& b = p_->b;
  std::vector<Type*> types;
  for (Ty t : params) types.push_back(p_->scalar(t));
  Fn f = Function::Create(FunctionType::get(b.getVoidTy(), types, false),
                          Function::InternalLinkage,
                          p_->kernel->getName() + "." + name, p_->module);
  f->addFnAttr(Attribute::NoUnwind);
  f->addFnAttr(Attribute::NoInline);
  known = f;
  auto saved_point = b.saveIP();
  Function* saved_fn = p_->fn;
  p_->fn = f;
  b.SetInsertPoint(BasicBlock::Create(p_->module.getContext(), "entry", f));
  Vs args;
  for (Argument& a : f->args()) args.push_back(&a);
  body(args);
  b.CreateRetVoid();
  p_->fn = saved_fn;
  b.restoreIP(saved_point);
  return f;
}

void Emit::call(Fn f, const Vs& args) {
  p_->b.CreateCall(f->getFunctionType(), f, args);
}

// ------------------------------------------------------------ constants

V Emit::i(int64_t v) { return p_->b.getInt64(v); }
V Emit::i32(int64_t v) { return p_->b.getInt32(static_cast<uint32_t>(v)); }
V Emit::f(double v) { return ConstantFP::get(p_->b.getFloatTy(), v); }
V Emit::f64(double v) { return ConstantFP::get(p_->b.getDoubleTy(), v); }
V Emit::i1(bool v) { return p_->b.getInt1(v); }

V Emit::zero(Ty t, int width) {
  return Constant::getNullValue(p_->type(t, width));
}

V Emit::iota(Ty t, int width) {
  std::vector<int64_t> v(width ? width : lanes());
  for (size_t k = 0; k < v.size(); ++k) v[k] = static_cast<int64_t>(k);
  return vec(t, v);
}

V Emit::vec(Ty t, const std::vector<int64_t>& v) {
  std::vector<Constant*> c;
  for (int64_t x : v) c.push_back(ConstantInt::get(p_->scalar(t), x, true));
  return ConstantVector::get(c);
}

V Emit::vec(const std::vector<double>& v) {
  std::vector<Constant*> c;
  for (double x : v) c.push_back(cast_or_null<Constant>(f(x)));
  return ConstantVector::get(c);
}

int Emit::width(V v) const { return lanes_of(v->getType()); }
bool Emit::is_float(V v) const { return fp(v); }
bool Emit::is_vector(V v) const { return v->getType()->isVectorTy(); }

// ----------------------------------------------------------- arithmetic

#define MOEC_BINARY(name, fp_op, int_op)                   \
  V Emit::name(V x, V y) {                                 \
    p_->match(x, y);                                       \
    return fp(x) ? p_->b.fp_op(x, y) : p_->b.int_op(x, y); \
  }
MOEC_BINARY(add, CreateFAdd, CreateAdd)
MOEC_BINARY(sub, CreateFSub, CreateSub)
MOEC_BINARY(mul, CreateFMul, CreateMul)
MOEC_BINARY(div, CreateFDiv, CreateSDiv)
MOEC_BINARY(rem, CreateFRem, CreateSRem)
MOEC_BINARY(eq, CreateFCmpOEQ, CreateICmpEQ)
MOEC_BINARY(ne, CreateFCmpUNE, CreateICmpNE)
MOEC_BINARY(lt, CreateFCmpOLT, CreateICmpSLT)
MOEC_BINARY(le, CreateFCmpOLE, CreateICmpSLE)
MOEC_BINARY(gt, CreateFCmpOGT, CreateICmpSGT)
MOEC_BINARY(ge, CreateFCmpOGE, CreateICmpSGE)
#undef MOEC_BINARY

#define MOEC_INTEGER(name, op) \
  V Emit::name(V x, V y) {     \
    p_->match(x, y);           \
    return p_->b.op(x, y);     \
  }
MOEC_INTEGER(udiv, CreateUDiv)
MOEC_INTEGER(urem, CreateURem)
MOEC_INTEGER(and_, CreateAnd)
MOEC_INTEGER(or_, CreateOr)
MOEC_INTEGER(xor_, CreateXor)
MOEC_INTEGER(shl, CreateShl)
MOEC_INTEGER(lshr, CreateLShr)
MOEC_INTEGER(ashr, CreateAShr)
MOEC_INTEGER(ult, CreateICmpULT)
#undef MOEC_INTEGER

V Emit::not_(V v) { return p_->b.CreateNot(v); }
V Emit::neg(V v) { return fp(v) ? p_->b.CreateFNeg(v) : p_->b.CreateNeg(v); }
V Emit::add(V x, int64_t y) {
  return add(x, ConstantInt::get(x->getType(), y, true));
}
V Emit::mul(V x, int64_t y) {
  return mul(x, ConstantInt::get(x->getType(), y, true));
}
V Emit::ceil_div(V n, int64_t d) {
  return udiv(add(n, d - 1), ConstantInt::get(n->getType(), d));
}

V Emit::fma(V x, V y, V z) {
  p_->match(x, y);
  p_->match(x, z);
  p_->match(y, z);
  // llvm.fma without the instruction is a library call per lane
  if (!p_->target.fma) return add(mul(x, y), z);
  return p_->intrinsic(Intrinsic::fma, {x, y, z});
}

// Compare and select is the one form that is a single vminps / vmaxps.
V Emit::min(V x, V y) {
  p_->match(x, y);
  if (!fp(x)) return p_->intrinsic(Intrinsic::smin, {x, y});
  return select(lt(x, y), x, y);
}
V Emit::max(V x, V y) {
  p_->match(x, y);
  if (!fp(x)) return p_->intrinsic(Intrinsic::smax, {x, y});
  return select(gt(x, y), x, y);
}
V Emit::nan_min(V x, V y) {
  p_->match(x, y);
  return select(is_nan(x), x, min(x, y));
}
V Emit::nan_max(V x, V y) {
  p_->match(x, y);
  return select(is_nan(x), x, max(x, y));
}
V Emit::umin(V x, V y) {
  p_->match(x, y);
  return p_->intrinsic(Intrinsic::umin, {x, y});
}
V Emit::umax(V x, V y) {
  p_->match(x, y);
  return p_->intrinsic(Intrinsic::umax, {x, y});
}

V Emit::abs(V v) {
  if (fp(v)) return p_->intrinsic(Intrinsic::fabs, {v});
  return max(v, neg(v));
}
V Emit::sqrt(V v) { return p_->intrinsic(Intrinsic::sqrt, {v}); }
V Emit::copysign(V x, V y) {
  p_->match(x, y);
  return p_->intrinsic(Intrinsic::copysign, {x, y});
}
V Emit::fraction(V v) {
  auto& b = p_->b;
  // towards -inf, without the exception of inexact results
  return b.CreateIntrinsic(
      Intrinsic::x86_avx512_mask_reduce_ps_512, {},
      {v, b.getInt32(9), v, b.getInt16(0xffff), b.getInt32(4)});
}
V Emit::scale_power(V x, V n) {
  auto& b = p_->b;
  return b.CreateIntrinsic(Intrinsic::x86_avx512_mask_scalef_ps_512, {},
                           {x, n, x, b.getInt16(0xffff), b.getInt32(4)});
}
V Emit::lookup(const std::vector<int64_t>& table, V at) {
  auto& b = p_->b;
  Type* bytes = FixedVectorType::get(b.getInt8Ty(), 64);
  V all = b.CreateIntrinsic(Intrinsic::x86_avx512_permvar_qi_512, {},
                            {vec(Ty::I8, table), b.CreateBitCast(at, bytes)});
  std::vector<Constant*> low;
  for (int k = 0; k < 64; ++k) low.push_back(b.getInt1(k % 2 == 0));
  all = b.CreateSelect(ConstantVector::get(low), all,
                       Constant::getNullValue(bytes));
  return b.CreateBitCast(all, at->getType());
}
V Emit::sub_floor(V x, V y) {
  p_->match(x, y);
  return p_->b.CreateBinaryIntrinsic(Intrinsic::usub_sat, x, y);
}
V Emit::is_nan(V v) { return p_->b.CreateFCmpUNO(v, v); }

V Emit::mulhi_u32(V x, V y) {
  p_->match(x, y);
  V wide = mul(zext(x, Ty::I64), zext(y, Ty::I64));
  return trunc(lshr(wide, ConstantInt::get(wide->getType(), 32)), Ty::I32);
}

V Emit::select(V c, V yes, V no) {
  p_->match(yes, no);
  if (is_vector(c) && !is_vector(yes)) {
    yes = splat(yes, width(c));
    no = splat(no, width(c));
  }
  return p_->b.CreateSelect(c, yes, no);
}

// -------------------------------------------------------------- vectors

V Emit::splat(V s, int w) {
  if (is_vector(s)) return s;
  return p_->b.CreateVectorSplat(w ? w : lanes(), s);
}
V Emit::extract(V v, int lane) {
  return p_->b.CreateExtractElement(v, static_cast<uint64_t>(lane));
}
V Emit::extract(V v, V lane) { return p_->b.CreateExtractElement(v, lane); }
V Emit::insert(V v, V s, int lane) {
  return p_->b.CreateInsertElement(v, s, static_cast<uint64_t>(lane));
}
V Emit::shuffle(V x, V y, const std::vector<int>& lanes) {
  return y ? p_->b.CreateShuffleVector(x, y, lanes)
           : p_->b.CreateShuffleVector(x, lanes);
}
V Emit::concat(V low, V high) {
  std::vector<int> idx(2 * width(low));
  for (size_t k = 0; k < idx.size(); ++k) idx[k] = static_cast<int>(k);
  return shuffle(low, high, idx);
}
V Emit::slice(V v, int from, int w) {
  std::vector<int> idx(w);
  for (int k = 0; k < w; ++k) idx[k] = from + k;
  return shuffle(v, nullptr, idx);
}

V Emit::opaque(V v) {
  if (v->getType()->getScalarSizeInBits() != 32) return v;
  V x = bits(v, Ty::F32);
  x = p_->b.CreateArithmeticFence(x, x->getType());
  return is_float(v) ? x : bits(x, Ty::I32);
}

namespace {

// Elements of x and y picked within each 128-bit lane of four elements; an
// index below 4 is x's, from 4 on y's. One unpack instruction.
V in_lanes(Emit& e, V x, V y, std::array<int, 4> pick) {
  const int n = e.width(x);
  std::vector<int> idx;
  for (int lane = 0; lane < n; lane += 4)
    for (int k : pick) idx.push_back(lane + (k < 4 ? k : n + k - 4));
  return e.shuffle(x, y, idx);
}

// Whole 128-bit lanes of x and y, counted through both.
V pick_lanes(Emit& e, V x, V y, const std::vector<int>& lanes) {
  std::vector<int> idx;
  for (int lane : lanes)
    for (int k = 0; k < 4; ++k) idx.push_back(4 * lane + k);
  return e.shuffle(x, y, idx);
}

}  // namespace

Vs Emit::transpose(Vs rows) {
  const int n = static_cast<int>(rows.size());
  MOEC_CHECK(n == width(rows[0]) && (n == 4 || n == 8 || n == 16));
  // 4x4 blocks within 128-bit lanes, by unpacks: cheap on every level. Lane i
  // of t[4g + c] then holds column 4i + c of the rows 4g .. 4g+3.
  Vs t(n);
  for (int g = 0; g < n; g += 4) {
    V a = in_lanes(*this, rows[g], rows[g + 1], {0, 4, 1, 5});
    V b = in_lanes(*this, rows[g], rows[g + 1], {2, 6, 3, 7});
    V c = in_lanes(*this, rows[g + 2], rows[g + 3], {0, 4, 1, 5});
    V d = in_lanes(*this, rows[g + 2], rows[g + 3], {2, 6, 3, 7});
    t[g] = in_lanes(*this, a, c, {0, 1, 4, 5});
    t[g + 1] = in_lanes(*this, a, c, {2, 3, 6, 7});
    t[g + 2] = in_lanes(*this, b, d, {0, 1, 4, 5});
    t[g + 3] = in_lanes(*this, b, d, {2, 3, 6, 7});
  }
  if (n == 4) return t;
  for (V& x : t) x = opaque(x);
  // then the lanes themselves: a 2x2 or 4x4 transpose of whole lanes
  Vs out(n);
  for (int c = 0; c < 4; ++c) {
    if (n == 8) {
      out[c] = pick_lanes(*this, t[c], t[4 + c], {0, 2});
      out[4 + c] = pick_lanes(*this, t[c], t[4 + c], {1, 3});
      continue;
    }
    V lo01 = pick_lanes(*this, t[c], t[4 + c], {0, 1, 4, 5});
    V hi01 = pick_lanes(*this, t[c], t[4 + c], {2, 3, 6, 7});
    V lo23 = pick_lanes(*this, t[8 + c], t[12 + c], {0, 1, 4, 5});
    V hi23 = pick_lanes(*this, t[8 + c], t[12 + c], {2, 3, 6, 7});
    out[c] = pick_lanes(*this, lo01, lo23, {0, 2, 4, 6});
    out[4 + c] = pick_lanes(*this, lo01, lo23, {1, 3, 5, 7});
    out[8 + c] = pick_lanes(*this, hi01, hi23, {0, 2, 4, 6});
    out[12 + c] = pick_lanes(*this, hi01, hi23, {1, 3, 5, 7});
  }
  return out;
}

namespace {

V tree(Emit& e, V v, V (Emit::*op)(V, V)) {
  for (int half = e.width(v) / 2; half; half /= 2)
    v = (e.*op)(e.slice(v, 0, half), e.slice(v, half, half));
  return e.is_vector(v) ? e.extract(v, 0) : v;
}

}  // namespace

V Emit::hsum(V v) { return tree(*this, v, &Emit::add); }
V Emit::hmax(V v) { return tree(*this, v, &Emit::nan_max); }
V Emit::hmin(V v) { return tree(*this, v, &Emit::nan_min); }
V Emit::any(V m) { return p_->b.CreateOrReduce(m); }

V Emit::mask(V n, int w) {
  if (!w) w = lanes();
  // clamped in i64 first, so that the compare works on 32-bit lanes
  n = trunc(max(min(n, i(w)), i(0)), Ty::I32);
  return gt(splat(n, w), iota(Ty::I32, w));
}

// --------------------------------------------------------- control flow

Vs Emit::loop(V from, V to, int64_t step, Vs init,
              const std::function<Vs(V, Vs)>& body) {
  auto& b = p_->b;
  LLVMContext& ctx = p_->module.getContext();
  BasicBlock* pre = b.GetInsertBlock();
  auto* head = BasicBlock::Create(ctx, "loop", p_->fn);
  auto* done = BasicBlock::Create(ctx, "done", p_->fn);
  b.CreateCondBr(b.CreateICmpSLT(from, to), head, done);
  b.SetInsertPoint(head);
  PHINode* index = b.CreatePHI(b.getInt64Ty(), 2);
  index->addIncoming(from, pre);
  std::vector<PHINode*> phis;
  Vs carried;
  for (V v : init) {
    phis.push_back(b.CreatePHI(v->getType(), 2));
    phis.back()->addIncoming(v, pre);
    carried.push_back(phis.back());
  }
  Vs next = body(index, carried);
  MOEC_CHECK(next.size() == init.size(), "loop carries unlike value counts");
  V inc = b.CreateAdd(index, b.getInt64(step), "", true, true);
  BasicBlock* latch = b.GetInsertBlock();
  index->addIncoming(inc, latch);
  for (size_t k = 0; k < phis.size(); ++k) phis[k]->addIncoming(next[k], latch);
  b.CreateCondBr(b.CreateICmpSLT(inc, to), head, done);
  b.SetInsertPoint(done);
  Vs out;
  for (size_t k = 0; k < phis.size(); ++k) {
    PHINode* p = b.CreatePHI(init[k]->getType(), 2);
    p->addIncoming(init[k], pre);
    p->addIncoming(next[k], latch);
    out.push_back(p);
  }
  return out;
}

void Emit::loop(V from, V to, int64_t step,
                const std::function<void(V)>& body) {
  loop(from, to, step, {}, [&](V k, Vs) {
    body(k);
    return Vs{};
  });
}

Vs Emit::while_(Vs init, const std::function<V(const Vs&)>& cond,
                const std::function<Vs(Vs)>& body) {
  auto& b = p_->b;
  LLVMContext& ctx = p_->module.getContext();
  BasicBlock* pre = b.GetInsertBlock();
  auto* head = BasicBlock::Create(ctx, "while", p_->fn);
  auto* inside = BasicBlock::Create(ctx, "do", p_->fn);
  auto* done = BasicBlock::Create(ctx, "done", p_->fn);
  b.CreateBr(head);
  b.SetInsertPoint(head);
  std::vector<PHINode*> phis;
  Vs carried;
  for (V v : init) {
    phis.push_back(b.CreatePHI(v->getType(), 2));
    phis.back()->addIncoming(v, pre);
    carried.push_back(phis.back());
  }
  b.CreateCondBr(cond(carried), inside, done);
  b.SetInsertPoint(inside);
  Vs next = body(carried);
  MOEC_CHECK(next.size() == init.size(), "while carries unlike value counts");
  for (size_t k = 0; k < phis.size(); ++k)
    phis[k]->addIncoming(next[k], b.GetInsertBlock());
  b.CreateBr(head);
  b.SetInsertPoint(done);
  return carried;
}

Vs Emit::if_values(V c, const std::function<Vs()>& then,
                   const std::function<Vs()>& otherwise) {
  if (auto* known = dyn_cast<ConstantInt>(c)) {
    if (known->isOne()) return then();
    return otherwise ? otherwise() : Vs{};
  }
  auto& b = p_->b;
  LLVMContext& ctx = p_->module.getContext();
  auto* yes = BasicBlock::Create(ctx, "then", p_->fn);
  auto* no = BasicBlock::Create(ctx, "else", p_->fn);
  auto* end = BasicBlock::Create(ctx, "end", p_->fn);
  b.CreateCondBr(c, yes, no);
  b.SetInsertPoint(yes);
  Vs x = then();
  BasicBlock* yes_end = b.GetInsertBlock();
  b.CreateBr(end);
  b.SetInsertPoint(no);
  Vs y = otherwise ? otherwise() : Vs{};
  BasicBlock* no_end = b.GetInsertBlock();
  b.CreateBr(end);
  b.SetInsertPoint(end);
  MOEC_CHECK(x.size() == y.size(), "branches give unlike value counts");
  Vs out;
  for (size_t k = 0; k < x.size(); ++k) {
    PHINode* p = b.CreatePHI(x[k]->getType(), 2);
    p->addIncoming(x[k], yes_end);
    p->addIncoming(y[k], no_end);
    out.push_back(p);
  }
  return out;
}

void Emit::if_(V c, const std::function<void()>& then,
               const std::function<void()>& otherwise) {
  auto wrap = [](const std::function<void()>& f) {
    return [&f] {
      if (f) f();
      return Vs{};
    };
  };
  if_values(c, wrap(then), wrap(otherwise));
}

}  // namespace moec
