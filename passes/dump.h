// Graphs on disk: the text after every pass, and the file that reproduces a
// broken invariant.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

#include "passes/pass_manager.h"
#include "support/error.h"

namespace moec {

// Writes FOLDER/FUNCTION/NN_pass.ir.
DumpHook write_dumps(std::filesystem::path folder);

// Throws `error` again, with the graph in a new file of the temporary folder
// and the command that runs `arguments` on it.
[[noreturn]] void throw_with_reproducer(const InternalError& error,
                                        const Graph& graph,
                                        const PipelineOptions& options,
                                        std::string_view arguments);

}  // namespace moec
