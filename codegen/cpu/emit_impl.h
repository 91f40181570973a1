// State of one Emit; for the few files that include LLVM headers.
#pragma once
#include <llvm/IR/IRBuilder.h>
#include <llvm/IR/Intrinsics.h>
#include <llvm/IR/Module.h>

#include <map>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/target.h"

namespace moec {

struct Emit::Impl {
  Impl(llvm::Module& m, const Target& t)
      : b(m.getContext()), module(m), target(t) {}

  llvm::Type* scalar(Ty);
  llvm::Type* type(Ty, int width);  // width -1: scalar, 0: target.lanes
  llvm::Type* memory_scalar(DType);
  llvm::Align align(DType) const;
  // Converts between a memory type's raw bits and its register type.
  V widen(DType, V raw);
  V narrow(DType, V value);
  // Makes both operands vectors of one width if either is.
  void match(V& x, V& y);
  V intrinsic(unsigned id, std::initializer_list<V> args);

  llvm::IRBuilder<> b;
  llvm::Module& module;
  const Target target;
  llvm::Function* fn = nullptr;
  llvm::Function* kernel = nullptr;
  bool long_loops = false;
  std::map<int, V> buffers;
  std::map<std::string, Fn> defined;
};

}  // namespace moec
