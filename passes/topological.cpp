#include "passes/topological.h"

#include <absl/container/flat_hash_map.h>

#include "ir/op_def.h"
#include "support/error.h"

namespace moec {

void sort_topologically(Graph& g) {
  enum class State : uint8_t { New, Open, Done };
  absl::flat_hash_map<Node*, State> state;
  std::vector<Node*> given, order, stack;
  for (Node* n : g)
    if (n->op() == Op::Arg)
      state[n] = State::Done;
    else if (n->op() != Op::Return)
      given.push_back(n);
  for (Node* wanted : given) {
    stack.push_back(wanted);
    while (!stack.empty()) {
      Node* n = stack.back();
      State& s = state[n];
      if (s == State::Done) {
        stack.pop_back();
        continue;
      }
      if (s == State::Open) {
        s = State::Done;
        order.push_back(n);
        stack.pop_back();
        continue;
      }
      s = State::Open;
      for (int i = n->num_operands(); i-- > 0;) {
        Node* p = n->operand(i).node;
        auto at = state.find(p);
        if (at == state.end() || at->second == State::New)
          stack.push_back(p);
        else
          MOEC_CHECK(at->second == State::Done, "a cycle through {}",
                     op_name(p->op()));
      }
    }
  }
  for (Node* n : order) g.move_before(n, g.return_node());
}

}  // namespace moec
