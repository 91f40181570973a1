// The textual form: the dump, the format of tests and an input format.
//
//   func @name(%x: f32[2,3], %w: f32[3]) {
//     // layer0/attn                      <- scope of the nodes that follow
//     %y = mul(%x, %w)    : f32[2,3]
//     %z = fusion(%a = %y) : f32[2,3] {   <- %a stands for %y in the body
//       %b = exp(%a) : f32[2,3]
//       return %b
//     }
//     return %z                           <- or: return name = %z, ...
//   }
//
// Attributes at their default are left out, a true bool prints as its name.
// parse(print(g)) equals g, and print(parse(print(g))) is the same text.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace moec {

std::string print(const Graph&);
std::string print(const Module&);
// Where the text of a node begins, bodies of fusions included.
struct TextMark {
  size_t offset;
  const Node* node;
};
std::string print(const Graph&, std::vector<TextMark>& marks);
// One line, without a body: "%s = matmul(%q, %k) {transpose_b} : f32[2,2]".
std::string print(const Node&);

// Throws UserError "name:line:column: reason" and never anything else on bad
// text. Printed types are inferred again and compared.
Module parse_module(std::string_view text, std::string_view name = "<text>");
std::unique_ptr<Graph> parse_graph(std::string_view text,
                                   std::string_view name = "<text>");

// "matmul layer0/attn", and the line of the model, "ffn.cpp:41" or empty.
std::string label_of(const Node&);
std::string source_of(const Node&);

// A key of the graph's structure: op names, attributes, types and edges, with
// names and provenance left out. Equal keys are equal graphs.
std::string structural_key(const Graph&);

}  // namespace moec
