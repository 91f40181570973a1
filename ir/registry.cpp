#include <absl/container/flat_hash_map.h>

#include <array>

#include "ir/op_def.h"

namespace moec {
namespace ops {
#define MOEC_OP(E, text) extern const OpDef k##E;
#include "ir/opcodes.def"
#undef MOEC_OP
}  // namespace ops

namespace {

constexpr std::array<const OpDef*, kNumOps> kDefs = {
#define MOEC_OP(E, text) &ops::k##E,
#include "ir/opcodes.def"
#undef MOEC_OP
};
constexpr std::array<std::string_view, kNumOps> kNames = {
#define MOEC_OP(E, text) text,
#include "ir/opcodes.def"
#undef MOEC_OP
};

}  // namespace

const OpDef& def(Op op) { return *kDefs[int(op)]; }

std::string_view op_name(Op op) { return kNames[int(op)]; }

std::optional<Op> parse_op(std::string_view text) {
  static const auto* table = [] {
    auto* t = new absl::flat_hash_map<std::string_view, Op>;
    for (int i = 0; i < kNumOps; ++i) t->emplace(kNames[i], Op(i));
    return t;
  }();
  auto it = table->find(text);
  if (it == table->end()) return std::nullopt;
  return it->second;
}

Cost cost_of(const Node& n) {
  if (n.def().cost) return n.def().cost(n);
  Cost c;
  for (const Type& t : n.types()) {
    if (!has_trait(n, kDataMovement)) c.flops += double(t.numel());
    c.bytes += double(t.bytes());
  }
  for (Value v : n.operands()) c.bytes += double(v.type().bytes());
  return c;
}

bool has_trait(const Node& n, Trait t) { return n.def().traits & t; }

}  // namespace moec
