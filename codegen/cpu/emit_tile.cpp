// The tile registers of AMX, by number: kernels allocate them themselves.
#include <llvm/IR/IntrinsicsX86.h>

#include "codegen/cpu/emit_impl.h"
#include "support/error.h"

namespace moec {
using namespace llvm;

void Emit::tile_config(const std::vector<Tile>& tiles) {
  MOEC_CHECK(p_->target.amx_bf16 && tiles.size() <= 8, "tiles of this target");
  // palette 1, start row 0, then bytes of a row and rows of each register
  std::vector<uint8_t> text(64);
  text[0] = 1;
  for (size_t t = 0; t < tiles.size(); ++t) {
    text[16 + 2 * t] = static_cast<uint8_t>(tiles[t].bytes);
    text[48 + t] = static_cast<uint8_t>(tiles[t].rows);
  }
  auto& b = p_->b;
  Constant* c = ConstantDataArray::get(b.getContext(), text);
  auto* g = new GlobalVariable(p_->module, c->getType(), true,
                               GlobalValue::PrivateLinkage, c, "tiles");
  g->setAlignment(Align(64));
  b.CreateIntrinsic(Intrinsic::x86_ldtilecfg, {}, {g});
}

void Emit::tile_release() {
  p_->b.CreateIntrinsic(Intrinsic::x86_tilerelease, {}, {});
}

void Emit::tile_zero(int tile) {
  p_->b.CreateIntrinsic(Intrinsic::x86_tilezero, {}, {p_->b.getInt8(tile)});
}

void Emit::tile_load(int tile, V p, V stride) {
  p_->b.CreateIntrinsic(Intrinsic::x86_tileloadd64, {},
                        {p_->b.getInt8(tile), p, stride});
}

void Emit::tile_load_stream(int tile, V p, V stride) {
  p_->b.CreateIntrinsic(Intrinsic::x86_tileloaddt164, {},
                        {p_->b.getInt8(tile), p, stride});
}

void Emit::tile_store(int tile, V p, V stride) {
  p_->b.CreateIntrinsic(Intrinsic::x86_tilestored64, {},
                        {p_->b.getInt8(tile), p, stride});
}

void Emit::tile_dpbf16(int c, int a, int b) {
  auto& ir = p_->b;
  ir.CreateIntrinsic(Intrinsic::x86_tdpbf16ps, {},
                     {ir.getInt8(c), ir.getInt8(a), ir.getInt8(b)});
}

}  // namespace moec
