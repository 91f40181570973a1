#include "codegen/cpu/matmul.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/matmul_plan.h"
#include "codegen/cpu/split_f32.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {

namespace {

int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

// A task should last some tens of microseconds on a current core.
constexpr double kTaskFlops = 12e6;
constexpr int64_t kMinTasks = 8;    // below that, tasks get smaller
constexpr int64_t kManyTasks = 64;  // above that, tasks may last longer
// Bytes of rows that are read in place, a part of each.
constexpr int64_t kShortRow = 512;
// Rows of a task that meet many panels of a packed B.
constexpr int64_t kBlockRows = 128, kBlockColumns = 1536;
// Partial sums that stay in L2 beside A's rows.
constexpr int64_t kPartialBytes = 512 << 10;

std::string describe(const MatmulOperand& o) {
  std::string s = fmt::format(" {}:{} {},{}+{}", o.buffer, dtype_name(o.dtype),
                              o.row_stride, o.col_stride, o.offset);
  for (int64_t b : o.batch_strides) s += fmt::format(" b{}", b);
  if (o.group_stride) s += fmt::format(" e{}", o.group_stride);
  return s;
}

void check(const MatmulDesc& d) {
  MOEC_CHECK(d.m >= 0 && d.n >= 0 && d.k >= 0);
  MOEC_CHECK(!d.outputs.empty());
  MOEC_CHECK(d.epilogue || d.outputs.size() == 1);
  MOEC_CHECK(!d.epilogue || !d.epilogue_key.empty());
  MOEC_CHECK(d.group == MatmulGroup::None || d.batch.empty());
  auto fits = [&](const MatmulOperand& o) {
    MOEC_CHECK(o.batch_strides.empty() ||
               o.batch_strides.size() == d.batch.size());
  };
  fits(d.a), fits(d.b);
  for (auto& o : d.outputs) fits(o);
  for (auto& o : d.extras) fits(o);
}

// Memory of an operand's distinct elements, for the cost figures.
double bytes_of(const MatmulOperand& o, int64_t rows, int64_t cols,
                const MatmulDesc& d) {
  double n = double(o.row_stride ? rows : 1) * double(o.col_stride ? cols : 1);
  for (size_t i = 0; i < o.batch_strides.size(); ++i)
    if (o.batch_strides[i]) n *= double(d.batch[i]);
  if (o.group_stride) n *= double(d.experts);
  return n * double(dtype_size(o.dtype));
}

// A product in tile registers. Panels of B of kLongest elements stay in the
// nearest cache while A streams by from L2. Packing costs a multiple of what it
// does beside vectors: with a workspace every operand is packed once, before;
// else tasks are few and large, cut along the rows first, since packing B is
// the cheaper.
MatmulPlan plan_pairs(const MatmulDesc& d, int workspace) {
  constexpr int64_t kTile = 32, kLongest = 512, kTasks = 4;
  constexpr int64_t kRows = 256, kColumns = 768;   // of a task, for L2
  constexpr double kLarge = 200e6, kSmall = 16e6;  // flops
  constexpr int64_t kFarBytes = 1 << 20, kShortSum = 128;
  MatmulPlan p;
  p.pairs = true;
  p.planes = d.bf16 ? 1 : kSplitPlanes;
  p.heights = {int(kTile)};
  for (int64_t b : d.batch) p.batch *= b;
  const int64_t m = std::max<int64_t>(d.m, 1), n = std::max<int64_t>(d.n, 1);
  const int64_t k = std::max<int64_t>(d.k, 1);
  const bool by_rows = d.group == MatmulGroup::Rows;
  const bool by_reduction = d.group == MatmulGroup::Reduction;
  const bool in_place = d.a.dtype == DType::BF16 && d.a.col_stride == 1 &&
                        k % kTile == 0 && m >= kTile && !by_reduction;
  p.a = in_place ? MatmulPlan::A::Direct : MatmulPlan::A::Tiles;
  p.block_k = by_reduction
                  ? std::min(round_up(k, kTile), kLongest)
                  : round_up(ceil_div(k, ceil_div(k, kLongest)), kTile);
  p.split_k = by_reduction || p.block_k < k;
  const bool can_pack = workspace >= 0 && p.batch == 1 &&
                        d.group == MatmulGroup::None && d.k > 0 && m > kTile &&
                        2.0 * double(m * n) * double(k) > 2 * kSmall;

  const int64_t rows = can_pack && n > 4 * kTile ? kRows : 1024;
  p.block_m = round_up(std::min(m, rows), kTile);
  p.block_n = round_up(std::min<int64_t>(n, can_pack ? kColumns : 1024), kTile);
  if (by_rows) p.block_m = std::min<int64_t>(p.block_m, 512);
  auto flops = [&] { return 2.0 * double(p.block_m * p.block_n) * double(k); };
  auto tasks = [&] {
    int64_t blocks = ceil_div(m, p.block_m) * ceil_div(n, p.block_n) * p.batch;
    return by_reduction || by_rows ? blocks * std::max<int64_t>(d.experts, 1)
                                   : blocks;
  };
  auto halve = [&](int64_t& block) {
    block = round_up(ceil_div(block, 2), kTile);
  };
  if (can_pack) {
    while (tasks() < kMinTasks && p.block_n > 4 * kTile && flops() > kSmall)
      halve(p.block_n);
    while (tasks() < kMinTasks && p.block_m > 4 * kTile && flops() > kSmall)
      halve(p.block_m);
  } else {
    while (flops() > kLarge && p.block_m > 256) halve(p.block_m);
  }
  while (tasks() < kTasks && p.block_m > 2 * kTile && flops() > 2e6)
    halve(p.block_m);
  while (tasks() < kTasks && p.block_n > 2 * kTile && flops() > 2e6)
    halve(p.block_n);
  p.blocks_m = ceil_div(m, p.block_m);
  if (!by_rows) p.block_m = round_up(ceil_div(m, p.blocks_m), kTile);
  p.blocks_m = ceil_div(m, p.block_m);
  p.blocks_n = ceil_div(n, p.block_n);
  p.block_n = round_up(ceil_div(n, p.blocks_n), kTile);
  p.blocks_n = ceil_div(n, p.block_n);
  if (p.blocks_m * p.blocks_n == 1 && d.group == MatmulGroup::None)
    while (p.batch_per_task < p.batch &&
           flops() * double(p.batch_per_task) < kLarge / 8 &&
           p.batch / p.batch_per_task > 2 * kTasks)
      p.batch_per_task *= 2;

  p.overlaps = p.block_k > kShortSum || p.planes > 1;
  p.fetch_outputs = m * n * p.batch * 2 > kFarBytes;
  // packed before only what several tasks would pack
  p.workspace_b = can_pack && p.blocks_m > 1;
  p.workspace_a = can_pack && !in_place && p.blocks_n > 1;
  const int64_t padded = round_up(k, kTile);
  if (p.workspace_b) {
    p.b_pitch = padded / 2 * kTile * p.planes;
    p.workspace_bytes = ceil_div(n, kTile) * p.b_pitch * 4;
    if (p.overlaps)
      p.lines_ahead = ceil_div(kTile * kTile * p.planes, p.block_m);
  }
  p.a_pitch = (p.workspace_a ? padded : p.block_k) / 2 * kTile * p.planes;
  if (p.workspace_a) {
    p.workspace_a_offset = p.workspace_bytes;
    p.workspace_bytes += ceil_div(m, kTile) * p.a_pitch * 4;
  }
  if (p.workspace_bytes) p.workspace = workspace;
  p.a_offset = p.block_k * 2 * kTile * p.planes;
  const bool packs_a = !in_place && !p.workspace_a;
  p.turn_offset =
      p.a_offset + (packs_a ? p.block_m / kTile * p.a_pitch * 4 : 0);
  p.partial_offset = p.turn_offset + 2 * 4 * kTile * kTile;
  p.scratch_bytes =
      p.partial_offset + (p.split_k ? 4 * p.block_m * p.block_n : 0);
  return p;
}

// Whether a product of f32 in tile registers repays that its operands are
// split, which costs as much for each element of an operand as the tiles gain
// in kRepaid multiplications.
bool splits(const MatmulDesc& d) {
  // those of a batch are small and near
  const double kRepaid = d.batch.empty() ? 90 : 48;
  double m = double(d.m), n = double(d.n);
  if (d.group == MatmulGroup::Rows) m /= double(d.experts);
  return d.a.dtype == DType::F32 && d.b.dtype == DType::F32 && d.k >= 64 &&
         m * n > kRepaid * (m + n);
}

}  // namespace

