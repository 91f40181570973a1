// Local rewriting to a fixed point: a rule sees one node at a time.
#pragma once
#include "ir/builder.h"
#include "support/function_ref.h"

namespace moec {

// Returns what stands for result 0 of the node: none if the rule leaves it
// alone, the node's own result if it was changed in place. New nodes are made
// by the builder, which stands before the node.
using Rule = FunctionRef<Value(Builder&, Node&)>;

// Applies `rule` to every node, and again to what changes, until nothing
// does. Nodes that lose their last user are erased. Returns whether anything
// changed.
bool rewrite(Graph&, Rule rule);

// Erases `n` and then its operands as far as nothing uses them; impure nodes
// stay.
void erase_dead(Node* n);

// Gives the names of `from` to `to` if that has none.
void take_names(Node& from, Node& to);

}  // namespace moec
