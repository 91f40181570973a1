#include "codegen/cpu/moe.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/moe_emit.h"
#include "codegen/cpu/pair_tile.h"
#include "support/error.h"

namespace moec {

namespace {

constexpr std::string_view kNames[] = {
    "gelu", "relu", "silu", "swiglu", "geglu", "relu2_glu", "gelu_bilinear"};

}  // namespace

MoeActivation parse_moe_activation(const std::string& name) {
  for (size_t i = 0; i < std::size(kNames); ++i)
    if (name == kNames[i]) return MoeActivation(i);
  user_error("activation \"{}\" is none of {}", name, fmt::join(kNames, ", "));
}

bool is_gated(MoeActivation a) { return a >= MoeActivation::Swiglu; }

std::string moe_key(const char* kernel, const MoeSpec& s) {
  return fmt::format("{} {} t{} k{} e{} d{} n{} {}{}", kernel,
                     s.bf16    ? "bf16"
                     : s.split ? "f32 split"
                               : "f32",
                     s.tokens, s.top_k, s.experts, s.dim, s.hidden,
                     kNames[int(s.activation)], s.bias ? " bias" : "");
}

V MoeBuffers::operator()(MoeBuffer b) const {
  auto it = std::find(list.begin(), list.end(), b);
  MOEC_CHECK(it != list.end());
  return e.buffer(int(it - list.begin()));
}

int64_t task_slots(const MoeSpec& s) {
  return std::clamp<int64_t>((640 << 10) / (8 * s.dim) / 48 * 48, 96, 288);
}

int64_t expert_tasks(const MoeSpec& s, int64_t most) {
  return s.slots() / most + s.experts;
}

SlotCut slot_cut(const MoeSpec& s, const Target& t) {
  return {task_slots(s), wide_panel(t)};
}

bool moe_runs_bf16(const Target& t) { return t.lanes == 16; }

bool moe_splits(const MoeSpec& s, const Target& t) {
  constexpr int64_t kSlots = 48, kWidth = 64;  // fewer do not repay it
  return t.amx_bf16 && !s.bf16 && s.slots() >= kSlots * s.experts &&
         s.dim >= kWidth && s.hidden >= kWidth;
}

namespace {

// i64 of offsets[i].
V offset(Emit& e, V offsets, V i) {
  return e.sext(e.load(DType::I32, e.at(offsets, i)), Ty::I64);
}

}  // namespace

void for_expert_task(Emit& e, const MoeSpec& s, SlotCut cut, V offsets,
                     const std::function<void(const ExpertTask&)>& body) {
  auto slots = [&](V expert) {
    V at = e.min(expert, e.i(s.experts - 1));  // in range past the last too
    V first = offset(e, offsets, at);
    return std::pair(first, e.sub(offset(e, offsets, e.add(at, 1)), first));
  };
  // panels of an expert, and its tasks, which share them evenly: a short last
  // one would stream all weights for a few slots
  auto panels = [&](V n) { return e.ceil_div(n, cut.panel); };
  auto tasks = [&](V n) { return e.ceil_div(panels(n), cut.task / cut.panel); };
  Vs found = e.while_(
      {e.i(0), e.task(), e.i(0)},
      [&](const Vs& c) {
        return e.and_(e.lt(c[0], e.i(s.experts)),
                      e.ge(c[1], tasks(slots(c[0]).second)));
      },
      [&](Vs c) {
        V n = slots(c[0]).second;
        return Vs{e.add(c[0], 1), e.sub(c[1], tasks(n)),
                  e.add(c[2], panels(n))};
      });
  e.if_(e.lt(found[0], e.i(s.experts)), [&] {
    auto [first, n] = slots(found[0]);
    auto begin = [&, n = n](V task) {
      return e.div(e.mul(task, panels(n)), tasks(n));
    };
    V from = begin(found[1]), skip = e.mul(from, cut.panel);
    V end = e.min(e.mul(begin(e.add(found[1], 1)), cut.panel), n);
    body({found[0], e.add(first, skip), e.sub(end, skip), e.add(found[2], from),
          first, n});
  });
}

ExpertTask whole_expert(Emit& e, SlotCut cut, V offsets, V expert) {
  V panels = e.loop(e.i(0), expert, 1, {e.i(0)}, [&](V i, Vs c) {
    V n = e.sub(offset(e, offsets, e.add(i, 1)), offset(e, offsets, i));
    return Vs{e.add(c[0], e.ceil_div(n, cut.panel))};
  })[0];
  V first = offset(e, offsets, expert);
  V n = e.sub(offset(e, offsets, e.add(expert, 1)), first);
  return {expert, first, n, panels, first, n};
}

void load_slot_weights(Emit& e, const MoeBuffers& buffer, const ExpertTask& t,
                       V first, V valid, int64_t lanes, V w) {
  e.loop(e.i(0), e.i(lanes), 1, [&](V lane) {
    V slot = e.add(e.add(t.slot, first), e.min(lane, e.add(valid, -1)));
    V choice = e.sext(e.load(DType::I32, e.at(buffer(MoeBuffer::Perm), slot)),
                      Ty::I64);
    V weight = e.load(DType::F32, e.at(buffer(MoeBuffer::Weights), choice));
    V exists = e.lt(lane, valid);
    e.store(DType::F32, e.select(exists, weight, e.f(0)), e.at(w, lane));
    e.if_(exists, [&] {
      e.store(DType::F32, weight, e.at(buffer(MoeBuffer::SlotWeights), slot));
    });
  });
}

ExpertWeight expert_weight(const MoeSpec& s, int i) {
  using B = MoeBuffer;
  if (i == 0) return {B::Dy, B::Activated, B::DDown, B::DBiasDown, s.hidden, 0};
  const bool gate = i == 2;
  return {B::X,
          B::DHidden,
          gate ? B::DGate : B::DUp,
          gate ? B::DBiasGate : B::DBiasUp,
          s.hidden_rows(),
          gate ? s.hidden : 0};
}

int expert_weights(const MoeSpec& s) { return is_gated(s.activation) ? 3 : 2; }

void for_lane_tiles(Emit& e, V valid,
                    const std::function<void(LaneTile, int lane)>& f) {
  const int L = e.lanes(), R = tile_rows(e.target());
  // half the lanes take half the time where 512-bit operations are split
  const int half = splits_512(e.target()) ? L / 2 : 0;
  // as many whole vectors as needed, and the half where it covers the rest
  std::function<void(int)> cover = [&](int vectors) {
    auto whole = [&] { f({R, vectors, L}, 0); };
    auto fewer = [&] {
      if (!half) return cover(vectors - 1);
      const int before = (vectors - 1) * L;
      auto split = [&] {
        if (before) f({R, vectors - 1, L}, 0);
        f({R, 1, half}, before);
      };
      if (!before) return split();
      e.if_(e.gt(valid, e.i(before)), split, [&] { cover(vectors - 1); });
    };
    if (vectors == 1 && !half) return whole();
    e.if_(e.gt(valid, e.i((vectors - 1) * L + half)), whole, fewer);
  };
  cover(wide_vectors(e.target()));
}

Fn gather_function(Emit& e, const char* name, int64_t divisor, int64_t dim) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
  return e.define(name, params, [&](const Vs& a) {
    Vs rows;
    V last = e.add(a[2], -1);
    for (int r = 0; r < e.lanes(); ++r) {
      V choice = e.load(DType::I32, e.at(a[1], e.min(e.i(r), last)));
      V row = e.udiv(e.zext(choice, Ty::I64), e.i(divisor));
      rows.push_back(e.at(a[0], e.mul(row, dim)));
    }
    pack_rows(e, rows, dim, a[3], wide_panel(e.target()));
  });
}

