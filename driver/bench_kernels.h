// moec bench ops|attention|moe: kernels against the machine's rates.
#pragma once

namespace CLI {
class App;
}

namespace moec {

void add_bench_ops(CLI::App& bench);
void add_bench_attention(CLI::App& bench);
void add_bench_moe(CLI::App& bench);

}  // namespace moec
