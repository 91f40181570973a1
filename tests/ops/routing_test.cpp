// The rules of routing that hold for any choices.
#include <map>
#include <set>

#include "ir/op_def.h"
#include "support/rng.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

struct Setting {
  i64 rows, positions, k, experts, capacity;
  std::string scope;
};

Tensor random_choices(const Setting& s, uint64_t seed) {
  return random_tensor(
      {{DType::I32, {s.rows * s.positions, s.k}}, 0, double(s.experts - 1)},
      seed);
}

Tensor keep_of(const Setting& s, const Tensor& idx) {
  Graph g("keep");
  Value x = g.add_arg("idx", idx.type);
  Builder b(g);
  g.set_outputs({b.op(Op::CapacityKeep, {x},
                      {{"experts", s.experts},
                       {"capacity", s.capacity},
                       {"rows", s.rows},
                       {"scope", s.scope}})});
  return interpret(g, {idx})[0];
}

std::vector<Tensor> route_of(const Tensor& idx, const Tensor& keep,
                             i64 experts) {
  Graph g("route");
  Value x = g.add_arg("idx", idx.type), k = g.add_arg("keep", keep.type);
  Builder b(g);
  Node* n = b.node(Op::Route, {x, k}, {{"experts", experts}});
  g.set_outputs({n->result(0), n->result(1), n->result(2)});
  return interpret(g, {idx, keep});
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  for (const char* scope : {"row", "batch"})
    for (i64 capacity : {1, 3, 100})
      all.push_back({3, 11, 2, 4, capacity, scope});
  return all;
}

}  // namespace

TEST_CASE("later tokens never take the slots of earlier ones") {
  for (const Setting& s : settings())
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      Tensor idx = random_choices(s, seed), keep = keep_of(s, idx);
      for (i64 cut = 0; cut < s.positions; ++cut) {
        // Other choices from position `cut` on change nothing before it.
        Tensor changed = idx, other = random_choices(s, seed + 77);
        for (i64 r = 0; r < s.rows; ++r)
          for (i64 i = (r * s.positions + cut) * s.k;
               i < (r + 1) * s.positions * s.k; ++i)
            changed.data[i] = other.data[i];
        Tensor after = keep_of(s, changed);
        for (i64 r = 0; r < s.rows; ++r)
          for (i64 i = r * s.positions * s.k; i < (r * s.positions + cut) * s.k;
               ++i)
            REQUIRE(after.data[i] == keep.data[i]);
      }
    }
}

TEST_CASE("capacity is used up to its limit and never beyond") {
  for (const Setting& s : settings()) {
    Tensor idx = random_choices(s, 3), keep = keep_of(s, idx);
    std::map<std::pair<i64, i64>, i64> kept, wanted;
    for (i64 i = 0; i < i64(idx.data.size()); ++i) {
      i64 row = s.scope == "row" ? i / (s.positions * s.k) : 0;
      ++wanted[{row, i64(idx.data[i])}];
      kept[{row, i64(idx.data[i])}] += i64(keep.data[i]);
    }
    for (auto [slot, count] : wanted)
      CHECK(kept[slot] == std::min(count, s.capacity));
  }
}

TEST_CASE("slots go in the order of position, row, choice") {
  // Two rows of two positions; everyone wants expert 0, which has 3 slots.
  Setting s = {2, 2, 2, 1, 3, "batch"};
  Tensor idx = Tensor::zeros({DType::I32, {4, 2}});
  CHECK(keep_of(s, idx).data == std::vector<double>{1, 1, 0, 0, 1, 0, 0, 0});
  s.scope = "row";
  CHECK(keep_of(s, idx).data == std::vector<double>{1, 1, 1, 0, 1, 1, 1, 0});
}

TEST_CASE("a route is a stable sort without loss") {
  for (const Setting& s : settings())
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      Tensor idx = random_choices(s, seed), keep = keep_of(s, idx);
      auto routed = route_of(idx, keep, s.experts);
      const auto &offsets = routed[0].data, &perm = routed[1].data,
                 &inv = routed[2].data;
      auto choices = i64(inv.size());
      CHECK(choices == s.rows * s.positions * s.k);
      i64 total = i64(offsets.back()), dropped = 0;
      CHECK(offsets[0] == 0);
      std::set<double> slots;
      for (i64 c = 0; c < choices; ++c) {
        dropped += inv[c] < 0;
        CHECK((inv[c] >= 0) == (keep.data[c] != 0));
        if (inv[c] < 0) continue;
        CHECK(slots.insert(inv[c]).second);  // no two choices in one slot
        CHECK(perm[size_t(inv[c])] == double(c));
        auto e = size_t(idx.data[c]);
        CHECK((inv[c] >= offsets[e] && inv[c] < offsets[e + 1]));
      }
      CHECK(total + dropped == choices);
      for (i64 i = 0; i < choices; ++i) CHECK((perm[i] >= 0) == (i < total));
      for (i64 e = 0; e < s.experts; ++e)
        for (auto i = i64(offsets[e]) + 1; i < i64(offsets[e + 1]); ++i)
          CHECK(perm[i - 1] < perm[i]);
    }
}

TEST_CASE("ties of top_k go to the lowest index") {
  Graph g("ties");
  Value x = g.add_arg("x", {DType::F32, {2, 5}});
  Builder b(g);
  Node* n = b.node(Op::TopK, {x}, {{"k", i64(3)}});
  g.set_outputs({n->result(0), n->result(1)});
  Tensor in{{DType::F32, {2, 5}}, {1, 3, 3, 0, 3, 0, 0, 0, 0, 0}};
  auto out = interpret(g, {in});
  CHECK(out[0].data == std::vector<double>{3, 3, 3, 0, 0, 0});
  CHECK(out[1].data == std::vector<double>{1, 2, 4, 0, 1, 2});
}

}  // namespace moec
