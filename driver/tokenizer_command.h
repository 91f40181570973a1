// moec tokenizer train|encode|decode|convert|inspect and moec bench tokenizer.
#pragma once

namespace CLI {
class App;
}

namespace moec {

void add_tokenizer_commands(CLI::App& app);
void add_bench_tokenizer(CLI::App& bench);

}  // namespace moec