Fn scatter_function(Emit& e, int64_t dim) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define("scatter", params, [&](const Vs& a) {
    unpack_rows(
        e, a[0], wide_panel(e.target()), dim, nullptr,
        [&](int r) { return e.at(a[1], r * dim); }, a[2]);
  });
}

MoeLaunch moe_combine(const MoeSpec& s, bool weighted,
                      const MoeEpilogue& epilogue) {
  constexpr int64_t kTokens = 64;  // per task
  MoeLaunch l;
  l.buffers = {MoeBuffer::Rows, MoeBuffer::Inverse};
  if (weighted) {
    l.buffers.insert(l.buffers.end(), {MoeBuffer::Weights, MoeBuffer::Y});
  } else {
    l.buffers.insert(l.buffers.end(), {MoeBuffer::DWeights, MoeBuffer::Dx});
  }
  l.spec.key = moe_key(weighted ? "moe combine" : "moe combine_grad", s);
  l.spec.tasks = (s.tokens + kTokens - 1) / kTokens;
  l.spec.flops = 2.0 * double(s.slots() * s.dim);
  const DType dtype = s.bf16 ? DType::BF16 : DType::F32;
  const int64_t size = dtype_size(dtype);
  l.spec.bytes = double(size) * double((s.slots() + s.tokens) * s.dim);
  const int own = int(l.buffers.size());
  MoeEpilogue then = epilogue;
  if (then.then.emit) {
    l.spec.key += " epi " + then.then.key;
    for (auto* list : {&then.extras, &then.outputs})
      for (MatmulOperand& o : *list) {
        l.spec.bytes += double(s.tokens * dtype_size(o.dtype)) *
                        double(o.col_stride ? s.dim : 1);
        l.more.push_back(o.buffer);
        o.buffer = own + int(l.more.size()) - 1;
      }
    l.spec.bytes -= double(size) * double(s.tokens * s.dim);
  }
  l.spec.emit = [s, weighted, then, dtype, size](Emit& e) {
    const int L = e.lanes();
    V first = e.mul(e.task(), kTokens);
    V end = e.min(e.add(first, kTokens), e.i(s.tokens));
    e.loop(first, end, 1, [&](V t) {
      Vs rows, factors, kept;
      for (int64_t j = 0; j < s.top_k; ++j) {
        V choice = e.add(e.mul(t, s.top_k), j);
        V slot = e.sext(e.load(DType::I32, e.at(e.buffer(1), choice)), Ty::I64);
        V is_kept = e.ge(slot, e.i(0));
        V row = e.mul(e.max(slot, e.i(0)), s.dim);
        rows.push_back(e.at(e.buffer(0), row, size));
        kept.push_back(e.splat(is_kept));
        V weight = e.at(e.buffer(2), choice);
        if (weighted)
          factors.push_back(e.splat(e.load(DType::F32, weight)));
        else
          e.if_(e.not_(is_kept), [&] { e.store(DType::F32, e.f(0), weight); });
      }
      V out = e.at(e.buffer(3), e.mul(t, s.dim), size);
      auto columns = [&](V c, V mask) {
        V sum = e.zero(Ty::F32, 0), zero = sum;
        for (int64_t j = 0; j < s.top_k; ++j) {
          V y = e.vload(dtype, e.at(rows[j], c, size), mask);
          if (weighted) y = e.mul(y, factors[j]);
          // a dropped choice reads some row, perhaps never written
          sum = e.add(sum, e.select(kept[j], y, zero));
        }
        if (!then.then.emit)
          return e.vstore(dtype, sum, e.at(out, c, size), mask);
        auto place = [&](const MatmulOperand& o) {
          V at = e.add(e.mul(t, o.row_stride), e.mul(c, o.col_stride));
          return e.at(e.buffer(o.buffer), at, dtype_size(o.dtype));
        };
        Vs read;
        for (const MatmulOperand& o : then.extras)
          read.push_back(o.col_stride ? e.vload(o.dtype, place(o), mask)
                                      : e.splat(e.load(o.dtype, place(o))));
        Vs values = then.then.emit(e, sum, read);
        for (size_t i = 0; i < values.size(); ++i)
          e.vstore(then.outputs[i].dtype, values[i], place(then.outputs[i]),
                   mask);
      };
      const int64_t whole = s.dim / L * L;
      e.loop(e.i(0), e.i(whole), L, [&](V c) { columns(c, nullptr); });
      if (whole < s.dim) columns(e.i(whole), e.mask(e.i(s.dim - whole)));
    });
  };
  return l;
}

