#include "ir/verifier.h"

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"

namespace moec {
namespace {

[[noreturn]] void fail(const Graph& g, const Node* n, std::string_view after,
                       const std::string& why) {
  throw InternalError(fmt::format("after {}: @{}: {}{}{}", after, g.name(), why,
                                  n ? "\n  at " : "", n ? print(*n) : ""));
}

void check_node(const Graph& g, const Node& n, std::string_view after) {
  const OpDef& d = n.def();
  if (n.attrs().size() != d.attrs.size())
    fail(g, &n, after, "attributes are incomplete");
  for (size_t i = 0; i < d.attrs.size(); ++i)
    if (AttrKind(n.attrs()[i].index()) != d.attrs[i].kind)
      fail(g, &n, after, fmt::format("bad attribute {}", d.attrs[i].name));
  std::vector<Type> in;
  for (Value v : n.operands()) in.push_back(v.type());
  Types inferred;
  try {
    inferred = d.infer({in, n});
  } catch (const UserError& e) {
    fail(g, &n, after, e.what());
  }
  if (absl::MakeConstSpan(inferred) != n.types())
    fail(g, &n, after,
         fmt::format("type should be {}",
                     inferred.empty() ? "none" : to_string(inferred[0])));
}

}  // namespace

void verify(const Graph& g, std::string_view after) {
  absl::flat_hash_map<const Node*, int> position;
  absl::flat_hash_set<std::string_view> names;
  size_t uses = 0, operands = 0;
  for (Node* a : g.args())
    if (!names.insert(a->names[0]).second)
      fail(g, a, after, "two arguments have the name " + a->names[0]);
  for (Node* n : g) {
    for (Value v : n->operands()) {
      if (!position.contains(v.node))
        fail(g, n, after, "an operand stands after its user");
      if (v.index >= v.node->num_results())
        fail(g, n, after, "an operand names a missing result");
    }
    operands += n->operands().size();
    position.emplace(n, int(position.size()));
    if (n->op() != Op::Arg) check_node(g, *n, after);
    if (n->body()) verify(*n->body(), after);
  }
  for (Node* n : g) {
    for (const Use& u : n->users())
      if (!position.contains(u.node) || u.node->operand(u.operand).node != n)
        fail(g, n, after, "the list of users is wrong");
    uses += n->users().size();
  }
  if (uses != operands) fail(g, nullptr, after, "uses and operands differ");
  if (g.return_node() && g.last() != g.return_node())
    fail(g, g.last(), after, "a node stands after the return");
  if (!g.output_names.empty() && g.output_names.size() != g.outputs().size())
    fail(g, nullptr, after, "output names do not fit the outputs");
}

}  // namespace moec
