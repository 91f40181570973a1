#include "runtime/executable.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "support/error.h"
#include "support/progress.h"

namespace moec {
namespace {

double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void check_buffer(const Program& p, const char* kind, const TensorSpec& spec,
                  std::span<const std::byte> b) {
  MOEC_CHECK(int64_t(b.size()) == spec.bytes,
             "@{}: {} %{} needs {} bytes, got {}", p.name, kind, spec.name,
             spec.bytes, b.size());
  MOEC_CHECK(uintptr_t(b.data()) % 64 == 0, "@{}: {} %{} is not aligned",
             p.name, kind, spec.name);
}

}  // namespace

void Workspace::reserve(int64_t arena_bytes, int64_t scratch_bytes,
                        int threads) {
  if (arena_bytes > arena_.size()) arena_ = Buffer(arena_bytes);
  // Whole pages apart: threads share no cache line and no page.
  int64_t stride = (scratch_bytes + 4095) / 4096 * 4096;
  if (stride > scratch_stride_ || stride * threads > scratch_.size()) {
    scratch_stride_ = std::max(stride, scratch_stride_);
    scratch_ = Buffer(scratch_stride_ * threads);
  }
}

Executable::Executable(std::shared_ptr<const Program> program, ThreadPool& pool,
                       std::shared_ptr<Workspace> workspace)
    : program_(std::move(program)),
      pool_(pool),
      workspace_(workspace ? std::move(workspace)
                           : std::make_shared<Workspace>()) {
  const Program& p = *program_;
  MOEC_CHECK(p.donated.size() == p.inputs.size());
  size_t entries = 0;
  for (const Launch& l : p.launches) {
    MOEC_CHECK(l.fn && l.tasks >= 0 && l.scratch_bytes <= p.scratch_bytes,
               "@{}: launch {}", p.name, l.label);
    for (const BufferRef& r : l.buffers) {
      auto below = [&](size_t n) {
        return r.index >= 0 && size_t(r.index) < n;
      };
      bool good =
          r.space == Space::Arena
              ? r.offset >= 0 && r.offset % 4 == 0 && r.offset <= p.arena_bytes
          : r.space == Space::Input  ? below(p.inputs.size())
          : r.space == Space::Output ? below(p.outputs.size())
                                     : below(p.constants.size());
      MOEC_CHECK(good, "@{}: a buffer of launch {}", p.name, l.label);
    }
    entries += l.buffers.size();
  }
  table_.resize(entries);
}

void Executable::check(std::span<const Bytes> inputs,
                       std::span<const Bytes> outputs) const {
  const Program& p = *program_;
  MOEC_CHECK(inputs.size() == p.inputs.size(), "@{} takes {} inputs, got {}",
             p.name, p.inputs.size(), inputs.size());
  MOEC_CHECK(outputs.size() == p.outputs.size(), "@{} has {} outputs, got {}",
             p.name, p.outputs.size(), outputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    check_buffer(p, "input", p.inputs[i], inputs[i]);
    if (p.donated[i] >= 0)
      MOEC_CHECK(inputs[i].data() == outputs[size_t(p.donated[i])].data(),
                 "@{}: input %{} is donated to an output in other memory",
                 p.name, p.inputs[i].name);
  }
  for (size_t i = 0; i < outputs.size(); ++i)
    check_buffer(p, "output", p.outputs[i], outputs[i]);
}

std::byte* Executable::address(const BufferRef& r,
                               std::span<const Bytes> inputs,
                               std::span<const Bytes> outputs) const {
  auto i = size_t(r.index);
  switch (r.space) {
    case Space::Arena: return workspace_->arena() + r.offset;
    case Space::Input: return inputs[i].data() + r.offset;
    case Space::Output: return outputs[i].data() + r.offset;
    case Space::Constant: break;
  }
  // Kernels only read constants.
  return const_cast<std::byte*>(program_->constants[i].data()) + r.offset;
}

void Executable::resolve(std::span<const Bytes> inputs,
                         std::span<const Bytes> outputs) {
  std::byte** at = table_.data();
  for (const Launch& l : program_->launches)
    for (const BufferRef& r : l.buffers) *at++ = address(r, inputs, outputs);
}

void Executable::run(std::span<const Bytes> inputs,
                     std::span<const Bytes> outputs) {
  check(inputs, outputs);
  workspace_->reserve(program_->arena_bytes, program_->scratch_bytes,
                      pool_.threads());
  resolve(inputs, outputs);
  std::byte* const* buffers = table_.data();
  const std::vector<Launch>& all = program_->launches;
  for (size_t i = 0, end; i < all.size(); i = end) {
    end = i + 1;
    int64_t tasks = all[i].tasks;
    // A trace and a watch see each by itself.
    while (!trace_ && !watch_ && end < all.size() && all[end].joins)
      tasks += all[end++].tasks;
    double start = trace_ ? now() : 0;
    pool_.run(tasks, [&](int64_t task, int thread) {
      const Launch* l = &all[i];
      std::byte* const* own = buffers;
      for (; task >= l->tasks; ++l) {
        task -= l->tasks;
        own += l->buffers.size();
      }
      l->fn(own, task, workspace_->scratch(thread));
    });
    if (trace_) trace_->add(*program_, all[i], start, now());
    for (; i < end; ++i) {
      if (watch_)
        for (const LaunchResult& r : all[i].results)
          watch_({all[i].label,
                  all[i].source,
                  r.dtype,
                  {address(r.at, inputs, outputs), size_t(r.bytes)}});
      buffers += all[i].buffers.size();
    }
  }
}

std::vector<MemoryItem> memory_items(const Program& p, int threads) {
  std::vector<MemoryItem> items;
  auto add = [&](std::string what, int64_t bytes) {
    if (bytes > 0) items.push_back({std::move(what), bytes});
  };
  add(fmt::format("temporaries of @{}", p.name), p.arena_bytes);
  add(fmt::format("scratch of {} threads", threads), p.scratch_bytes * threads);
  int64_t constants = 0;
  for (auto& c : p.constants) constants += int64_t(c.size());
  add("constants", constants);
  for (auto& t : p.inputs) add("%" + t.name, t.bytes);
  std::vector<bool> reused(p.outputs.size());
  for (int32_t o : p.donated)
    if (o >= 0) reused[size_t(o)] = true;
  for (size_t i = 0; i < p.outputs.size(); ++i)
    if (!reused[i]) add("output %" + p.outputs[i].name, p.outputs[i].bytes);
  return items;
}

void require_memory(std::span<const MemoryItem> items, int64_t available) {
  int64_t need = 0;
  for (auto& i : items) need += i.bytes;
  if (need <= available) return;
  std::vector<MemoryItem> largest(items.begin(), items.end());
  std::stable_sort(largest.begin(), largest.end(),
                   [](auto& a, auto& b) { return a.bytes > b.bytes; });
  std::string list;
  for (size_t i = 0; i < std::min<size_t>(3, largest.size()); ++i)
    list += fmt::format("{}{} {}", i ? ", " : "", largest[i].what,
                        format_bytes(double(largest[i].bytes)));
  user_error(
      "not enough memory: needs {}, {} is free; the largest parts: {}; try a "
      "smaller train.batch or train.seq, or train.accumulate",
      format_bytes(double(need)), format_bytes(double(available)), list);
}

}  // namespace moec
