// Casts, loads and stores of Emit.
#include <llvm/IR/IntrinsicsX86.h>

#include "codegen/cpu/emit_impl.h"
#include "support/error.h"

namespace moec {
using namespace llvm;

namespace {

bool fp(V v) { return v->getType()->isFPOrFPVectorTy(); }

// The element type with v's shape.
Type* like(V v, Type* element) {
  if (auto* t = dyn_cast<FixedVectorType>(v->getType()))
    return FixedVectorType::get(element, t->getNumElements());
  return element;
}

// Bytes of a whole scalar or vector, the strictest alignment it can have.
uint64_t bytes_of(V v) {
  return v->getType()->getPrimitiveSizeInBits().getFixedValue() / 8;
}

}  // namespace

Type* Emit::Impl::memory_scalar(DType t) {
  switch (t) {
    case DType::F64: return b.getDoubleTy();
    case DType::F32: return b.getFloatTy();
    case DType::BF16:
    case DType::F16: return b.getInt16Ty();
    case DType::I32:
    case DType::U32: return b.getInt32Ty();
    case DType::I64: return b.getInt64Ty();
    case DType::Bool: return b.getInt8Ty();
  }
  return nullptr;
}

Align Emit::Impl::align(DType t) const { return Align(dtype_size(t)); }

// ---------------------------------------------------------------- casts

V Emit::sext(V v, Ty t) { return p_->b.CreateSExt(v, like(v, p_->scalar(t))); }
V Emit::zext(V v, Ty t) { return p_->b.CreateZExt(v, like(v, p_->scalar(t))); }
V Emit::trunc(V v, Ty t) {
  return p_->b.CreateTrunc(v, like(v, p_->scalar(t)));
}
V Emit::bits(V v, Ty t) {
  return p_->b.CreateBitCast(v, like(v, p_->scalar(t)));
}
V Emit::revector(V v, Ty t) {
  Type* s = p_->scalar(t);
  uint64_t n = bytes_of(v) * 8 / s->getPrimitiveSizeInBits();
  return p_->b.CreateBitCast(v, FixedVectorType::get(s, n));
}
V Emit::to_f32(V v) {
  Type* t = like(v, p_->b.getFloatTy());
  if (!fp(v)) return p_->b.CreateSIToFP(v, t);
  return p_->b.CreateFPCast(v, t);
}
V Emit::u32_to_f32(V v) {
  return p_->b.CreateUIToFP(v, like(v, p_->b.getFloatTy()));
}
V Emit::to_f64(V v) {
  Type* t = like(v, p_->b.getDoubleTy());
  if (!fp(v)) return p_->b.CreateSIToFP(v, t);
  return p_->b.CreateFPCast(v, t);
}

// A library call would stand for bfloat's own fptrunc on most targets.
V Emit::to_bf16(V v) {
  auto& b = p_->b;
  if (p_->target.bf16_dot && width(v) == 16) {
    V r =
        b.CreateIntrinsic(Intrinsic::x86_avx512bf16_cvtneps2bf16_512, {}, {v});
    return b.CreateBitCast(r, FixedVectorType::get(b.getInt16Ty(), 16));
  }
  V x = bits(v, Ty::I32);
  V odd = and_(lshr(x, i32(16)), i32(1));
  V rounded = lshr(add(x, add(odd, i32(0x7fff))), i32(16));
  V quiet = or_(lshr(x, i32(16)), i32(0x40));
  return trunc(select(is_nan(v), quiet, rounded), Ty::I16);
}
V Emit::from_bf16(V v) { return bits(shl(zext(v, Ty::I32), i32(16)), Ty::F32); }

V Emit::to_f16(V v) {
  auto& b = p_->b;
  if (p_->target.f16c) {
    V h = b.CreateFPTrunc(v, like(v, b.getHalfTy()));
    return b.CreateBitCast(h, like(v, b.getInt16Ty()));
  }
  // Large values saturate to infinity; subnormal results round through an
  // addition that aligns the mantissa; normal ones round half to even.
  V x = bits(v, Ty::I32);
  V sign = and_(x, i32(0x80000000u));
  V mag = xor_(x, sign);
  V special = select(gt(mag, i32(0x7f800000)), i32(0x7e00), i32(0x7c00));
  V magic = bits(i32(((127 - 15) + (23 - 10) + 1) << 23), Ty::F32);
  V small =
      sub(bits(add(bits(mag, Ty::F32), magic), Ty::I32), bits(magic, Ty::I32));
  V odd = and_(lshr(mag, i32(13)), i32(1));
  V bias = i32((static_cast<int64_t>(15 - 127) << 23) + 0xfff);
  V normal = lshr(add(add(mag, bias), odd), i32(13));
  V h = select(ge(mag, i32((127 + 16) << 23)), special,
               select(lt(mag, i32(113 << 23)), small, normal));
  return trunc(or_(h, lshr(sign, i32(16))), Ty::I16);
}
V Emit::from_f16(V v) {
  auto& b = p_->b;
  if (p_->target.f16c) {
    V h = b.CreateBitCast(v, like(v, b.getHalfTy()));
    return b.CreateFPExt(h, like(v, b.getFloatTy()));
  }
  V x = zext(v, Ty::I32);
  V mag = shl(and_(x, i32(0x7fff)), i32(13));
  V scale = bits(i32((127 + 127 - 15) << 23), Ty::F32);  // 2^112
  V value = bits(mul(bits(mag, Ty::F32), scale), Ty::I32);
  value = select(ge(mag, i32(0x7c00 << 13)), or_(mag, i32(0x7f800000)), value);
  return bits(or_(value, shl(and_(x, i32(0x8000)), i32(16))), Ty::F32);
}

V Emit::cast(V v, DType from, DType to) {
  auto& b = p_->b;
  const bool from_float = moec::is_float(from);
  if (to == DType::Bool) {
    if (from == DType::Bool) return v;
    return ne(v, Constant::getNullValue(v->getType()));
  }
  if (moec::is_float(to)) {
    Type* t = like(v, to == DType::F64 ? b.getDoubleTy() : b.getFloatTy());
    if (from_float)
      v = b.CreateFPCast(v, t);
    else if (from == DType::Bool || from == DType::U32)
      v = b.CreateUIToFP(v, t);
    else
      v = b.CreateSIToFP(v, t);
    if (to == DType::BF16 && from != DType::BF16) v = from_bf16(to_bf16(v));
    if (to == DType::F16 && from != DType::F16) v = from_f16(to_f16(v));
    return v;
  }
  Type* t = like(v, to == DType::I64 ? b.getInt64Ty() : b.getInt32Ty());
  if (from_float) {  // plain fptosi is poison out of range
    auto id = to == DType::U32 ? Intrinsic::fptoui_sat : Intrinsic::fptosi_sat;
    return b.CreateIntrinsic(id, {t, v->getType()}, {v});
  }
  bool is_signed = from == DType::I32 || from == DType::I64;
  return b.CreateIntCast(v, t, is_signed);
}

V Emit::Impl::widen(DType t, V raw) {
  V zero = Constant::getNullValue(raw->getType());
  if (t == DType::Bool) return b.CreateICmpNE(raw, zero);
  return raw;
}

V Emit::Impl::narrow(DType t, V v) {
  if (t == DType::Bool) return b.CreateZExt(v, like(v, b.getInt8Ty()));
  return v;
}

// --------------------------------------------------------------- memory

V Emit::at(V base, V index, int64_t elem_bytes) {
  auto& b = p_->b;
  if (auto* c = dyn_cast<ConstantInt>(index))
    return at(base, c->getSExtValue(), elem_bytes);
  switch (elem_bytes) {
    case 1: return b.CreateGEP(b.getInt8Ty(), base, index);
    case 2: return b.CreateGEP(b.getInt16Ty(), base, index);
    case 4: return b.CreateGEP(b.getInt32Ty(), base, index);
    case 8: return b.CreateGEP(b.getInt64Ty(), base, index);
    default:
      return b.CreateGEP(b.getInt8Ty(), base,
                         b.CreateMul(index, b.getInt64(elem_bytes)));
  }
}
V Emit::at(V base, int64_t index, int64_t elem_bytes) {
  auto& b = p_->b;
  if (index == 0) return base;
  return b.CreateConstGEP1_64(b.getInt8Ty(), base, index * elem_bytes);
}

namespace {

// From raw memory bits to the register type and back.
V decode(Emit& e, DType t, V raw) {
  if (t == DType::BF16) return e.from_bf16(raw);
  if (t == DType::F16) return e.from_f16(raw);
  return raw;
}
V encode(Emit& e, DType t, V v) {
  if (t == DType::BF16) return e.to_bf16(v);
  if (t == DType::F16) return e.to_f16(v);
  return v;
}

}  // namespace

V Emit::load(DType t, V p) {
  V raw = p_->b.CreateAlignedLoad(p_->memory_scalar(t), p, p_->align(t));
  return decode(*this, t, p_->widen(t, raw));
}

void Emit::store(DType t, V v, V p) {
  p_->b.CreateAlignedStore(encode(*this, t, p_->narrow(t, v)), p, p_->align(t));
}

V Emit::vload(DType t, V p, V mask, int w) {
  auto& b = p_->b;
  if (!w) w = mask ? width(mask) : lanes();
  Type* type = FixedVectorType::get(p_->memory_scalar(t), w);
  V raw = mask ? static_cast<V>(b.CreateMaskedLoad(
                     type, p, p_->align(t), mask, Constant::getNullValue(type)))
               : b.CreateAlignedLoad(type, p, p_->align(t));
  return decode(*this, t, p_->widen(t, raw));
}

void Emit::vstore(DType t, V v, V p, V mask) {
  V raw = encode(*this, t, p_->narrow(t, v));
  if (mask)
    p_->b.CreateMaskedStore(raw, p, p_->align(t), mask);
  else
    p_->b.CreateAlignedStore(raw, p, p_->align(t));
}

V Emit::vload_aligned(DType t, V p, int w) {
  Type* type = FixedVectorType::get(p_->memory_scalar(t), w ? w : lanes());
  auto* raw = p_->b.CreateAlignedLoad(
      type, p, Align(type->getPrimitiveSizeInBits().getFixedValue() / 8));
  return decode(*this, t, p_->widen(t, raw));
}

void Emit::vstore_aligned(DType t, V v, V p) {
  V raw = encode(*this, t, p_->narrow(t, v));
  p_->b.CreateAlignedStore(raw, p, Align(bytes_of(raw)));
}

void Emit::vstore_stream(DType t, V v, V p) {
  V raw = encode(*this, t, p_->narrow(t, v));
  StoreInst* s = p_->b.CreateAlignedStore(raw, p, Align(bytes_of(raw)));
  LLVMContext& ctx = p_->module.getContext();
  s->setMetadata(LLVMContext::MD_nontemporal,
                 MDNode::get(ctx, ConstantAsMetadata::get(p_->b.getInt32(1))));
}

void Emit::fence() { p_->b.CreateIntrinsic(Intrinsic::x86_sse_sfence, {}, {}); }

V Emit::gather(DType t, V base, V index, V mask) {
  auto& b = p_->b;
  if (!mask) mask = splat(i1(true), width(index));
  Type* type = FixedVectorType::get(p_->memory_scalar(t), width(index));
  V ptrs = b.CreateGEP(p_->memory_scalar(t), base, index);
  V raw = b.CreateMaskedGather(type, ptrs, p_->align(t), mask,
                               Constant::getNullValue(type));
  return decode(*this, t, p_->widen(t, raw));
}

V Emit::vload_strided(DType t, V p, V stride, V mask, int w) {
  if (!w) w = mask ? width(mask) : lanes();
  return gather(t, p, mul(splat(stride, w), iota(Ty::I64, w)), mask);
}

void Emit::vstore_strided(DType t, V v, V p, V stride, V mask) {
  auto& b = p_->b;
  int w = width(v);
  if (!mask) mask = splat(i1(true), w);
  V raw = encode(*this, t, p_->narrow(t, v));
  V ptrs = b.CreateGEP(p_->memory_scalar(t), p,
                       mul(splat(stride, w), iota(Ty::I64, w)));
  b.CreateMaskedScatter(raw, ptrs, p_->align(t), mask);
}

V Emit::load_raw(Ty t, V p, int w, int align, V mask) {
  Type* type = p_->type(t, w);
  Align a(align ? align : p_->scalar(t)->getPrimitiveSizeInBits() / 8);
  if (t == Ty::Ptr) a = Align(8);
  if (!mask) return p_->b.CreateAlignedLoad(type, p, a);
  return p_->b.CreateMaskedLoad(type, p, a, mask, Constant::getNullValue(type));
}

void Emit::store_raw(V v, V p, int align, V mask) {
  Align a(align ? align : v->getType()->getScalarSizeInBits() / 8);
  if (mask)
    p_->b.CreateMaskedStore(v, p, a, mask);
  else
    p_->b.CreateAlignedStore(v, p, a);
}

V Emit::local(int64_t bytes, int align) {
  BasicBlock& entry = p_->fn->getEntryBlock();
  IRBuilder<> b(&entry, entry.begin());
  AllocaInst* a = b.CreateAlloca(ArrayType::get(b.getInt8Ty(), bytes));
  a->setAlignment(Align(align));
  return a;
}

void Emit::prefetch(V p, int locality, bool write) {
  auto& b = p_->b;
  b.CreateIntrinsic(
      Intrinsic::prefetch, {b.getPtrTy()},
      {p, b.getInt32(write), b.getInt32(locality), b.getInt32(1)});
}

// ----------------------------------------------------------------- bf16

V Emit::reciprocal(V x) {
  auto& b = p_->b;
  if (!p_->target.avx512 || width(x) != 16) return div(f(1), x);
  V r = b.CreateIntrinsic(Intrinsic::x86_avx512_rcp14_ps_512, {},
                          {x, zero(Ty::F32, 16), b.getInt16(0xffff)});
  // one step of Newton's method doubles the 14 bits
  return fma(r, fma(neg(x), r, f(1)), r);
}

V Emit::dpbf16(V acc, V x, V y) {
  auto& b = p_->b;
  if (p_->target.bf16_dot && width(acc) == 16) {
    Type* t = FixedVectorType::get(b.getBFloatTy(), 32);
    return b.CreateIntrinsic(
        Intrinsic::x86_avx512bf16_dpbf16ps_512, {},
        {acc, b.CreateBitCast(x, t), b.CreateBitCast(y, t)});
  }
  x = revector(x, Ty::I32);
  y = revector(y, Ty::I32);
  auto low = [&](V v) { return bits(shl(v, i32(16)), Ty::F32); };
  auto high = [&](V v) { return bits(and_(v, i32(0xffff0000u)), Ty::F32); };
  return fma(high(x), high(y), fma(low(x), low(y), acc));
}

V Emit::to_bf16(V low, V high) {
  auto& b = p_->b;
  if (!p_->target.bf16_dot || width(low) != 16)
    return concat(to_bf16(low), to_bf16(high));
  V both = b.CreateIntrinsic(Intrinsic::x86_avx512bf16_cvtne2ps2bf16_512, {},
                             {high, low});
  return b.CreateBitCast(both, FixedVectorType::get(b.getInt16Ty(), 32));
}

V Emit::pack_bf16_pair(V x, V y) {
  if (p_->target.bf16_dot && width(x) == 16) {
    std::vector<int> idx;
    for (int k = 0; k < 16; ++k) idx.push_back(k), idx.push_back(16 + k);
    return revector(shuffle(to_bf16(x, y), nullptr, idx), Ty::I32);
  }
  return or_(zext(to_bf16(x), Ty::I32),
             shl(zext(to_bf16(y), Ty::I32), i32(16)));
}

}  // namespace moec