MatmulPlan plan_matmul(const MatmulDesc& d, const Target& t, int workspace) {
  if (t.amx_bf16 && (d.bf16 || splits(d))) return plan_pairs(d, workspace);
  MatmulPlan p;
  const int64_t m = std::max<int64_t>(d.m, 1), n = std::max<int64_t>(d.n, 1);
  const int64_t k = std::max<int64_t>(d.k, 1);
  const double step_flops = d.bf16 && t.bf16_dot ? 2 : 1;  // FMA rate
  const bool by_rows = d.group == MatmulGroup::Rows;
  const bool by_reduction = d.group == MatmulGroup::Reduction;
  for (int64_t b : d.batch) p.batch *= b;
  // Three vectors across load least for a sum; few columns would be cut badly.
  if (t.registers >= 32 &&
      (n > 4 * t.lanes || (n > 2 * t.lanes && n <= 3 * t.lanes)))
    p.vectors = 3;
  p.panel = p.vectors * t.lanes;
  // Eight rows fill the FMA pipes; their eight lines share a set of the L1
  // cache without conflict when the row stride is a multiple of its way size.
  const int tall = t.lanes == 16 ? 8 : t.fma ? 6 : 4;

  // A in place costs one broadcast a row and step, and is packed only where
  // its elements must be paired first.
  if (d.bf16) {
    const bool pairs = d.a.col_stride == 1 && k % 2 == 0 && !by_reduction;
    if (!pairs)
      p.a = MatmulPlan::A::Tiles;
    else if (d.a.dtype != DType::BF16)
      p.a = k >= 2 * t.lanes ? MatmulPlan::A::Rows : MatmulPlan::A::Tiles;
  }
  const bool can_pack = workspace >= 0 && !d.bf16 && p.batch == 1 &&
                        d.group == MatmulGroup::None && d.k > 0;
  // Columns of A far apart defeat caches and prefetchers.
  const bool turns_a = can_pack && d.a.row_stride == 1 &&
                       d.a.col_stride * 4 > kShortRow && t.lanes % tall == 0 &&
                       m >= tall && n > p.panel && m * k * 4 > 32 << 10;
  if (turns_a) p.a = MatmulPlan::A::Tiles;
  const bool packs_a = p.a != MatmulPlan::A::Direct;

  // k blocks of equal length
  const int64_t longest =
      packs_a && !turns_a ? 512 * int64_t(step_flops) : 1024;
  const int64_t k_blocks = ceil_div(k, longest);
  p.block_k = by_reduction ? std::min(round_up(k, 2), longest)
                           : round_up(ceil_div(k, k_blocks), 2);
  p.split_k = by_reduction || k_blocks > 1;

  // Small matrices whose rows are contiguous stay in the nearest caches, short
  // rows in L2; few rows do not repay a copy.
  const bool near = d.b.row_stride * p.block_k * 4 <= 64 << 10;
  p.direct_b = d.b.col_stride == 1 && d.b.dtype == DType::F32 && !d.bf16 &&
               (near || d.b.row_stride * 4 <= kShortRow || m < 48);
  // Where one task cannot have all rows and pack its own panel.
  const double column = 2.0 * double(m * p.panel) * double(k);
  const bool whole_columns =
      m <= 512 && column < 2.5 * kTaskFlops && n >= kMinTasks * p.panel;
  p.workspace_b =
      can_pack && !p.direct_b && (turns_a || (m > 192 && !whole_columns));

  // Many rows, since each block packs its panel of B anew; several panels
  // where the tasks would be too short or A is packed.
  auto flops = [&] { return 2.0 * double(p.block_m * p.block_n) * double(k); };
  auto tasks = [&] {
    int64_t blocks = ceil_div(m, p.block_m);
    if (by_rows) blocks += d.experts;
    if (by_reduction) blocks *= std::max<int64_t>(d.experts, 1);
    return blocks * ceil_div(n, p.block_n) * p.batch;
  };
  const double goal = kTaskFlops * step_flops;
  p.block_n = packs_a ? 4 * p.panel : p.panel;
  double rows = goal / (2.0 * double(p.block_n) * double(k));
  p.block_m = packs_a ? 128 : std::clamp<int64_t>(int64_t(rows), 256, 1024);
  if (by_rows) p.block_m = m >= 1024 * d.experts ? 512 : 384;
  if (turns_a || p.workspace_b) {
    // A's rows stay in L2 while B's panels pass by, as many as the partial sums
    // and the number of tasks allow
    p.block_m = kBlockRows;
    p.block_n = p.split_k ? kPartialBytes / (4 * p.block_m)
                : turns_a ? n
                          : kBlockColumns;
    p.block_n = std::min(n, p.block_n);
    p.block_n = round_up(p.block_n, p.panel);
  }
  if (can_pack && whole_columns && !turns_a) p.block_m = m;
  p.block_m = std::min(p.block_m, m);
  if (!packs_a && !by_rows && !p.workspace_b && p.block_m < 512 && m >= 1024) {
    p.block_m = 512;
    if (tasks() < kManyTasks || flops() > 6 * goal) p.block_m = 256;
  }
  while (tasks() < kMinTasks && p.block_m > 32 && flops() > 1e6)
    p.block_m = round_up(ceil_div(p.block_m, 2), tall);
  while (tasks() < kMinTasks && p.block_n > p.panel && flops() > 1e6)
    p.block_n -= p.panel;
  while (!packs_a && !p.workspace_b && flops() < goal / 4 && p.block_n < n &&
         tasks() > 2 * kMinTasks)
    p.block_n += p.panel;
  // blocks of equal size, whole tiles
  p.blocks_m = ceil_div(m, p.block_m);
  if (!by_rows) p.block_m = round_up(ceil_div(m, p.blocks_m), tall);
  p.blocks_m = ceil_div(m, p.block_m);
  p.blocks_n = ceil_div(n, p.block_n);
  p.block_n = round_up(ceil_div(n, p.blocks_n), p.panel);
  p.blocks_n = ceil_div(n, p.block_n);
  if (p.blocks_m * p.blocks_n == 1 && d.group == MatmulGroup::None)
    while (p.batch_per_task < p.batch &&
           flops() * double(p.batch_per_task) < goal / 4 &&
           p.batch / p.batch_per_task > 2 * kMinTasks)
      p.batch_per_task *= 2;

  for (int h = tall; h >= 1; h = h == 6 ? 4 : h / 2) {
    const bool needed = by_rows || (d.m >= h && (h == tall || d.m % tall));
    if (needed) p.heights.push_back(h);
  }
  // Odd multiples of a line keep packed rows and tiles off one cache set.
  const int64_t steps = round_up(ceil_div(p.block_k, d.bf16 ? 2 : 1), t.lanes);
  const bool a_rows = p.a == MatmulPlan::A::Rows;
  p.a_pitch = steps * (a_rows ? 1 : tall) + 16;
  p.a_offset = round_up(steps * p.panel * 4, 64);
  // a vector of rows past the last tile is written too
  const int64_t a_units =
      (a_rows ? p.block_m : p.block_m / tall + t.lanes) * p.a_pitch;
  p.partial_offset = p.a_offset + (packs_a ? round_up(a_units * 4, 64) : 0);
  p.scratch_bytes = p.partial_offset +
                    (p.split_k ? round_up(p.block_m, tall) * p.block_n * 4 : 0);

  if (p.workspace_b) p.workspace_bytes = round_up(n, p.panel) * k * 4;
  p.b_pitch = k * p.panel;
  if (p.workspace_b)
    p.lines_ahead = ceil_div(p.block_k * p.panel / 16, p.block_m / tall);
  p.workspace = p.workspace_bytes ? workspace : -1;
  return p;
}

