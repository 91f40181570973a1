// A program outside the project: an installed moec found by find_package().
#include <fmt/core.h>
#include <moec/runtime/token_source.h>

int main() {
  moec::TrainWindows windows(moec::TokenSource({1, 2, 3, 4, 5, 6, 7}), 3, 0);
  moec::TokenBatch batch = windows.batch(0, 1);
  if (batch.targets[0] != batch.tokens[0] + 1) return 1;
  fmt::print("consumer: fine\n");
}