// ---------------------------------------------------------- activations

namespace {

struct Unary {
  V value, derivative;
};

V sigmoid(Emit& e, V x, bool coarse) {
  if (!coarse) return sigmoid_fast(e, x);
  V z = e.min(e.f(100), e.mul(x, e.f(-kLog2e)));
  return e.reciprocal(e.add(e.f(1), exp2_coarse(e, z)));
}

Unary silu_parts(Emit& e, V x, bool coarse) {
  V s = sigmoid(e, x, coarse);
  V rest = e.fma(x, e.sub(e.f(1), s), e.f(1));
  return {e.mul(x, s), e.mul(s, rest)};
}

// x sigmoid(z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3): the tanh form
Unary gelu_parts(Emit& e, V x, bool coarse) {
  constexpr double c = 1.5957691216057308, c3 = c * 0.044715;
  V x2 = e.mul(x, x);
  V s = sigmoid(e, e.mul(x, e.fma(x2, e.f(c3), e.f(c))), coarse);
  V slope = e.fma(x2, e.f(3 * c3), e.f(c));
  V value = e.mul(x, s);
  V derivative = e.fma(e.mul(value, e.sub(e.f(1), s)), slope, s);
  return {value, derivative};
}

}  // namespace

ActivationGrad activate_grad(Emit& e, MoeActivation a, V gate, V up,
                             bool coarse) {
  auto product = [&](Unary f) {
    return ActivationGrad{e.mul(f.value, up), e.mul(f.derivative, up), f.value};
  };
  auto alone = [&](Unary f) {
    return ActivationGrad{f.value, nullptr, f.derivative};
  };
  V zero = e.f(0);
  switch (a) {
    case MoeActivation::Gelu: return alone(gelu_parts(e, up, coarse));
    case MoeActivation::Silu: return alone(silu_parts(e, up, coarse));
    case MoeActivation::Relu:
      return alone({e.max(zero, up), e.select(e.gt(up, zero), e.f(1), zero)});
    case MoeActivation::Swiglu: return product(silu_parts(e, gate, coarse));
    case MoeActivation::Geglu: return product(gelu_parts(e, gate, coarse));
    case MoeActivation::Relu2Glu: {
      V r = e.max(zero, gate);
      return product({e.mul(r, r), e.add(r, r)});
    }
    case MoeActivation::GeluBilinear: {
      Unary f = gelu_parts(e, e.mul(gate, up), coarse);
      return {f.value, e.mul(f.derivative, up), e.mul(f.derivative, gate)};
    }
  }
  return {};
}

V activate(Emit& e, MoeActivation a, V gate, V up, bool coarse) {
  return activate_grad(e, a, gate, up, coarse).value;  // the rest is dead code
}

}  // namespace moec