namespace {

std::string describe(const MatmulDesc& d, const MatmulPlan& p) {
  std::string s =
      fmt::format("{} {}x{}x{}", d.bf16 ? "bf16" : "f32", d.m, d.n, d.k);
  for (int64_t b : d.batch) s += fmt::format(" *{}", b);
  s += describe(d.a) + describe(d.b);
  for (auto& o : d.outputs) s += " ->" + describe(o);
  for (auto& o : d.extras) s += " x" + describe(o);
  s += fmt::format(" scale {} acc {} group {} {} {} epi {}", d.scale,
                   int(d.accumulate), int(d.group), d.experts, d.offsets_buffer,
                   d.epilogue_key);
  if (p.workspace >= 0) s += fmt::format(" ws {}", p.workspace);
  if (p.workspace_a) s += " a";
  if (p.a == MatmulPlan::A::Tiles) s += " tiles";
  if (p.planes > 1) s += " split";
  return s;
}

KernelSpec pack_kernel(const MatmulDesc& d, const MatmulPlan& p) {
  KernelSpec s;
  s.key = "matmul pack " + describe(d, p);
  s.emit = [d, p](Emit& e) { emit_matmul_pack(e, d, p); };
  s.tasks = matmul_pack_tasks(d, p);
  if (p.workspace_b) s.bytes += 2 * bytes_of(d.b, d.k, d.n, d);
  if (p.workspace_a) s.bytes += 2 * bytes_of(d.a, d.m, d.k, d);
  return s;
}

KernelSpec product_kernel(const MatmulDesc& d, const MatmulPlan& p) {
  KernelSpec s;
  s.key = "matmul " + describe(d, p);
  s.emit = [d, p](Emit& e) { emit_matmul(e, d, p); };
  int64_t blocks = p.blocks_m;
  if (d.group == MatmulGroup::Rows) blocks += d.experts;
  if (d.group == MatmulGroup::Reduction) blocks *= d.experts;
  s.tasks = blocks * p.blocks_n * ceil_div(p.batch, p.batch_per_task);
  if (d.m == 0 || d.n == 0 || p.batch == 0) s.tasks = 0;
  s.scratch_bytes = p.scratch_bytes;
  s.flops = 2.0 * double(d.m) * double(d.n) * double(d.k) * double(p.batch);
  s.bytes = bytes_of(d.a, d.m, d.k, d) + bytes_of(d.b, d.k, d.n, d);
  for (auto& o : d.outputs) s.bytes += bytes_of(o, d.m, d.n, d);
  for (auto& o : d.extras) s.bytes += bytes_of(o, d.m, d.n, d);
  return s;
}

}  // namespace

