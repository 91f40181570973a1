// JSON lines: one object a line, of which one member is a document's text.
#pragma once
#include <string>
#include <string_view>

#include "support/function_ref.h"

namespace moec {

// Calls `sink` with the member `field` of every line in order; blank lines are
// passed over. A UserError `name:line:byte: reason` for a line that is no JSON
// object, or whose member is missing or no string.
void for_each_json_line(std::string_view text, const std::string& name,
                        const std::string& field,
                        FunctionRef<void(std::string_view)> sink);

// The same with two members of every line: `prompt`, then `field`.
void for_each_json_pair(
    std::string_view text, const std::string& name, const std::string& prompt,
    const std::string& field,
    FunctionRef<void(std::string_view, std::string_view)> sink);

}  // namespace moec
