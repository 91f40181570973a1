// Wrong operands and attributes end in a UserError that names what is wrong.
#include "ir/text.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

struct Bad {
  const char* args;  // "%a: f32[2,3], ..."
  const char* node;  // the right side of the assignment
  const char* says;  // part of the message
};

const Bad kBad[] = {
    {"%a: f32[8,40,128], %b: f32[8,256,128]", "matmul(%a, %b)",
     "matmul: inner dimensions differ: lhs f32[8,40,128] has 128, rhs "
     "f32[8,256,128] has 256; did you mean transpose_b?"},
    {"%a: f32[4,3], %b: f32[4,5]", "matmul(%a, %b)",
     "did you mean transpose_a?"},
    {"%a: f32[3], %b: f32[3,5]", "matmul(%a, %b)",
     "a f32[3] should have rank 2 or more"},
    {"%a: f32[2,3,4], %b: f32[5,4,6]", "matmul(%a, %b)",
     "shapes do not broadcast"},
    {"%a: f32[2,3], %b: f16[3,4]", "matmul(%a, %b)",
     "b f16[3,4] should have the dtype of a f32[2,3]"},
    {"%a: f32[2,3], %b: f32[2,4]", "add(%a, %b)",
     "add: shapes do not broadcast: f32[2,3] and f32[2,4]"},
    {"%a: f32[2], %b: i32[2]", "add(%a, %b)", "should have the dtype of"},
    {"%a: i32[2]", "exp(%a)", "exp: x i32[2] should be floating point"},
    {"%a: bool[2]", "neg(%a)", "should hold numbers"},
    {"%a: f32[2]", "not(%a)", "should be bool"},
    {"%a: f32[2]", "add(%a)", "add: takes 2 operands, not 1"},
    {"%a: f32[2]", "exp(%a) {axis=1}", "no attribute 'axis'"},
    {"%a: f32[2]", "cast(%a)", "attribute dtype is missing"},
    {"%a: f32[2], %b: f32[2]", "compare(%a, %b) {direction=\"up\"}",
     "none of lt le gt ge eq ne"},
    {"%a: f32[2], %b: f32[2]", "select(%a, %b, %b)", "pred f32[2] should be"},
    {"%a: f32[2,3]", "broadcast(%a) {shape=[2,4]}", "broadcast"},
    {"%a: f32[2,3]", "broadcast(%a) {shape=[3]}", "does not broadcast to"},
    {"%a: f32[2,3]", "reshape(%a) {shape=[5]}",
     "f32[2,3] has 6 elements, the shape of f32[5] 5"},
    {"%a: f32[2,3]", "reshape(%a) {shape=[-1]}", "negative dimension"},
    {"%a: f32[2,3]", "transpose(%a) {perm=[0,0]}", "perm=[0,0]"},
    {"%a: f32[2,3]", "slice(%a) {start=[0,2], limit=[2,4]}",
     "[2, 4) is not within axis 1 of f32[2,3]"},
    {"%a: f32[2,3]", "slice(%a) {start=[0], limit=[2]}", "one entry for each"},
    {"%a: f32[2,3]", "slice(%a) {start=[0,0], limit=[2,3], stride=[1,0]}",
     "positive"},
    {"%a: f32[2,3], %b: f32[3,3]", "concat(%a, %b) {axis=1}",
     "does not fit operand 0"},
    {"%a: f32[2,3], %b: f32[2,3]", "concat(%a, %b) {axis=2}",
     "axis=2 is not an axis of f32[2,3]"},
    {"%a: f32[2]", "pad(%a) {low=[-1], high=[0]}", "no amounts to pad"},
    {"%a: f32[4], %b: i32[]", "dynamic_slice(%a, %b) {axis=0, size=5}",
     "size=5 does not fit axis 0 of f32[4]"},
    {"%a: f32[4], %b: i64[]", "dynamic_slice(%a, %b) {axis=0, size=2}",
     "start i64[] should be i32"},
    {"%a: f32[4,2], %b: f32[5,2], %c: i32[]",
     "dynamic_update_slice(%a, %b, %c) {axis=0}", "does not fit x f32[4,2]"},
    {"%a: f32[4,2], %b: f32[3]", "gather(%a, %b)", "should hold integers"},
    {"%a: f32[4], %b: i32[3]", "embedding(%a, %b)", "should have rank 2"},
    {"%a: i32[4], %b: f32[3,2]", "scatter_add(%a, %b) {rows=3}",
     "should begin with the shape of idx i32[4]"},
    {"%a: f32[4,2], %b: i32[3,2]", "take_along(%a, %b)",
     "differ in the last axis only"},
    {"%a: i32[4,2], %b: f32[4,3]", "put_along(%a, %b) {size=5}",
     "v f32[4,3] should be f32[4,2]"},
    {"%a: f32[4,2]", "sum(%a) {axes=[2]}", "names axis 2"},
    {"%a: f32[4,2]", "sum(%a) {axes=[0,-2]}", "axis -2 twice"},
    {"%a: f32[4,0]", "reduce_max(%a) {axes=[1]}", "of no elements"},
    {"%a: i32[4]", "mean(%a) {axes=[0]}", "floating point"},
    {"%a: f32[4]", "softmax(%a) {axis=1}", "axis=1 is not an axis"},
    {"%a: f32[]", "argmax(%a)", "axis=-1 is not an axis of f32[]"},
    {"%a: f32[4]", "bincount(%a) {size=3}", "should hold integers"},
    {"%a: f32[4], %b: i32[]", "segment_sum(%a, %b)", "should have rank 1"},
    {"%a: f32[4,8], %b: f32[4]", "rms_norm(%a, %b)",
     "gamma f32[4] should be f32[8]"},
    {"%a: f32[4,8], %b: f32[8], %c: f32[7]", "layer_norm(%a, %b, %c)",
     "beta f32[7] should be f32[8]"},
    {"%a: f32[9,8], %b: f32[2,5,8], %c: i32[3]", "grouped_matmul(%a, %b, %c)",
     "x f32[9,8] has 8, w f32[2,5,8] has 5; did you mean transpose_b?"},
    {"%a: f32[9,8], %b: f32[2,8,5], %c: i32[2]", "grouped_matmul(%a, %b, %c)",
     "offsets i32[2] should be i32[3]"},
    {"%a: f32[2,5,7]", "rope(%a)", "should be even"},
    {"%a: f32[2,5,8], %b: i32[4]", "rope(%a, %b)", "should be i32[5]"},
    {"%a: f32[5,8]", "rope(%a) {axis=1}", "axis=1 is the last"},
    {"%a: f32[1,2,5,8]", "attention(%a, %a, %a) {layout=\"tbhd\"}",
     "neither \"bhtd\" nor \"bthd\""},
    {"%a: f32[5,4]", "causal_mask(%a)", "more queries than keys"},
    {"%a: f32[1,3,5,8], %b: f32[1,2,5,8]", "attention(%a, %b, %b)",
     "the 3 heads of q f32[1,3,5,8] are no multiple of the 2"},
    {"%a: f32[1,2,5,8], %b: f32[1,2,5,6]", "attention(%a, %b, %b)",
     "head width should be equal"},
    {"%a: f32[1,2,5,8]", "attention(%a, %a, %a) {dropout=0.5}",
     "dropout needs a key"},
    {"%a: f32[1,2,5,8]", "attention(%a, %a, %a) {window=3}",
     "positive and causal"},
    {"%a: f32[4,8]", "top_k(%a) {k=9}", "k=9 should be between 1 and"},
    {"%a: i32[4,2]", "capacity_keep(%a) {experts=2, capacity=1, rows=3}",
     "rows=3 does not divide"},
    {"%a: i32[4,2]", "capacity_keep(%a) {experts=2, capacity=1, scope=\"all\"}",
     "neither \"row\" nor \"batch\""},
    {"%a: i32[4,2], %b: bool[4]", "route(%a, %b) {experts=2}",
     "keep bool[4] should be bool[4,2]"},
    {"%a: i32[4,2]", "route(%a) {experts=0}", "should be positive"},
    {"%a: f32[4,8], %b: i32[3]", "cross_entropy(%a, %b)",
     "targets i32[3] should be i32[4]"},
    {"%a: f32[4,8], %b: f32[9,7], %c: i32[4]",
     "linear_cross_entropy(%a, %b, %c)", "differ in the last dimension"},
    {"%a: u32[3]", "random_uniform(%a) {shape=[2]}", "should be a key, u32[2]"},
    {"%a: f32[4], %b: u32[2]", "dropout(%a, %b) {p=1}", "should be in [0, 1)"},
    {"%p: bf16[4], %s: f32[]", "adamw(%p, %p, %p, %p, %s, %s, %s)",
     "keep the master weights in full precision"},
    {"%a: f32[4]", "iota() {shape=[2], axis=1}", "axis=1 is not an axis"},
    {"%a: f32[4]", "grad(%a, %a)", "loss f32[4] should have rank 0"},
    {"%a: f32[4]", "constant() {shape=[99999999,99999999,99], value=0}",
     "too large"},
};

}  // namespace

TEST_CASE("wrong operands and attributes are explained") {
  for (const Bad& bad : kBad) {
    std::string text = std::string("func @f(") + bad.args +
                       ") {\n  %r = " + bad.node + " : f32[]\n  return %r\n}\n";
    INFO(text);
    std::string said = "nothing";
    try {
      parse_graph(text);
    } catch (const UserError& e) {
      said = e.what();
    }
    CHECK_MESSAGE(said.find(bad.says) != std::string::npos, said);
  }
}

}  // namespace moec