namespace {

// Rows of one part of a long reduction, how long they may be (split operands
// are read but once) and what all parts' sums may take.
constexpr int64_t kPartRows = 512, kPartBytes = 1536, kSplitPartBytes = 8192;
constexpr int64_t kPartSums = 16 << 20;

// A small C of long columns, as a weight's gradient is: its tasks would each
// walk down all rows of both operands. Parts of the rows, which the caches
// hold, are products of their own instead, and are added up in order.
bool splits_reduction(const MatmulDesc& d, bool split) {
  auto short_rows = [&](int64_t n) {
    return n * 4 <= (split ? kSplitPartBytes : kPartBytes);
  };
  return d.group == MatmulGroup::None && d.batch.empty() && !d.bf16 &&
         !d.epilogue && d.k % kPartRows == 0 && d.k >= 4 * kPartRows &&
         d.m * d.n * (d.k / kPartRows) * 4 <= kPartSums &&
         d.a.row_stride == 1 && short_rows(d.a.col_stride) &&
         d.b.col_stride == 1 && short_rows(d.b.row_stride) &&
         d.outputs[0].col_stride == 1;
}

MatmulKernels reduction_in_parts(const MatmulDesc& d, const Target& t,
                                 int workspace) {
  const int64_t parts = d.k / kPartRows;
  MatmulDesc part = d;
  part.k = kPartRows;
  part.batch = {parts};
  part.a.batch_strides = {kPartRows * d.a.col_stride};
  part.b.batch_strides = {kPartRows * d.b.row_stride};
  part.outputs = {
      {.buffer = workspace, .row_stride = d.n, .batch_strides = {d.m * d.n}}};
  part.scale = 1, part.accumulate = false;
  KernelSpec sum;
  sum.key = fmt::format("matmul sum {}x{} of {} {} ->{} scale {} acc {}", d.m,
                        d.n, parts, workspace, describe(d.outputs[0]), d.scale,
                        int(d.accumulate));
  sum.tasks = ceil_div(d.m, kSumRows);
  sum.bytes = 4.0 * double(d.m * d.n) * double(parts + 1);
  sum.emit = [d, workspace, parts](Emit& e) {
    emit_matmul_sum(e, d, workspace, parts);
  };
  return {{product_kernel(part, plan_matmul(part, t, -1)), sum},
          4 * parts * d.m * d.n};
}

}  // namespace

