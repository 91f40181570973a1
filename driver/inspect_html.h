// The page that `moec inspect --html` writes.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace moec {

// A page without links or scripts, from the object that `moec inspect --json`
// prints (with "excerpt" and "first" beside "routing"); `title` names the
// model.
std::string inspect_html(const nlohmann::ordered_json& report,
                         const std::string& title);

}  // namespace moec