MatmulKernels matmul_kernels(const MatmulDesc& d, const Target& t,
                             int workspace) {
  check(d);
  const bool split = t.amx_bf16 && splits(d);
  if (workspace >= 0 && splits_reduction(d, split))
    return reduction_in_parts(d, t, workspace);
  const MatmulPlan p = plan_matmul(d, t, workspace);
  MatmulKernels all;
  all.workspace_bytes = p.workspace_bytes;
  if (p.workspace_bytes) all.launches.push_back(pack_kernel(d, p));
  all.launches.push_back(product_kernel(d, p));
  return all;
}

KernelSpec matmul_kernel(const MatmulDesc& d, const Target& t) {
  return matmul_kernels(d, t, -1).launches[0];
}

MatmulDesc plain_matmul(int64_t m, int64_t n, int64_t k, bool trans_a,
                        bool trans_b, DType dtype) {
  MatmulDesc d;
  d.m = m, d.n = n, d.k = k;
  d.a = {.buffer = 0, .dtype = dtype, .row_stride = k, .col_stride = 1};
  if (trans_a) d.a.row_stride = 1, d.a.col_stride = m;
  d.b = {.buffer = 1, .dtype = dtype, .row_stride = n, .col_stride = 1};
  if (trans_b) d.b.row_stride = 1, d.b.col_stride = k;
  d.outputs[0] = {
      .buffer = 2, .dtype = dtype, .row_stride = n, .col_stride = 1};
  d.bf16 = dtype == DType::BF16;
  return d;
}

}  // namespace moec
